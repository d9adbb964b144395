/**
 * Describes the results of a run.
 *
 * @module
 */
import { formatCount, MAX_NAMES } from "../format.ts";
import type { TableEntry } from "./event.ts";

/** Returns the result of a table: `failed`, `unchanged`, or the mode with its counts. */
export function describeChange(entry: TableEntry): string {
  if (entry.status === "failure") return "failed";
  if (entry.mode === "unchanged") return "unchanged";
  return `${entry.mode} ${formatRows(entry.rows_inserted, entry.rows_deleted)}`;
}

/** Returns the numbers of inserted and deleted rows: `+120 −4`. */
function formatRows(inserted: number, deleted: number): string {
  return [
    (inserted > 0 || deleted === 0) && `+${formatCount(inserted)}`,
    deleted > 0 && `−${formatCount(deleted)}`,
  ].filter(Boolean).join(" ");
}

/** The results of a run: its numbers of tables, and of rows. */
export interface Tally {
  readonly unchanged: number;
  readonly changed: number;
  readonly failed: number;
  /** Loaded tables of which only the rows were counted. */
  readonly unverified: number;
  readonly inserted: number;
  readonly deleted: number;
}

/** Returns the tally of these entries. */
export function tallyOf(entries: readonly TableEntry[]): Tally {
  const loaded = entries.filter((entry) => entry.status === "success");
  const unchanged = loaded.filter(({ mode }) => mode === "unchanged").length;
  return {
    unchanged,
    changed: loaded.length - unchanged,
    failed: entries.length - loaded.length,
    unverified: loaded.filter(({ checksum }) => checksum === null).length,
    inserted: loaded.reduce((sum, entry) => sum + entry.rows_inserted, 0),
    deleted: loaded.reduce((sum, entry) => sum + entry.rows_deleted, 0),
  };
}

/** Returns a tally in words: `2 failed, 3 changed +120 −4, 495 unchanged`. */
export function describeTally(tally: Tally): string {
  const { unchanged, changed, failed, inserted, deleted } = tally;
  return [
    failed > 0 && `${formatCount(failed)} failed`,
    changed > 0 &&
    `${formatCount(changed)} changed ${formatRows(inserted, deleted)}`,
    unchanged > 0 && `${formatCount(unchanged)} unchanged`,
  ].filter(Boolean).join(", ");
}

/**
 * Returns the results of the tables that a run changed or failed on, or their numbers
 * if there are many.
 */
export function describeOutcome(entries: readonly TableEntry[]): string {
  const changed = entries.filter((entry) =>
    entry.status === "failure" || entry.mode !== "unchanged"
  );
  if (entries.length > MAX_NAMES) return describeTally(tallyOf(entries));
  return changed.length === 0
    ? "unchanged"
    : changed.map((entry) => `${entry.table} ${describeChange(entry)}`)
      .join(", ");
}

/** Returns what a load verified: `count` or, with a checksum of every table, `count and content`. */
export function describeVerification({ unverified, failed }: Tally): string {
  return unverified + failed > 0 ? "count" : "count and content";
}
