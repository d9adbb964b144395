/**
 * Describes what a run did, for people.
 *
 * @module
 */
import { formatCount } from "../format.ts";
import type { TableEntry } from "./event.ts";

/** Returns what a load did to a table: `failed`, `unchanged`, or the mode with its counts. */
export function describeChange(entry: TableEntry): string {
  if (entry.status === "failure") return "failed";
  if (entry.mode === "unchanged") return "unchanged";
  const { mode, rows_inserted: inserted, rows_deleted: deleted } = entry;
  return [
    mode,
    (inserted > 0 || deleted === 0) && `+${formatCount(inserted)}`,
    deleted > 0 && `−${formatCount(deleted)}`,
  ].filter(Boolean).join(" ");
}

/** Returns what a run did to each table that it changed or failed on. */
export function describeOutcome(entries: readonly TableEntry[]): string {
  const changed = entries.filter((entry) =>
    entry.status === "failure" || entry.mode !== "unchanged"
  );
  return changed.length === 0
    ? "unchanged"
    : changed.map((entry) => `${entry.table} ${describeChange(entry)}`)
      .join(", ");
}

/** Returns what a load verified: `count` or, with a checksum of every table, `count and content`. */
export function describeVerification(entries: readonly TableEntry[]): string {
  return entries.every((entry) =>
      entry.status === "success" && entry.checksum !== null
    )
    ? "count and content"
    : "count";
}
