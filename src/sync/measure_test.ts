import { assertEquals, assertThrows } from "@std/assert";
import type { Sides } from "../diff/find_difference.ts";
import type { HashMethod } from "../diff/row_hash.ts";
import { ServiceError } from "../errors.ts";
import { parseTypeName } from "../tables/column_types.ts";
import type { Column } from "../tables/declaration.ts";
import { checkHeld } from "./measure.ts";

/** Returns the remedy of a mismatch in a table that no view, function or trigger changes. */
function remedyFor(
  column: Omit<Column, "name">,
  kind: HashMethod["kind"],
  warehouseVersion = "17.0",
  rows = 1,
): string {
  const relation = { schema: "shop", name: "item" };
  const table = {
    name: "item",
    source: relation,
    target: relation,
    columns: [{ name: "a", ...column }],
  };
  const error = assertThrows(
    () =>
      checkHeld(
        {
          config: { verify: "content" },
          snapshot: { repeatable: new Set(["item"]) },
          isAlone: true,
        },
        {
          table,
          method: { kind, seed: 0n },
          source: { session: { serverVersion: "18.1" } },
          target: { session: { serverVersion: warehouseVersion } },
        } as unknown as Sides,
        { hasNoSideEffects: true },
        { count: rows, checksum: "1" },
        { count: 1, checksum: "2" },
      ),
    ServiceError,
  );
  assertEquals(error.code, "verification_failed");
  return error.remedy;
}

Deno.test("checkHeld() names the types that can change values, and nothing else", () => {
  const none =
    "Report this with the log: no trigger, view or function explains it.";
  const ofUsers =
    'The target was rolled back. Give the user-defined types of "a" the same definition on both servers, or declare the columns as text in TABLES_FILE.';
  const sorted =
    'The target was rolled back. Declare "a" as text in TABLES_FILE, with an expression such as value::text. Servers of different encodings sort keys of jsonb and words of tsvector differently.';
  const jsonb = { type: parseTypeName("jsonb") };
  const price = { type: parseTypeName("shop.price"), layout: ["a numeric"] };
  assertEquals(remedyFor(jsonb, "native"), none);
  assertEquals(remedyFor({ type: parseTypeName("text") }, "text"), none);
  assertEquals(remedyFor(price, "native"), ofUsers);
  assertEquals(remedyFor(jsonb, "text"), sorted);
  assertEquals(remedyFor(price, "text", "17.0", 2), none);
  const span = { type: parseTypeName("interval[]") };
  assertEquals(remedyFor(span, "native"), none);
  assertEquals(
    remedyFor(span, "native", "16.9"),
    'The target was rolled back. Correct the infinite intervals of "a" in the source. PostgreSQL 16 and older have none.',
  );
});
