/** Tables for a terminal, at most as wide as the terminal. */
import { printable } from "../format.ts";

/** A terminal. */
export interface Terminal {
  /** Number of characters in a line. */
  readonly width: number;
  readonly hasColors: boolean;
}

/** The meaning of a cell. Its text or shape shows it, and its color where there are colors. */
export type Tone = "good" | "bad" | "warn" | "go" | "soft";

/** A cell with a tone. */
interface Cell {
  readonly text: string;
  readonly tone?: Tone | undefined;
}

/** A column. At most one column of a table is flexible. */
interface TableColumn {
  readonly name: string;
  readonly isNumber?: boolean;
  /** Takes the remaining width, and cuts longer texts. */
  readonly isFlexible?: boolean;
  /** Minimum width, for rows that are printed one by one. */
  readonly width?: number;
}

/** Minimum width of the flexible column. Other columns are omitted to reach it. */
const MIN_FLEXIBLE = 16;

const GAP = "  ";

/** Returns the lines of a table: its head, and a line for each row. */
export function tableLines(
  columns: readonly TableColumn[],
  rows: readonly (readonly (string | Cell)[])[],
  terminal: Terminal,
): string[] {
  const cells = rows.map((row) => row.map(cellOf));
  const widths = columns.map((column, i) =>
    Math.max(
      column.width ?? 0,
      column.name.length,
      ...cells.map((row) => lengthOf(row[i]!.text)),
    )
  );
  const flexible = columns.findIndex((column) => column.isFlexible);
  const shown = columns.map((_, i) => i);
  const room = () =>
    terminal.width - GAP.length * (shown.length - 1) -
    shown.reduce((sum, i) => sum + (i === flexible ? 0 : widths[i]!), 0);
  const least = flexible < 0 ? 0 : Math.min(MIN_FLEXIBLE, widths[flexible]!);
  // Omit the last columns first: columns are ordered by importance.
  while (room() < least && shown.length > 2) {
    shown.splice(shown.findLastIndex((i) => i !== flexible), 1);
  }
  if (flexible >= 0) {
    widths[flexible] = Math.min(widths[flexible]!, Math.max(1, room()));
  }
  const line = (row: readonly Cell[]) =>
    shown.map((i) =>
      painted(padded(row[i]!.text, widths[i]!, columns[i]!), row[i]!, terminal)
    ).join(GAP).trimEnd();
  return [
    line(columns.map(({ name }) => ({ text: name, tone: "soft" }))),
    ...cells.map(line),
  ].map((text) => fitted(text, terminal));
}

const MARKS = { good: "✓", bad: "✗", warn: "!", go: "▸", soft: "·" } as const;

/** Returns a symbol for the tone of a line. */
export function mark(terminal: Terminal, tone: Tone): string {
  return painted(MARKS[tone], { text: "", tone }, terminal);
}

const COLORS = { good: 32, bad: 31, warn: 33, go: 36, soft: 2 } as const;

function painted(text: string, { tone }: Cell, terminal: Terminal): string {
  if (!tone || !terminal.hasColors) return text;
  return `\x1b[${COLORS[tone]}m${text}\x1b[0m`;
}

function padded(
  text: string,
  width: number,
  { isNumber }: TableColumn,
): string {
  const letters = [...text];
  const cut = letters.length > width
    ? `${letters.slice(0, width - 1).join("")}…`
    : text;
  const space = " ".repeat(Math.max(0, width - lengthOf(cut)));
  return isNumber ? space + cut : cut + space;
}

/** Cuts a line without colors at the edge. A line with colors is already fitted. */
function fitted(line: string, { width, hasColors }: Terminal): string {
  return hasColors || lengthOf(line) <= width
    ? line
    : [...line].slice(0, width).join("");
}

function cellOf(cell: string | Cell): Cell {
  const { text, ...rest } = typeof cell === "string" ? { text: cell } : cell;
  return { text: printable(text), ...rest };
}

function lengthOf(text: string): number {
  return [...text].length;
}

/** The colors that this module prints. */
// deno-lint-ignore no-control-regex -- the escape is what begins a color
const PAINT = /(\x1b\[(?:0|2|3[1-6])m)/;

/** Returns the line with everything made printable, except the colors of this module. */
export function printableLine(line: string): string {
  return line.split(PAINT)
    // Every second part is a color. Keep spaces at the edges of the other parts.
    .map((part, i) =>
      i % 2 === 1 ? part : part.replace(/[^ ].*[^ ]|[^ ]/s, printableSpaced)
    ).join("");
}

/** Returns printable text. Keeps spaces, which align columns. */
function printableSpaced(text: string): string {
  return text.split(/( +)/).map((part, i) =>
    i % 2 === 1 ? part : printable(part)
  )
    .join("");
}
