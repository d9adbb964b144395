import { assert, assertEquals } from "@std/assert";
import fc from "fast-check";
import { RowMatcher, type SideName } from "./row_matcher.ts";

/** Hashes of rows, with duplicates. */
const hashes = fc.array(
  fc.nat(60).map((n) => BigInt.asIntN(64, BigInt(n) * 0x9e3779b97f4a7c15n)),
  { maxLength: 200 },
);

/** Adds the rows of a pass, from both sides in turn. */
function addAll(
  matcher: RowMatcher,
  rows: Readonly<Record<SideName, readonly bigint[]>>,
): void {
  const [min, max] = matcher.range ?? [-(2n ** 63n), 2n ** 63n - 1n];
  const length = Math.max(rows.source.length, rows.target.length);
  for (let i = 0; i < length; i++) {
    for (const side of ["source", "target"] as const) {
      const hash = rows[side][i];
      if (hash === undefined || hash < min || hash > max) continue;
      const lower = Number(BigInt.asIntN(32, hash));
      matcher.add(side, Number(hash >> 32n), lower, 0xffff_0000 + i | 0, i);
    }
  }
}

function count(rows: readonly bigint[]): Map<bigint, number> {
  const counts = new Map<bigint, number>();
  for (const hash of rows) counts.set(hash, (counts.get(hash) ?? 0) + 1);
  return counts;
}

Deno.test("RowMatcher finds each row that one side has more often, and its ctid", () => {
  fc.assert(fc.property(
    hashes,
    hashes,
    hashes,
    fc.constantFrom(16, 64, 1024),
    (both, source, target, maxPending) => {
      const rows = {
        source: [...both, ...source],
        target: [...target, ...both],
      };
      const matcher = new RowMatcher(maxPending);
      do addAll(matcher, rows); while (matcher.endPass());
      for (const [side, other] of SIDES) {
        const sum = rows[side].reduce((a, b) => a + b, 0n);
        assertEquals(matcher.fingerprint(side), {
          count: rows[side].length,
          checksum: sum.toString(),
        });
        const [here, there] = [count(rows[side]), count(rows[other])];
        const found = count([...matcher[side].hashes()].map(BigInt));
        for (const [hash, copies] of here) {
          const surplus = Math.max(copies - (there.get(hash) ?? 0), 0);
          const isFound = (found.get(hash) ?? 0) === surplus;
          assert(isFound || !matcher.isWhole, `${hash}`);
        }
        const ctids = [...matcher[side].ctids()];
        assertEquals(new Set(ctids).size, ctids.length);
        for (const [i, hash] of [...matcher[side].hashes()].entries()) {
          const [, block, item] = /^\((\d+),(\d+)\)$/.exec(ctids[i]!)!;
          assertEquals(rows[side][Number(item)], BigInt(hash));
          assertEquals(Number(block), 0xffff_0000 + Number(item));
        }
      }
    },
  ));
});

const SIDES = [["source", "target"], ["target", "source"]] as const;

Deno.test("RowMatcher finds more differences than it holds, in several passes", () => {
  const random = (count: number) =>
    Array.from(crypto.getRandomValues(new BigInt64Array(count)));
  const rows = { source: random(3000), target: random(2000) };
  const matcher = new RowMatcher(1024);
  let passes = 0;
  do {
    addAll(matcher, rows);
    passes++;
  } while (matcher.endPass());
  assert(matcher.isWhole);
  assert(passes >= 5 && passes <= 16, `${passes} passes`);
  assertEquals([matcher.source.count, matcher.target.count], [3000, 2000]);
});

Deno.test("RowMatcher gives up on too many differences and on too many copies of a row", () => {
  for (const hash of [(i: number) => i * 2 ** 20 | 0, () => 7]) {
    const matcher = new RowMatcher(16);
    do {
      for (let i = 0; i < 5000; i++) matcher.add("source", hash(i), i);
    } while (matcher.endPass());
    assertEquals(matcher.isWhole, false);
  }
});

Deno.test("RowMatcher frees what it no longer needs, without the garbage collector", () => {
  const rows = 300_000;
  const before = Deno.memoryUsage().external;
  const isWithin = (bytes: number) => {
    const taken = Deno.memoryUsage().external - before;
    assert(taken < bytes + 1e6, `${taken} bytes instead of ${bytes}`);
  };
  const matcher = new RowMatcher();
  for (let i = 0; i < rows; i++) matcher.add("source", i, i * 0x9e3779b9 | 0);
  isWithin(2 ** 19 * 22);
  assertEquals(matcher.endPass(), false);
  assertEquals(matcher.source.count, rows);
  isWithin(rows * 14);
});
