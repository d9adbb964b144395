import { assertEquals } from "@std/assert";
import { ServiceError } from "../../src/errors.ts";
import { TABLES } from "../../src/tables/declaration.ts";
import { failedUnit } from "../../src/load/prepare.ts";

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

Deno.test("failedUnit reports another table's failure as its own where the tables are not atomic", () => {
  const [deal, lead] = TABLES;
  const cause = new ServiceError("snapshot_lost", "the snapshot is gone", {
    table: deal!.name,
  });
  const codes = (tables: typeof TABLES) =>
    failedUnit(tables, cause, 1).failures.map(({ code }) => code);
  assertEquals(codes([lead!]), ["snapshot_lost"]);
  assertEquals(codes([deal!, lead!]), ["snapshot_lost", "rolled_back"]);
});
