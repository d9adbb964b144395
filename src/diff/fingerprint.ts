/**
 * Fingerprints: the row count and the sum of the row hashes of a table or of a
 * bucket. Two tables with equal fingerprints hold the same rows, with the same
 * duplicates, in any order.
 *
 * This module decides from two fingerprints which rows to copy. It uses no
 * database. The SQL is in `queries.ts`.
 *
 * @module
 */

/** The row count and the sum of the row hashes of a table or of one bucket. */
export interface Fingerprint {
  readonly count: number;
  /** Sum of the signed 64-bit row hashes, in decimal. */
  readonly checksum: string;
}

/** Fingerprints by bucket number. A bucket without rows is absent. */
export type Buckets = ReadonlyMap<number, Fingerprint>;

/** The assignment of rows to buckets. */
export interface Bucketing {
  /**
   * A filter by the hash of the first column is cheap, but a frequent value fills
   * one bucket. The hash of the whole row spreads any table.
   */
  readonly by: "first column" | "row";
  /** Number of buckets, a power of two. */
  readonly buckets: number;
}

/** Parses the fingerprints by bucket from the text of {@linkcode bucketsSql}. */
export function parseBuckets(text: string): Buckets {
  const buckets = new Map<number, Fingerprint>();
  if (text === "") return buckets;
  for (const line of text.split(",")) {
    const [bucket, count, checksum] = line.split(" ") as [
      string,
      string,
      string,
    ];
    buckets.set(Number(bucket), { count: Number(count), checksum });
  }
  return buckets;
}

/** Returns the fingerprint of the whole table from those of its buckets. */
export function wholeOf(buckets: Buckets): Fingerprint {
  let count = 0;
  let checksum = 0n;
  for (const bucket of buckets.values()) {
    count += bucket.count;
    checksum += BigInt(bucket.checksum);
  }
  return { count, checksum: checksum.toString() };
}

/** Rows to delete and to copy: their hashes occur a different number of times in source and target. */
export interface RowDifference {
  readonly hashes: readonly string[];
  /** The ctids of these rows on either side. */
  readonly source: readonly string[];
  readonly target: readonly string[];
  /** Fingerprints of these rows in the source and in the target. */
  readonly copied: Fingerprint;
  readonly deleted: Fingerprint;
}

/** Returns the difference between two sides from their texts of {@linkcode rowsSql}, in one pass. */
export function diffRows(source: string, target: string): RowDifference {
  const difference = {
    hashes: [] as string[],
    source: [] as string[],
    target: [] as string[],
  };
  let copied = 0n;
  let deleted = 0n;
  const ofSource = rowsByHash(source);
  const ofTarget = rowsByHash(target);
  let here = ofSource.next().value;
  let there = ofTarget.next().value;
  while (here || there) {
    const hash = !there || here && here.hash < there.hash
      ? here!.hash
      : there.hash;
    const ours = here?.hash === hash ? here.ids : [];
    const theirs = there?.hash === hash ? there.ids : [];
    if (ours.length !== theirs.length) {
      difference.hashes.push(hash);
      // No spread: the number of arguments of a call is limited.
      for (const id of ours) difference.source.push(id);
      for (const id of theirs) difference.target.push(id);
      copied += BigInt(hash) * BigInt(ours.length);
      deleted += BigInt(hash) * BigInt(theirs.length);
    }
    if (here?.hash === hash) here = ofSource.next().value;
    if (there?.hash === hash) there = ofTarget.next().value;
  }
  const { source: ours, target: theirs } = difference;
  return {
    ...difference,
    copied: { count: ours.length, checksum: copied.toString() },
    deleted: { count: theirs.length, checksum: deleted.toString() },
  };
}

interface RowsOfHash {
  readonly hash: string;
  readonly ids: string[];
}

/** Yields the rows in the order of the text, grouped by hash. */
function* rowsByHash(text: string): Generator<RowsOfHash, undefined> {
  let rows: RowsOfHash | undefined;
  for (let start = 0; start < text.length;) {
    const space = text.indexOf(" ", start);
    const semicolon = text.indexOf(";", space);
    const end = semicolon < 0 ? text.length : semicolon;
    const hash = text.slice(start, space);
    const id = text.slice(space + 1, end);
    if (rows?.hash === hash) rows.ids.push(id);
    else {
      if (rows) yield rows;
      rows = { hash, ids: [id] };
    }
    start = end + 1;
  }
  if (rows) yield rows;
  return undefined;
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

/** The maximum number of buckets. More cost more than they save. */
const MAX_BUCKETS = 65_536;

/**
 * Returns the number of buckets for a table of this size, about 400 rows each.
 * More buckets cost more to compare than they save.
 */
export function bucketCount(rows: number): number {
  let buckets = 256;
  while (buckets < rows / 400 && buckets < MAX_BUCKETS) buckets *= 2;
  return buckets;
}

/** The mode of a load of one table. */
export type PlanMode = "unchanged" | "delta" | "full";

/** The differing buckets. */
export interface BucketDifference extends Bucketing {
  readonly changed: readonly number[];
  /** Numbers of rows in these buckets, in the source and in the target. */
  readonly sourceRows: number;
  readonly targetRows: number;
}

/** The maximum number of rows of one side that are compared one by one, in memory. */
export const MAX_DIFFED_ROWS = 250_000;

/**
 * Maximum number of rows written since the last load that are compared. For more
 * rows, a full copy is faster.
 */
export const MAX_RECENT_ROWS = 100_000;

/** Returns whether to compare the single rows of the differing buckets. */
export function isWorthRefining(
  { sourceRows, targetRows }: BucketDifference,
): boolean {
  return Math.max(sourceRows, targetRows) <= MAX_DIFFED_ROWS;
}

/** Returns the buckets whose fingerprints differ. */
export function differingBuckets(
  source: Buckets,
  target: Buckets,
  bucketing: Bucketing,
): BucketDifference {
  const changed: number[] = [];
  let sourceRows = 0;
  let targetRows = 0;
  for (const bucket of new Set([...source.keys(), ...target.keys()])) {
    const inSource = source.get(bucket);
    const inTarget = target.get(bucket);
    if (equal(inSource, inTarget)) continue;
    changed.push(bucket);
    sourceRows += inSource?.count ?? 0;
    targetRows += inTarget?.count ?? 0;
  }
  changed.sort((a, b) => a - b);
  return { ...bucketing, changed, sourceRows, targetRows };
}

/** From this share of the rows, a delta costs more than a full copy. */
const MAX_DELTA_SHARE = 0.5;

/** Returns the mode for a number of rows that may differ and the number of source rows. */
export function modeFor(
  { sourceRows, targetRows }: Pick<
    BucketDifference,
    "sourceRows" | "targetRows"
  >,
  rows: number,
): PlanMode {
  const differing = sourceRows + targetRows;
  if (differing === 0) return "unchanged";
  return differing >= 2 * MAX_DELTA_SHARE * rows ? "full" : "delta";
}

/** Factor by which differing buckets may exceed the average number of rows. */
const MAX_SKEW = 4;

/** Returns whether the differing buckets hold far more rows than average, so that they do not narrow the search. */
export function isSkewed(
  { buckets, changed, sourceRows, targetRows }: BucketDifference,
  rows: number,
): boolean {
  const share = changed.length / Math.min(buckets, Math.max(rows, 1));
  return Math.max(sourceRows, targetRows) > MAX_SKEW * share * rows;
}

/** Returns whether both fingerprints describe the same rows. */
export function equal(
  a: Fingerprint | undefined,
  b: Fingerprint | undefined,
): boolean {
  return a?.count === b?.count && a?.checksum === b?.checksum;
}
