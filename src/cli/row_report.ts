/** The report of the rows that differ: their names, and both values of each column that differs. */
import type { DifferingRow, DifferingRows } from "../diff/differing_rows.ts";
import type { ColumnDifference } from "../diff/value_differences.ts";
import type { Mask } from "../config/secrets.ts";
import {
  formatCount,
  formatDifference,
  formatQuantity,
  formatValue,
  printable,
} from "../format.ts";
import type { Block, Part, Terminal } from "./terminal_table.ts";

/** Maximum number of columns of a row, and of characters of a value in its name, on a terminal. */
const MAX_COLUMNS = 20;
const MAX_NAME = 80;

/** Returns the parts of the report of one table. */
export function rowBlocks(table: string, found: DifferingRows): Part[] {
  const { rows, total, is_key_ambiguous } = found;
  if (rows.length === 0) return [];
  const shown = formatCount(rows.length);
  const count = total === null
    ? `at least ${shown} rows differ`
    : total > rows.length
    ? `${shown} of ${formatCount(total)} rows that differ`
    : total === 1
    ? "1 row differs"
    : `${shown} rows differ`;
  return [
    `${table}: ${count}`,
    ...(is_key_ambiguous
      ? ["  The key is not unique, so all columns name a row."]
      : []),
    ...rows.map(blockOf),
  ];
}

function blockOf(row: DifferingRow): Block {
  return {
    lines(terminal, mask) {
      const isWide = terminal.width === Infinity;
      const names = Object.entries(row.row).map(([column, text]) => {
        const isShortened = row.shortened?.includes(column);
        const whole = formatValue(text && mask(text), isShortened);
        return `${printable(mask(column))} ${
          isWide ? whole : cut(whole, 0, MAX_NAME)
        }`;
      });
      const columns = row.columns ?? [];
      const limit = isWide ? Infinity : MAX_COLUMNS;
      const more = (all: readonly unknown[]) =>
        all.length > limit
          ? [`and ${formatQuantity(all.length - limit, "more column")}`]
          : [];
      return [
        `  ${placeOf(row)}: ${
          [...names.slice(0, limit), ...more(names)].join(", ")
        }`,
        ...columns.slice(0, limit).flatMap((column) =>
          columnLines(column, terminal, mask)
        ),
        ...more(columns).map((text) => `    ${text}`),
      ];
    },
  };
}

/** Returns on which side the row is. */
function placeOf({ source, target, columns }: DifferingRow): string {
  if (columns) return "changed";
  const times = (count: number) => count === 1 ? "once" : `${count} times`;
  if (target === 0) {
    return `only in the source${source > 1 ? `, ${times(source)}` : ""}`;
  }
  if (source === 0) {
    return `only in the target${target > 1 ? `, ${times(target)}` : ""}`;
  }
  return `${times(source)} in the source, ${times(target)} in the target`;
}

/** Returns both values on one line where it is wide enough, and below each other otherwise. */
function columnLines(
  difference: ColumnDifference,
  { width, hasColors }: Terminal,
  mask: Mask,
): string[] {
  const { column, format, position } = difference;
  const parts = formatDifference(difference, mask);
  const values = parts.map((part) => part.join(""));
  const marks = parts.map(([before, differing]) =>
    " ".repeat(lengthOf(before)) + "^".repeat(Math.max(1, lengthOf(differing)))
  );
  const notes = [
    ...(format === "hex" ? ["equal text, other bytes"] : []),
    ...(values[0]!.startsWith("…")
      ? [`first difference at byte ${formatCount(position)}`]
      : []),
  ];
  const label = `    ${printable(mask(column))}${
    notes.length > 0 ? ` (${notes.join(", ")})` : ""
  }`;
  const paint = (line: string) =>
    hasColors ? line.replace(/\^+/g, "\x1b[31m$&\x1b[0m") : line;
  const start = `${label}  source `;
  const first = `${start}${values[0]}  target `;
  if (lengthOf(first + values[1]) <= width) {
    const mark = " ".repeat(lengthOf(start)) + marks[0];
    return [
      first + values[1],
      paint(mark.padEnd(lengthOf(first)) + marks[1]),
    ];
  }
  const room = Math.max(MIN_ROOM, width - "      source ".length);
  const marked = lengthOf(parts[0][0]);
  const longest = Math.max(...values.map(lengthOf));
  const from = Math.max(
    0,
    Math.min(marked - Math.floor(room / 3), longest - room),
  );
  const [longerMark] = marks.toSorted((a, b) => b.length - a.length);
  return [
    label,
    `      source ${cut(values[0]!, from, room)}`,
    `      target ${cut(values[1]!, from, room)}`,
    paint(`             ${longerMark!.slice(from, from + room)}`),
  ];
}

/** Minimum number of characters of a value. A narrower terminal breaks the line. */
const MIN_ROOM = 8;

/** Returns the part of a text from a letter on, in this width, with an ellipsis at each cut. */
function cut(text: string, from: number, width: number): string {
  const letters = [...text];
  const part = letters.slice(from, from + width);
  if (from > 0 && part.length > 0) part[0] = "…";
  if (letters.length > from + width) part[part.length - 1] = "…";
  return part.join("");
}

function lengthOf(text: string): number {
  return [...text].length;
}
