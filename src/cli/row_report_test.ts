import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import type { ColumnDifference } from "../diff/value_differences.ts";
import { rowBlocks } from "./row_report.ts";
import { textLines } from "./terminal_table.ts";

function difference(
  column: string,
  source: string | null,
  target: string | null,
  changes: Partial<ColumnDifference> = {},
): ColumnDifference {
  const sizeOf = (text: string | null) =>
    text === null ? null : new TextEncoder().encode(text).length;
  return {
    column,
    source,
    target,
    format: "text",
    position: Math.max(
      0,
      [...source ?? ""].findIndex((c, i) => c !== target?.[i]),
    ),
    source_bytes: sizeOf(source),
    target_bytes: sizeOf(target),
    ...changes,
  };
}

function linesOf(
  width: number,
  columns: readonly ColumnDifference[],
  hasColors = false,
): string[] {
  const row = { row: { id: "7", secret: "hidden" }, source: 1, target: 1 };
  const found = {
    named_by: "key",
    is_key_ambiguous: false,
    total: 1,
    rows: [{ ...row, columns }],
  } as const;
  return textLines(
    rowBlocks("deal", found),
    { width, hasColors },
    (text) => text.replace("hidden", "***"),
  );
}

Deno.test("rowBlocks() prints both values side by side, with marks below the difference", () => {
  const date = difference("won", "2018-02-26 19:58", "2018-02-26 20:58");
  assertEquals(linesOf(80, [date, difference("note", null, "NULL")]), [
    "deal: 1 row differs",
    '  changed: id "7", secret "***"',
    '    won  source "2018-02-26 19:58"  target "2018-02-26 20:58"',
    "                            ^^                         ^^",
    '    note  source NULL  target "NULL"',
    "                 ^^^^         ^^^^^^",
  ]);
  assertStringIncludes(linesOf(80, [date], true).join(), "\x1b[31m^^\x1b[0m");
});

Deno.test("rowBlocks() prints the values below each other in a narrow terminal, around the difference", () => {
  const date = difference("won", "2018-02-26 19:58:54", "2018-02-26 20:58:54");
  assertEquals(linesOf(38, [date]).slice(2), [
    "    won",
    '      source "2018-02-26 19:58:54"',
    '      target "2018-02-26 20:58:54"',
    "                         ^^",
  ]);
  const lines = linesOf(24, [date]).slice(2);
  assertEquals(lines, [
    "    won",
    "      source …6 19:58:5…",
    "      target …6 20:58:5…",
    "                ^^",
  ]);
  assert(lines.every((line) => [...line].length <= 24));
  const long = difference("long", "x".repeat(60) + "1", "x".repeat(60) + "2", {
    position: 500_060,
    source_bytes: 900_000,
    target_bytes: 900_000,
  });
  assertEquals(linesOf(50, [long]).slice(2), [
    "    long (first difference at byte 500,060)",
    `      source …${"x".repeat(34)}1…`,
    `      target …${"x".repeat(34)}2…`,
    `             ${" ".repeat(35)}^`,
  ]);
});

Deno.test("rowBlocks() shows differences that look alike, and prints no control character", () => {
  const lines = linesOf(Infinity, [
    difference("nbsp", "a b", "a\u00a0b"),
    difference("accent", "e\u0301t", "\u00e9t"),
    difference("bidi\u202e", "\x1b[31m\n", "x"),
    difference("hex", "0100", "0101", {
      format: "hex",
      position: 1,
      source_bytes: 2,
      target_bytes: 2,
    }),
  ]).filter((line) => !/^[ ^]+$/.test(line)).slice(2);
  assertEquals(lines, [
    String.raw`    nbsp  source "a b"  target "a\u{a0}b"`,
    String.raw`    accent  source "e\u{301}t"  target "\u{e9}t"`,
    String.raw`    bidi\u{202e}  source "\u001b[31m\n"  target "x"`,
    `    hex (equal text, other bytes)  source "0100"  target "0101"`,
  ]);
});
