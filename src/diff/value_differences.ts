/**
 * The differences between the values of two rows with one key. Long values are
 * shortened around the first difference, which may be anywhere in them.
 *
 * @module
 */
import { equalLetters, type ValueDifference } from "../format.ts";
import type { Column } from "../tables/declaration.ts";
import type { Sides } from "./find_difference.ts";
import { bytesOf, hexOf, textOf } from "./row_hash.ts";

/** Number of characters of each value that are read at first. */
export const READ_CHARACTERS = 400;

/** Maximum number of characters of a value in a report. */
export const MAX_CHARACTERS = 200;

/** Number of characters before the first difference in a shortened value. */
const CONTEXT_CHARACTERS = 60;

/** The values of a row: beginnings of their texts, numbers of bytes, and hashes. */
export type Values = readonly [
  texts: readonly (string | null)[],
  bytes: readonly (number | null)[],
  hashes: readonly string[],
];

/** Two rows with one key. */
interface RowPair {
  /** Hash of the key. */
  readonly name: string;
  readonly source: Values;
  readonly target: Values;
}

/** The two values of one column. */
export interface ColumnDifference extends ValueDifference {
  readonly column: string;
}

/** Returns the differing columns of each pair of rows, by the name of the pair. */
export async function compareValues(
  sides: Sides,
  pairs: readonly RowPair[],
  nameHash: string,
  rowsOf: (side: "source" | "target", names: readonly string[]) => string,
): Promise<ReadonlyMap<string, readonly ColumnDifference[]>> {
  const { columns } = sides.table;
  const spots = pairs.flatMap(({ name, source, target }) =>
    columns.flatMap((column, i): Spot[] => {
      if (source[2][i] === target[2][i]) return [];
      const bytes = [source[1][i]!, target[1][i]!] as const;
      const a = beginningOf(source[0][i]!, bytes[0]);
      const b = beginningOf(target[0][i]!, bytes[1]);
      const difference = showDifference(a, b)
        ? differenceOf(column, a.text, b.text, "text", 0, bytes)
        : undefined;
      return [{ name, column, difference }];
    })
  );
  for (const format of ["text", "hex"] as const) {
    const open = spots.filter(({ difference }) => !difference);
    for (let i = 0; i < open.length; i += BATCH) {
      await locate(sides, open.slice(i, i + BATCH), format, nameHash, rowsOf);
    }
  }
  return new Map(
    [...Map.groupBy(spots, ({ name }) => name)].map(([name, found]) => [
      name,
      found.flatMap(({ difference = [] }) => difference),
    ]),
  );
}

/** The beginning of a value. */
interface Beginning {
  readonly text: string | null;
  readonly isWhole: boolean;
}

function beginningOf(text: string | null, bytes: number | null): Beginning {
  if (text === null || new TextEncoder().encode(text).length === bytes) {
    return { text, isWhole: true };
  }
  // A SQL_ASCII database also cuts inside of a character.
  return { text: text.replace(/\ufffd+$/, ""), isWhole: false };
}

/** Returns whether the beginnings contain the first difference of their values. */
function showDifference(a: Beginning, b: Beginning): boolean {
  if (a.text === null || b.text === null) return true;
  const [shorter, longer] = a.text.length <= b.text.length ? [a, b] : [b, a];
  return !longer.text!.startsWith(shorter.text!) ||
    shorter.isWhole && shorter.text !== longer.text;
}

/** A column of a row whose values differ. */
interface Spot {
  readonly name: string;
  readonly column: Column;
  difference: ColumnDifference | undefined;
}

/** Returns two values around their first difference. They begin at byte `start` of the whole ones. */
function differenceOf(
  { name: column }: Column,
  source: string | null,
  target: string | null,
  format: ColumnDifference["format"],
  start: number,
  [source_bytes, target_bytes]: readonly [number | null, number | null],
): ColumnDifference {
  const [a, b] = [[...source ?? ""], [...target ?? ""]];
  let first = equalLetters(a, b);
  // Two digits are a byte.
  if (format === "hex") first -= first % 2;
  const rest = Math.max(a.length, b.length) - MAX_CHARACTERS;
  const from = Math.max(0, Math.min(first - CONTEXT_CHARACTERS, rest));
  const cut = (letters: readonly string[]) =>
    letters.slice(from, from + MAX_CHARACTERS).join("");
  const before = new TextEncoder().encode(a.slice(0, first).join("")).length;
  return {
    column,
    source: source === null ? null : cut(a),
    target: target === null ? null : cut(b),
    format,
    position: start + (format === "hex" ? before / 2 : before),
    source_bytes,
    target_bytes,
  };
}

/** Number of values that are searched at once. */
const BATCH = 500;

/** Number of pieces of a value whose hashes are compared in a round. */
const PIECES = 256;

/** Number of bytes that are read before and after the last piece. */
const MARGIN = 256;

/**
 * Searches the first difference of long values. Compares hashes of their pieces, and
 * then of pieces of the first piece that differs. Reads only a few bytes of a value.
 */
async function locate(
  sides: Sides,
  spots: readonly Spot[],
  format: ColumnDifference["format"],
  nameHash: string,
  rowsOf: (side: "source" | "target", names: readonly string[]) => string,
): Promise<void> {
  const columns = [...new Set(spots.map(({ column }) => column))];
  const names = [...new Set(spots.map(({ name }) => name))];
  const valueOf = format === "text" ? textOf : hexOf;
  const windows = spots.map(() => ({ start: 0, size: 0 }));
  /** Returns a text about the window of each spot, from both sides. */
  const ask = async (sql: string) =>
    await Promise.all((["source", "target"] as const).map(async (side) => {
      const rows = await sides[side].session.query<
        { nth: number; found: string }
      >(
        `select nth, ${sql} as found
         from (select ${nameHash} as name, ${
          columns.map((column, i) => `${valueOf(column)} as v${i}`)
        } from ${rowsOf(side, names)} offset 0) named
           join (values ${
          spots.map(({ name, column }, i) =>
            `(${i}, '${name}'::int8, ${columns.indexOf(column)}, ${
              windows[i]!.start
            }, ${windows[i]!.size})`
          )
        }) spots (nth, hash, col, start, size) on hash = name
           cross join lateral (select ${
          bytesOf(
            `(case col ${
              columns.map((_, i) => `when ${i} then v${i}`).join(" ")
            } end)`,
          )
        } as bytes offset 0) value`,
      );
      return new Map(rows.map(({ nth, found }) => [nth, found]));
    }));
  const lengths = await ask("pg_catalog.octet_length(bytes)::text");
  const lengthOf = (i: number) =>
    lengths.map((side) => Number(side.get(i))) as [number, number];
  for (const [i, window] of windows.entries()) {
    window.size = Math.ceil(Math.max(...lengthOf(i)) / PIECES);
  }
  while (windows.some(({ size }) => size > 1)) {
    const [source, target] = await ask(
      `(select pg_catalog.string_agg(pg_catalog.substr(pg_catalog.encode(pg_catalog.sha256(
          pg_catalog.substr(bytes, start + piece * size + 1, size)), 'hex'), 1, 16), ' ' order by piece)
        from pg_catalog.generate_series(0, ${PIECES - 1}) piece)`,
    );
    for (const [i, window] of windows.entries()) {
      const theirs = target!.get(i)!.split(" ");
      const piece = source!.get(i)!.split(" ")
        .findIndex((hash, n) => hash !== theirs[n]);
      window.start += Math.max(piece, 0) * window.size;
      window.size = Math.ceil(window.size / PIECES);
    }
  }
  for (const window of windows) {
    // A byte has two hexadecimal digits.
    window.start = Math.max(0, window.start - window.start % 2 - MARGIN);
    window.size = 2 * MARGIN;
  }
  const [source, target] = await ask(
    "pg_catalog.encode(pg_catalog.substr(bytes, start + 1, size), 'hex')",
  );
  const unit = format === "hex" ? 2 : 1;
  for (const [i, spot] of spots.entries()) {
    const [a, b] = [source!.get(i)!, target!.get(i)!];
    if (a === b) continue;
    const [skipped, ours, theirs] = decode(a, b);
    // Invalid UTF-8 of a SQL_ASCII database looks the same.
    if (ours === theirs) continue;
    const [sourceLength, targetLength] = lengthOf(i);
    spot.difference = differenceOf(
      spot.column,
      ours,
      theirs,
      format,
      (windows[i]!.start + skipped) / unit,
      [sourceLength / unit, targetLength / unit],
    );
  }
}

/** Returns the texts of two windows, and the number of bytes of a divided character before them. */
function decode(source: string, target: string): [number, string, string] {
  const bytes = [source, target].map((hex) => Uint8Array.fromHex(hex));
  const isContinuation = (byte: number) => (byte & 0xc0) === 0x80;
  const first = bytes[0]!.findIndex((byte) => !isContinuation(byte));
  const skipped = Math.min(Math.max(first, 0), 3);
  const [a, b] = bytes.map((part) =>
    new TextDecoder().decode(part.subarray(skipped)).replace(/\ufffd+$/, "")
  );
  return [skipped, a!, b!];
}
