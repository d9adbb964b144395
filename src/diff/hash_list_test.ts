import { assertEquals } from "@std/assert";
import fc from "fast-check";
import { HashList } from "./hash_list.ts";
import { RowSet } from "./row_matcher.ts";

/** Halves of hashes, with some that differ in one half only. */
const hashes = fc.array(
  fc.tuple(fc.constantFrom(0, -1, 1 << 31, 77, 5), fc.integer()),
  { maxLength: 300 },
);

Deno.test("HashList.findRepeated() returns exactly the rows whose hash was added", () => {
  fc.assert(fc.property(
    hashes,
    hashes,
    hashes,
    fc.boolean(),
    (both, added, others, isFull) => {
      const stream = [...added, ...both];
      const list = new HashList(Math.max(stream.length - Number(isFull), 0));
      const rows = new RowSet();
      for (const [upper, lower] of stream) list.add(upper, lower);
      for (const [i, [upper, lower]] of [...both, ...others].entries()) {
        rows.add(upper, lower, i, 1);
      }
      const known = new Set(stream.map(String));
      const expected = [...both, ...others].flatMap((hash, i) =>
        isFull && stream.length > 0 || known.has(String(hash))
          ? [`(${i},1)`]
          : []
      );
      assertEquals([...list.findRepeated(rows).ctids()], expected);
    },
  ));
});
