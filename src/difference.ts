/**
 * What differs between the two sides of a table: whole, then by bucket, then
 * by row, each one query on either side at the same time.
 *
 * @module
 */
import type { Row, Session } from "./db.ts";
import {
  bucketCount,
  type BucketDifference,
  type Bucketing,
  type Buckets,
  differingBuckets,
  diffRows,
  equal,
  type Fingerprint,
  isLopsided,
  isWorthRefining,
  parseBuckets,
  type Plan,
  planFor,
  wholeOf,
} from "./fingerprint.ts";
import {
  bucketsSql,
  differingRowsSql,
  type HashMethod,
  inBucketsSql,
  rowsSql,
  wholeTableSql,
} from "./fingerprint_sql.ts";
import type { Table } from "./tables.ts";

/** One side of the comparison: a session that sees the rows, and where they are. */
export interface Side {
  readonly session: Session;
  /** Quoted, schema-qualified. */
  readonly relation: string;
  readonly hasRowIds: boolean;
}

/** Both sides of a table, and the hash that they can be compared by. */
export interface Sides {
  readonly table: Table;
  readonly source: Side;
  readonly target: Side;
  readonly method: HashMethod;
}

/** What is known before, to begin with the step that will be needed. */
export interface Expectation {
  /** Whether a change is likely. A wrong guess costs time, never a row. */
  readonly isChanged: boolean;
  readonly rows: number;
}

/** What is to be done, and what both sides hold. */
export interface Compared {
  readonly plan: Plan;
  readonly wanted: Fingerprint;
  readonly present: Fingerprint;
}

/** Compares by content. Where a change is likely, whole tables are left out: they would only say that there is one. */
export async function compareContent(
  sides: Sides,
  { isChanged, rows }: Expectation = { isChanged: false, rows: 0 },
): Promise<Compared> {
  if (!isChanged) {
    const [wanted, present] = await Promise.all([
      wholeFingerprint(sides.source, sides),
      wholeFingerprint(sides.target, sides),
    ]);
    if (equal(wanted, present)) {
      return { plan: { mode: "unchanged" }, wanted, present };
    }
    if (present.count === 0) return { plan: { mode: "full" }, wanted, present };
    rows = wanted.count;
  }
  const buckets = bucketCount(rows);
  const byFirst = await compareBuckets(sides, { by: "first column", buckets });
  return byFirst.isLopsided
    ? await compareBuckets(sides, { by: "row", buckets })
    : byFirst;
}

async function compareBuckets(
  sides: Sides,
  bucketing: Bucketing,
): Promise<Compared & { isLopsided: boolean }> {
  const [source, target] = await Promise.all([
    bucketFingerprints(sides.source, sides, bucketing),
    bucketFingerprints(sides.target, sides, bucketing),
  ]);
  const wanted = wholeOf(source);
  const difference = differingBuckets(source, target, bucketing);
  return {
    plan: planFor(difference, wanted.count),
    wanted,
    present: wholeOf(target),
    isLopsided: isLopsided(difference, wanted.count),
  };
}

/** What a side holds. */
export async function wholeFingerprint(
  { session, relation }: Side,
  { table, method }: Pick<Sides, "table" | "method">,
): Promise<Fingerprint> {
  const [row] = await session.query(
    wholeTableSql(relation, table.columns, method),
  );
  return fingerprintOf(row!);
}

async function bucketFingerprints(
  { session, relation }: Side,
  { table, method }: Sides,
  bucketing: Bucketing,
): Promise<Buckets> {
  const [row] = await session.query(
    bucketsSql(relation, table.columns, method, bucketing),
  );
  return parseBuckets(row!.buckets);
}

/** The fingerprint in a row with `count` and `checksum`. */
export function fingerprintOf(row: Row): Fingerprint {
  return { count: Number(row.count), checksum: row.checksum };
}

/** Which rows a delta takes away from the target and copies from the source, as SQL conditions. */
export interface Selection {
  readonly source: string;
  readonly target: string;
  /** Rows that will be copied. */
  readonly rows: number;
}

/** Narrows the buckets that differ down to the rows that do, where these are not too many. */
export async function selectRows(
  { table: { columns }, source, target, method }: Sides,
  difference: BucketDifference,
): Promise<Selection> {
  if (!isWorthRefining(difference)) {
    const condition = inBucketsSql(columns, method, difference);
    return {
      source: condition,
      target: condition,
      rows: difference.sourceRows,
    };
  }
  const rowsOf = async ({ session, relation, hasRowIds }: Side) => {
    const [row] = await session.query(
      rowsSql(relation, columns, method, difference, hasRowIds),
    );
    return row!.rows as string;
  };
  const { hashes, ...rows } = diffRows(
    ...await Promise.all([rowsOf(source), rowsOf(target)]),
  );
  const condition = (side: "source" | "target", { hasRowIds }: Side) =>
    differingRowsSql(
      columns,
      method,
      hashes,
      hasRowIds ? rows[side] : undefined,
    );
  return {
    source: condition("source", source),
    target: condition("target", target),
    rows: rows.source.length,
  };
}
