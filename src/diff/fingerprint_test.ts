import { assertEquals } from "@std/assert";
import { afterDelta, equal, modeFor } from "./fingerprint.ts";

Deno.test("modeFor() returns full when half of the rows differ or one side is empty", () => {
  assertEquals(modeFor(0, 10), "unchanged");
  assertEquals(modeFor(9, 10), "delta");
  assertEquals(modeFor(10, 10), "full");
  assertEquals(modeFor(10, 0), "full");
});

Deno.test("afterDelta() adds kept and written rows, and returns nothing when they do not match", () => {
  const before = { count: 10, checksum: "100" };
  const deleted = { count: 2, checksum: "-20" };
  const written = { count: 3, checksum: "9223372036854775807" };
  assertEquals(afterDelta(before, deleted, written, 11), {
    count: 11,
    checksum: "9223372036854775927",
  });
  // A trigger deleted or inserted one more row.
  assertEquals(afterDelta(before, deleted, written, 10), undefined);
  assertEquals(afterDelta(before, deleted, written, 12), undefined);
});

Deno.test("equal() compares counts and sums", () => {
  assertEquals(
    equal({ count: 1, checksum: "2" }, { count: 1, checksum: "2" }),
    true,
  );
  assertEquals(
    equal({ count: 1, checksum: "2" }, { count: 2, checksum: "2" }),
    false,
  );
  assertEquals(equal(undefined, { count: 1, checksum: "2" }), false);
});
