/**
 * Finds the differences between the two sides of a table. Compares whole tables, then
 * recent rows or buckets, then rows. Each step is one query on each side.
 *
 * @module
 */
import type { Session } from "../postgres/session.ts";
import type { Row } from "../postgres/sql.ts";
import {
  afterDelta,
  bucketCount,
  type BucketDifference,
  type Bucketing,
  type Buckets,
  differingBuckets,
  diffRows,
  equal,
  type Fingerprint,
  isSkewed,
  isWorthRefining,
  MAX_DIFFED_ROWS,
  MAX_RECENT_ROWS,
  modeFor,
  parseBuckets,
  type PlanMode,
  type RowDifference,
  wholeOf,
} from "./fingerprint.ts";
import {
  bucketsSql,
  differingRowsSql,
  inBucketsSql,
  rowsSql,
  wholeTableSql,
  withKeysSql,
  writtenSinceSql,
} from "./queries.ts";
import type { HashMethod } from "./row_hash.ts";
import type { Table } from "../tables/declaration.ts";

/** One side of a comparison: a session that sees the rows, and their table. */
export interface Side {
  readonly session: Session;
  /** Quoted, schema-qualified. */
  readonly relation: string;
  readonly hasStableCtid: boolean;
}

/** Both sides of a table, and the hash method of the comparison. */
export interface Sides {
  readonly table: Table;
  readonly source: Side;
  readonly target: Side;
  readonly method: HashMethod;
}

/** Hints from the last load. A wrong hint costs time and never a row. */
export interface ChangeHint {
  /** Number of rows at the last load. */
  readonly rows: number;
  /** Whether rows were deleted from the source since then. */
  readonly hasDeletions: boolean;
  /** The last load saw all of the source's transactions before this 64-bit id. */
  readonly since?: string | undefined;
}

/** The plan of a load. */
export type Plan =
  | { readonly mode: Exclude<PlanMode, "delta"> }
  | { readonly mode: "delta"; readonly selection: Selection };

/** The plan, and the fingerprints of both sides. */
interface Compared {
  readonly plan: Plan;
  readonly source: Fingerprint;
  readonly target: Fingerprint;
}

/** SQL conditions of the rows that a delta deletes from the target and copies from the source. */
export interface Selection {
  readonly source: string;
  readonly target: string;
  /** Number of rows to copy. */
  readonly rows: number;
}

/**
 * Compares by content, first whole tables. Then it searches the rows that were
 * written since the last load. Where these do not explain the difference, it
 * compares buckets. Deleted rows leave no trace in recent rows, so after deletions
 * it compares buckets at once.
 */
export async function compareContent(
  sides: Sides,
  expected: ChangeHint = { rows: 0, hasDeletions: false },
): Promise<Compared> {
  if (expected.hasDeletions) return await compareByBucket(sides, expected.rows);
  const [source, target] = await Promise.all([
    wholeFingerprint(sides.source, sides),
    wholeFingerprint(sides.target, sides),
  ]);
  const whole = { source, target };
  if (equal(source, target)) return { plan: { mode: "unchanged" }, ...whole };
  if (target.count === 0) return { plan: { mode: "full" }, ...whole };
  const plan = expected.since
    ? await planFromRecent(sides, expected.since, whole)
    : undefined;
  return plan ? { plan, ...whole } : await compareByBucket(sides, source.count);
}

/**
 * Returns the plan that replaces the target rows with the keys of recent source
 * rows. Returns `undefined` when that would not make the target equal to the source.
 */
async function planFromRecent(
  sides: Sides,
  since: string,
  whole: Omit<Compared, "plan">,
): Promise<Plan | undefined> {
  const { table: { columns }, source, target, method } = sides;
  const maxRows = MAX_RECENT_ROWS;
  const recent = await rowsWhere(
    source,
    sides,
    writtenSinceSql(since),
    maxRows,
  );
  if (!recent?.keys) return undefined;
  const held = await rowsWhere(
    target,
    sides,
    withKeysSql(columns, method, recent.keys),
    maxRows,
  );
  if (!held) return undefined;
  const difference = diffRows(recent.rows, held.rows);
  const { deleted, copied } = difference;
  const total = whole.target.count - deleted.count + copied.count;
  if (!equal(afterDelta(whole.target, deleted, copied, total), whole.source)) {
    return undefined;
  }
  const rows = { sourceRows: copied.count, targetRows: deleted.count };
  return modeFor(rows, whole.source.count) === "full"
    ? { mode: "full" }
    : { mode: "delta", selection: selectionOf(sides, difference) };
}

async function compareByBucket(sides: Sides, rows: number): Promise<Compared> {
  const buckets = bucketCount(rows);
  const byFirst = await compareBuckets(sides, { by: "first column", buckets });
  const { difference, source, target } =
    isSkewed(byFirst.difference, byFirst.source.count)
      ? await compareBuckets(sides, { by: "row", buckets })
      : byFirst;
  const mode = modeFor(difference, source.count);
  const plan: Plan = mode === "delta"
    ? { mode, selection: await selectInBuckets(sides, difference) }
    : { mode };
  return { plan, source, target };
}

async function compareBuckets(sides: Sides, bucketing: Bucketing) {
  const [source, target] = await Promise.all([
    bucketFingerprints(sides.source, sides, bucketing),
    bucketFingerprints(sides.target, sides, bucketing),
  ]);
  return {
    difference: differingBuckets(source, target, bucketing),
    source: wholeOf(source),
    target: wholeOf(target),
  };
}

/** Returns the fingerprint of a side. */
export async function wholeFingerprint(
  { session, relation }: Side,
  { table, method }: Pick<Sides, "table" | "method">,
): Promise<Fingerprint> {
  const [row] = await session.scan(
    wholeTableSql(relation, table.columns, method),
  );
  return fingerprintOf(row!);
}

async function bucketFingerprints(
  { session, relation }: Side,
  { table, method }: Sides,
  bucketing: Bucketing,
): Promise<Buckets> {
  const [row] = await session.scan(
    bucketsSql(relation, table.columns, method, bucketing),
  );
  return parseBuckets(row!.buckets);
}

/** Returns the fingerprint of a row with `count` and `checksum`. */
export function fingerprintOf(row: Row): Fingerprint {
  return { count: Number(row.count), checksum: row.checksum };
}

/** Narrows differing buckets to differing rows, unless there are too many. */
async function selectInBuckets(
  sides: Sides,
  difference: BucketDifference,
): Promise<Selection> {
  const { table: { columns }, source, target, method } = sides;
  const condition = inBucketsSql(columns, method, difference);
  if (isWorthRefining(difference)) {
    const [inSource, inTarget] = await Promise.all([
      rowsWhere(source, sides, condition),
      rowsWhere(target, sides, condition),
    ]);
    if (inSource && inTarget) {
      return selectionOf(sides, diffRows(inSource.rows, inTarget.rows));
    }
  }
  const rows = difference.sourceRows;
  return { source: condition, target: condition, rows };
}

/** Returns the rows of one side that meet the condition, or `undefined` when there are more than `maxRows`. */
async function rowsWhere(
  { session, relation, hasStableCtid }: Side,
  { table, method }: Sides,
  condition: string,
  maxRows = MAX_DIFFED_ROWS,
): Promise<{ rows: string; keys: string } | undefined> {
  const [row] = await session.scan<
    { count: string; rows: string; keys: string }
  >(rowsSql(
    relation,
    table.columns,
    method,
    condition,
    hasStableCtid,
    maxRows,
  ));
  return Number(row!.count) <= maxRows ? row! : undefined;
}

function selectionOf(
  { table: { columns }, source, target, method }: Sides,
  { hashes, ...rows }: RowDifference,
): Selection {
  const condition = (side: "source" | "target", { hasStableCtid }: Side) =>
    differingRowsSql(
      columns,
      method,
      hashes,
      hasStableCtid ? rows[side] : undefined,
    );
  return {
    source: condition("source", source),
    target: condition("target", target),
    rows: rows.source.length,
  };
}
