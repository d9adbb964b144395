import { assertEquals, assertMatch } from "@std/assert";
import { barLine, totalLine } from "./progress_bars.ts";

Deno.test("barLine() shows rows, rate and remaining time when they are known", () => {
  const progress = {
    table: "closed_deal",
    phase: "copy",
    rows: 250_000,
    bytes: 1,
    totalRows: 1_000_000,
  } as const;
  assertMatch(
    barLine(progress, 2, 120),
    /^closed_deal +█{8}░{22} copy +250,000 \/ 1,000,000 rows 125,000\/s 6 s left$/,
  );
  // Without a total, or in the first moments, the remaining time is unknown.
  assertMatch(barLine(progress, 0.1, 120), /rows$/);
  assertMatch(
    barLine({ ...progress, totalRows: null }, 2, 120),
    /250,000 rows 125,000\/s$/,
  );
  assertMatch(
    barLine({ ...progress, phase: "verify" }, 2, 120),
    /█{30} verify/,
  );
});

Deno.test("totalLine() shows the verified tables in any width", () => {
  assertEquals(
    totalLine(250, 500, 120),
    `${"█".repeat(15)}${"░".repeat(15)} 250 of 500 tables`,
  );
  assertEquals(totalLine(499, 500, 30), "███████████░ 499 of 500 tables");
  assertEquals(totalLine(499, 500, 10), "499 of 500");
});
