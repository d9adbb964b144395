import { assert, assertEquals, assertMatch } from "@std/assert";
import fc from "fast-check";
import { barLine } from "../../src/cli/progress_bars.ts";
import { tableLines } from "../../src/cli/terminal_table.ts";
import {
  formatBytes,
  formatCount,
  formatDistance,
  formatSeconds,
} from "../../src/format.ts";

const COLUMNS = [
  { name: "Run" },
  { name: "Status" },
  { name: "What it did", isFlexible: true },
  { name: "Took", isNumber: true },
];

Deno.test("tableLines() lines up its columns and paints only where there are colours", () => {
  const rows = [
    ["a", { text: "succeeded", tone: "good" as const }, "nothing", "5 ms"],
    ["bcd", { text: "failed", tone: "bad" as const }, "", "1.25 s"],
  ];
  assertEquals(tableLines(COLUMNS, rows, { width: 80, hasColors: false }), [
    "Run  Status     What it did    Took",
    "a    succeeded  nothing        5 ms",
    "bcd  failed                  1.25 s",
  ]);
  const [, painted] = tableLines(COLUMNS, rows, { width: 80, hasColors: true });
  assert(painted!.includes("\x1b[32msucceeded\x1b[0m"), painted);
});

Deno.test("tableLines() cuts the flexible column first, then leaves out the last ones", () => {
  const rows = [["12345678", "succeeded", "x".repeat(50), "1.25 s"]];
  const lines = (width: number) =>
    tableLines(COLUMNS, rows, { width, hasColors: false });
  assertEquals(
    lines(50)[1],
    `12345678  succeeded  ${"x".repeat(20)}…  1.25 s`,
  );
  assertEquals(lines(40)[1], `12345678  succeeded  ${"x".repeat(18)}…`);
});

Deno.test("no line of a table or a bar is longer than the terminal is wide", () => {
  fc.assert(
    fc.property(
      fc.array(fc.tuple(fc.string(), fc.string(), fc.string(), fc.string())),
      fc.integer({ min: 1, max: 200 }),
      fc.nat(),
      fc.option(fc.nat()),
      fc.double({ min: 0, max: 1e6, noNaN: true }),
      (rows, width, moved, totalRows, seconds) => {
        const bar = barLine(
          {
            table: "closed_deal",
            phase: "copy",
            rows: moved,
            bytes: 0,
            totalRows,
          },
          seconds,
          width,
        );
        const lines = tableLines(COLUMNS, rows, { width, hasColors: false });
        for (const line of [bar, ...lines]) assert([...line].length <= width);
      },
    ),
  );
});

Deno.test("barLine() tells rows, rate and time left as far as they are known", () => {
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
  // The first moments and an unknown total promise nothing.
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

Deno.test("numbers and times are told as people read them", () => {
  assertEquals(
    [0, 999, 1000, 1234567].map(formatCount),
    ["0", "999", "1,000", "1,234,567"],
  );
  assertEquals(
    [0, 0.0002, 0.0042, 0.0995, 9.994, 59.94, 59.96, 200, 7500].map(
      formatSeconds,
    ),
    [
      "0 ms",
      "<1 ms",
      "4 ms",
      "0.10 s",
      "9.99 s",
      "59.9 s",
      "1 min 0 s",
      "3 min 20 s",
      "2 h 5 min",
    ],
  );
  assertEquals(
    [0, 903, 999.6, 197_000, 1_250_000, 9.99e14].map(formatBytes),
    ["0 B", "903 B", "1.0 kB", "197 kB", "1.3 MB", "999 TB"],
  );
  const now = new Date("2026-01-02T00:00:00Z");
  assertEquals(
    [0, -3, -59, -3600, -86400 * 2, 7200].map((seconds) =>
      formatDistance(new Date(now.getTime() + seconds * 1000), now)
    ),
    ["just now", "just now", "59 s ago", "1 h ago", "2 days ago", "in 2 h"],
  );
});
