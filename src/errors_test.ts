import { assertEquals } from "@std/assert";
import { ServiceError } from "./errors.ts";

Deno.test("ServiceError renders its line from table, server, reason and remedy", () => {
  const error = new ServiceError("permission_denied", "denied\nhere", {
    server: "dwh",
    sqlstate: "42501",
    remedy: "Grant it.",
  });
  assertEquals(error.line, "dwh: denied here. Grant it.");
  const ofTable = error.of("closed_deal");
  assertEquals(
    ofTable.line,
    "Cannot load closed_deal: dwh: denied here. Grant it.",
  );
  assertEquals([ofTable.reason, ofTable.server, ofTable.table], [
    "denied here",
    "dwh",
    "closed_deal",
  ]);
});
