import { assertEquals } from "@std/assert";
import { ServiceError } from "../errors.ts";
import { MARKETING_TABLES } from "../tables/marketing.ts";
import { failedEntry, failureLine, type TableEntry } from "./event.ts";

const loaded = (table: string) => ({ table, status: "success" }) as TableEntry;
const failed = (table: string) =>
  failedEntry(
    [],
    table,
    new ServiceError("busy", `${table} waits`).of(table),
    1,
  );

Deno.test("failedEntry() names source and target of a declared table last", () => {
  const error = new ServiceError("busy", "It waits");
  const entry = failedEntry(MARKETING_TABLES, "closed_deal", error, 1);
  assertEquals(Object.entries(entry).slice(-2), [
    ["source", "marketing.closed_deals"],
    ["target", "m_data.closed_deal"],
  ]);
  const [declared] = MARKETING_TABLES;
  const target = { schema: "Raw", name: 'a "b"' };
  const quoted = [{ ...declared!, name: "odd", target }];
  assertEquals(
    failedEntry(quoted, "odd", error, 1).target,
    '"Raw"."a ""b"""',
  );
  assertEquals("source" in failedEntry([], "gone", error, 1), false);
});

Deno.test("failureLine() names each failed table, and counts what is too much for a line", () => {
  const names = (count: number, prefix: string) =>
    Array.from({ length: count }, (_, i) => `${prefix}${i}`);
  const one = failureLine([failed("bad"), ...names(499, "t").map(loaded)]);
  assertEquals(
    one,
    `${
      (failed("bad") as { error: string }).error
    } Loaded successfully: 499 tables.`,
  );
  assertEquals(
    failureLine([failed("bad"), loaded("a"), loaded("b")]).endsWith(
      "Loaded successfully: a, b.",
    ),
    true,
  );
  const all = failureLine(names(500, "t").map(failed));
  assertEquals(all.includes("t9"), true);
  assertEquals(all.endsWith("490 more tables failed."), true);
});
