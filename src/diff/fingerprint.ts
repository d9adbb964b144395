/**
 * Fingerprints: the row count and the sum of the row hashes of a table. Two tables
 * with equal fingerprints hold the same rows, with the same duplicates, in any order.
 *
 * This module uses no database. The SQL is in `queries.ts`.
 *
 * @module
 */

/** The row count and the sum of the row hashes. */
export interface Fingerprint {
  readonly count: number;
  /** Sum of the signed 64-bit row hashes, in decimal. */
  readonly checksum: string;
}

/**
 * Returns the fingerprint of a table after a delta. It follows from the fingerprints
 * of the old, the deleted and the written rows. Returns `undefined` when they do not
 * determine it. The rows that were not written are among the old rows that were not
 * deleted. If there are as many, they are the same rows.
 */
export function afterDelta(
  before: Fingerprint,
  deleted: Fingerprint,
  written: Fingerprint,
  total: number,
): Fingerprint | undefined {
  if (total - written.count !== before.count - deleted.count) return undefined;
  const checksum = BigInt(before.checksum) - BigInt(deleted.checksum) +
    BigInt(written.checksum);
  return { count: total, checksum: checksum.toString() };
}

/** The mode of a load of one table. */
export type PlanMode = "unchanged" | "delta" | "full";

/** From this share of the rows, a delta costs more than a full copy. */
const MAX_DELTA_SHARE = 0.5;

/** Returns the mode for a number of rows that differ, on both sides together, and the number of source rows. */
export function modeFor(differing: number, sourceRows: number): PlanMode {
  if (differing === 0) return "unchanged";
  return differing >= 2 * MAX_DELTA_SHARE * sourceRows ? "full" : "delta";
}

/** Returns whether both fingerprints describe the same rows. */
export function equal(
  a: Fingerprint | undefined,
  b: Fingerprint | undefined,
): boolean {
  return a?.count === b?.count && a?.checksum === b?.checksum;
}
