import { assert, assertEquals } from "@std/assert";
import fc from "fast-check";
import { barLine } from "./progress_bars.ts";
import { tableLines, textLines } from "./terminal_table.ts";

const COLUMNS = [
  { name: "Run" },
  { name: "Status" },
  { name: "What it did", isFlexible: true },
  { name: "Took", isNumber: true },
];

Deno.test("tableLines() aligns columns, and uses colors only if the terminal has them", () => {
  const rows = [
    ["a", { text: "succeeded", tone: "good" as const }, "nothing", "5 ms"],
    ["bcd", { text: "failed", tone: "bad" as const }, "", "1.25 s"],
  ];
  assertEquals(
    tableLines({ columns: COLUMNS, rows }, { width: 80, hasColors: false }),
    [
      "Run  Status     What it did    Took",
      "a    succeeded  nothing        5 ms",
      "bcd  failed                  1.25 s",
    ],
  );
  const [, painted] = tableLines({ columns: COLUMNS, rows }, {
    width: 80,
    hasColors: true,
  });
  assert(painted!.includes("\x1b[32msucceeded\x1b[0m"), painted);
});

Deno.test("tableLines() cuts the flexible column first, then omits the last columns", () => {
  const rows = [["12345678", "succeeded", "x".repeat(50), "1.25 s"]];
  const lines = (width: number) =>
    tableLines({ columns: COLUMNS, rows }, { width, hasColors: false });
  assertEquals(
    lines(50)[1],
    `12345678  succeeded  ${"x".repeat(20)}…  1.25 s`,
  );
  assertEquals(lines(40)[1], `12345678  succeeded  ${"x".repeat(18)}…`);
});

Deno.test("tableLines() and barLine() never exceed the terminal's width", () => {
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
        const lines = tableLines({ columns: COLUMNS, rows }, {
          width,
          hasColors: false,
        });
        for (const line of [bar, ...lines]) assert([...line].length <= width);
      },
    ),
  );
});

Deno.test("textLines() prints only its own colors as they are, and keeps columns aligned", () => {
  const harmful = "a   b \x1b[5mc\x1b]0;title\x07\nd";
  const safe = "a b \\u{1b}[5mc\\u{1b}]0;title\\u{7} d";
  const failed = { text: harmful, tone: "bad", isMarked: true } as const;
  const terminal = { width: 80, hasColors: true };
  assertEquals(
    textLines(
      [{ columns: [{}, {}], rows: [["x", failed], ["long", "y"]] }, failed],
      terminal,
      (text) => text,
    ),
    [
      `x     \x1b[31m✗\x1b[0m ${safe}`,
      "long  y",
      `\x1b[31m✗\x1b[0m ${safe}`,
    ],
  );
  assertEquals(
    textLines(["  a\nb\x1b"], terminal, (text) => text),
    ["  a b\\u{1b}"],
  );
});

Deno.test("textLines() masks a secret that the width of the terminal would cut", () => {
  const row = ["12345678", "failed", "refused by hunter2-secret", "1 s"];
  assertEquals(
    textLines(
      [{ columns: COLUMNS, rows: [row] }],
      { width: 40, hasColors: false },
      (text) => text.replaceAll("hunter2-secret", "***"),
    )[1],
    "12345678  failed  refused by ***   1 s",
  );
});
