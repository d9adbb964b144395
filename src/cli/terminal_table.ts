/** The layout of text: lines, and tables at most as wide as the terminal. */
import type { Mask } from "../config/secrets.ts";
import { printable, printableLines } from "../format.ts";

/** The device that shows a text. */
export interface Terminal {
  /** Number of characters in a line. Infinite for files and pipes. */
  readonly width: number;
  readonly hasColors: boolean;
}

/** The meaning of a cell. Its color or its mark shows it. */
type Tone = "good" | "bad" | "warn" | "go" | "soft";

export interface Cell {
  readonly text: string;
  readonly tone: Tone;
  /** Whether the symbol of the tone precedes the text, and has its color. */
  readonly isMarked?: boolean;
}

/** A column. At most one column of a table is flexible. */
interface TableColumn {
  /** The heading. A table whose columns have none is a list. */
  readonly name?: string;
  readonly isNumber?: boolean;
  /** Takes the remaining width, and cuts longer texts. */
  readonly isFlexible?: boolean;
  /** Minimum width. It aligns rows that are printed one by one. */
  readonly width?: number;
}

/** A table. The lines of a list are never cut. */
export interface TextTable {
  readonly columns: readonly TableColumn[];
  readonly rows: readonly (readonly (string | Cell)[])[];
  /** Whether the rows follow earlier ones, so that the headings are not repeated. */
  readonly isContinued?: boolean;
}

/** A part of a text that depends on the terminal. Its texts are masked and printable. */
export interface Block {
  readonly lines: (terminal: Terminal, mask: Mask) => readonly string[];
}

/** A part of a text: a table, a block or a line. */
export type Part = TextTable | Block | Cell | string;

/** Returns the lines of a text, masked and printable. */
export function textLines(
  parts: readonly Part[],
  terminal: Terminal,
  mask: Mask,
): string[] {
  // Mask before a column is cut: a part of a secret is not recognized.
  const safe = (cell: string | Cell): string | Cell =>
    typeof cell === "string"
      ? printable(mask(cell))
      : { ...cell, text: printable(mask(cell.text)) };
  return parts.flatMap((part) => {
    // A line keeps its indentation.
    if (typeof part === "string") {
      return printableLines(mask(part).replace(/[\n\r\t]+/g, " "));
    }
    if ("lines" in part) return part.lines(terminal, mask);
    if ("text" in part) return cellText(safe(part), terminal.hasColors);
    const rows = part.rows.map((row) => row.map(safe));
    return tableLines({ ...part, rows }, terminal);
  });
}

/** Minimum width of the flexible column. Other columns are omitted to reach it. */
const MIN_FLEXIBLE = 16;

const GAP = "  ";

/** Returns the lines of a table: its headings, and a line for each row. */
export function tableLines(
  { columns, rows, isContinued }: TextTable,
  { width, hasColors }: Terminal,
): string[] {
  const isList = columns.every(({ name }) => name === undefined);
  const heading = columns.map(({ name }) => soft(name ?? ""));
  const lines = isList ? rows : [heading, ...rows];
  const limit = isList ? Infinity : width;
  const widths = columns.map((column, i) =>
    Math.max(column.width ?? 0, ...lines.map((row) => lengthOf(row[i] ?? "")))
  );
  const flexible = columns.findIndex((column) => column.isFlexible);
  const shown = columns.map((_, i) => i);
  const room = () =>
    limit - GAP.length * (shown.length - 1) -
    shown.reduce((sum, i) => sum + (i === flexible ? 0 : widths[i]!), 0);
  const minimum = flexible < 0 ? 0 : Math.min(MIN_FLEXIBLE, widths[flexible]!);
  // Omit the last columns first: columns are ordered by importance.
  while (room() < minimum && shown.length > 2) {
    shown.splice(shown.findLastIndex((i) => i !== flexible), 1);
  }
  if (flexible >= 0) {
    widths[flexible] = Math.min(widths[flexible]!, Math.max(1, room()));
  }
  return lines.slice(isContinued && !isList ? 1 : 0).map((row) => {
    const line = shown.map((i) =>
      padded(row[i] ?? "", widths[i]!, columns[i]!, hasColors)
    ).join(GAP).trimEnd();
    // A terminal of a few columns cuts even the first columns.
    return hasColors ? line : cut(line, limit, "");
  });
}

const MARKS = { good: "✓", bad: "✗", warn: "!", go: "▸", soft: "·" } as const;
const COLORS = { good: 32, bad: 31, warn: 33, go: 36, soft: 2 } as const;

/** Returns the text of a cell with its mark, and with its color where there are colors. */
function cellText(cell: string | Cell, hasColors: boolean): string {
  if (typeof cell === "string") return cell;
  const { text, tone, isMarked } = cell;
  const paint = (toned: string) =>
    hasColors ? `\x1b[${COLORS[tone]}m${toned}\x1b[0m` : toned;
  return isMarked ? `${paint(MARKS[tone])} ${text}` : paint(text);
}

const soft = (text: string): Cell => ({ text, tone: "soft" });

function padded(
  cell: string | Cell,
  width: number,
  { isNumber }: TableColumn,
  hasColors: boolean,
): string {
  const shown = typeof cell === "string"
    ? cut(cell, width)
    : { ...cell, text: cut(cell.text, width - (cell.isMarked ? 2 : 0)) };
  const space = " ".repeat(Math.max(0, width - lengthOf(shown)));
  const text = cellText(shown, hasColors);
  return isNumber ? space + text : text + space;
}

function cut(text: string, width: number, end = "…"): string {
  const letters = [...text];
  return letters.length > width
    ? letters.slice(0, width - end.length).join("") + end
    : text;
}

function lengthOf(cell: string | Cell): number {
  return [...cellText(cell, false)].length;
}
