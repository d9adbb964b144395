import { assertEquals } from "@std/assert";
import {
  afterDelta,
  bucketCount,
  type Buckets,
  differingBuckets,
  diffRows,
  equal,
  isSkewed,
  modeFor,
  parseBuckets,
  wholeOf,
} from "./fingerprint.ts";

const buckets = (entries: Record<number, [number, string]>): Buckets =>
  new Map(
    Object.entries(entries).map((
      [b, [count, checksum]],
    ) => [Number(b), { count, checksum }]),
  );

const BUCKETING = { by: "first column", buckets: 256 } as const;

const differenceOf = (source: Buckets, target: Buckets) =>
  differingBuckets(source, target, BUCKETING);

const modeOf = (source: Buckets, target: Buckets) =>
  modeFor(differenceOf(source, target), wholeOf(source).count);

Deno.test("modeFor() returns unchanged when all buckets are equal", () => {
  const side = buckets({ 1: [2, "5"], 7: [1, "-9"] });
  assertEquals(modeOf(side, side), "unchanged");
});

Deno.test("differingBuckets() finds a moved, inserted or deleted row", () => {
  const source = buckets({
    1: [50, "5"],
    2: [50, "8"],
    3: [1, "3"],
    4: [60, "6"],
  });
  const target = buckets({
    1: [50, "5"],
    2: [50, "7"],
    4: [60, "6"],
    9: [1, "1"],
  });
  assertEquals(differenceOf(source, target), {
    ...BUCKETING,
    changed: [2, 3, 9],
    sourceRows: 51,
    targetRows: 51,
  });
  assertEquals(modeOf(source, target), "delta");
});

Deno.test("modeFor() detects a changed number of equal rows, even if the sum is equal", () => {
  const source = buckets({ 1: [2, "0"], 2: [100, "1"] });
  const target = buckets({ 1: [4, "0"], 2: [100, "1"] });
  assertEquals(modeOf(source, target), "delta");
});

Deno.test("modeFor() returns full when most rows differ or one side is empty", () => {
  const some = buckets({ 1: [10, "5"], 2: [10, "6"] });
  assertEquals(modeOf(some, buckets({})), "full");
  assertEquals(modeOf(buckets({}), some), "full");
  assertEquals(modeOf(some, buckets({ 1: [10, "7"], 2: [10, "8"] })), "full");
});

Deno.test("isSkewed() distinguishes one value in most rows from many changes", () => {
  const difference = (changed: number, rows: number) => ({
    ...BUCKETING,
    changed: Array.from({ length: changed }, (_, i) => i),
    sourceRows: rows,
    targetRows: rows,
  });
  assertEquals(isSkewed(difference(1, 90_000), 100_000), true);
  assertEquals(isSkewed(difference(1, 390), 100_000), false);
  assertEquals(isSkewed(difference(256, 100_000), 100_000), false);
  assertEquals(isSkewed(difference(1, 1), 20), false);
  assertEquals(isSkewed(difference(0, 0), 0), false);
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

Deno.test("bucketCount() is a power of two within its bounds", () => {
  assertEquals(bucketCount(0), 256);
  assertEquals(bucketCount(8000), 256);
  assertEquals(bucketCount(3_000_000), 8_192);
  assertEquals(bucketCount(Number.MAX_SAFE_INTEGER), 65_536);
});

Deno.test("parseBuckets() and wholeOf() give the fingerprint of the whole table", () => {
  const parsed = parseBuckets(
    "0 2 9223372036854775807,3 1 -5,65535 4 9223372036854775807",
  );
  assertEquals(parsed.get(3), { count: 1, checksum: "-5" });
  assertEquals(wholeOf(parsed), { count: 7, checksum: "18446744073709551609" });
  assertEquals(wholeOf(parseBuckets("")), { count: 0, checksum: "0" });
});

Deno.test("diffRows() finds differing rows, and equal rows whose number differs", () => {
  assertEquals(
    diffRows("1 (0,1);2 (0,2);3 (0,3);3 (0,4)", "1 (9,1);3 (9,3);4 (9,2)"),
    {
      hashes: ["2", "3", "4"],
      source: ["(0,2)", "(0,3)", "(0,4)"],
      target: ["(9,3)", "(9,2)"],
      copied: { count: 3, checksum: "8" },
      deleted: { count: 2, checksum: "7" },
    },
  );
  const nothing = { count: 0, checksum: "0" };
  assertEquals(diffRows("", ""), {
    hashes: [],
    source: [],
    target: [],
    copied: nothing,
    deleted: nothing,
  });
});

Deno.test("diffRows() handles any number of equal rows", () => {
  const twins = Array.from({ length: 200_000 }, (_, i) => `7 (${i},1)`);
  const { target } = diffRows("", twins.join(";"));
  assertEquals(target.length, 200_000);
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
