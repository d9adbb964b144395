/**
 * Fingerprints: what a table holds, as a row count and a sum of row hashes,
 * whole or per bucket. Two tables with equal fingerprints hold the same rows,
 * duplicates included, in whatever order.
 *
 * This module writes the SQL that computes them and decides, from two of
 * them, what has to be copied. It talks to no database.
 *
 * @module
 */
import { identifier } from "./db.ts";
import type { Column } from "./tables.ts";

/** Rows of a table or of one bucket: how many, and the sum of their hashes. */
export interface Fingerprint {
  readonly count: number;
  /** Sum of the signed 64-bit row hashes, in decimal. */
  readonly checksum: string;
}

/** Fingerprints by bucket number. A bucket without rows is absent. */
export type Buckets = ReadonlyMap<number, Fingerprint>;

/**
 * How rows are hashed. `record` is PostgreSQL's own 64-bit hash; `text` is
 * for two servers whose own hashes disagree (another byte order, another
 * encoding) and costs several times as much.
 */
export type HashMethod = "record" | "text";

/** The column cast to the type that the target has. */
export function castToTarget(column: Column): string {
  return `${identifier(column.name)}::${column.type}`;
}

/**
 * The hash of a row as an SQL expression, such that equal hashes mean equal
 * bytes.
 *
 * PostgreSQL's hash takes -0.0 for 0.0 and folds 8-byte integers to 32 bits,
 * so 8-byte types go through their send functions; and it hashes text by its
 * collation, so the collation is one that compares bytes.
 */
export function rowHash(
  columns: readonly Column[],
  method: HashMethod,
): string {
  return method === "record"
    ? `pg_catalog.hash_record_extended(row(${columns.map(recordField)}), 0)`
    // Sixteen hex digits of the digest, as a signed 64-bit number.
    : `('x' || pg_catalog.substr(pg_catalog.md5(pg_catalog.convert_to(${
      columns.map(textField).join(" || ")
    }, 'UTF8')), 1, 16))::bit(64)::bigint`;
}

function recordField(column: Column): string {
  const value = castToTarget(column);
  switch (column.type) {
    case "text":
      return `(${value} collate "C")`;
    case "double precision":
      return `pg_catalog.float8send(${value})`;
    case "timestamp with time zone":
      return `pg_catalog.timestamptz_send(${value})`;
  }
}

/** The field with its length before it, so that no two rows run together to one text. */
function textField(column: Column): string {
  const value = column.type === "text"
    ? castToTarget(column)
    : `pg_catalog.encode(${recordField(column)}, 'hex')`;
  return `coalesce(pg_catalog.length(${value}) || ':' || ${value}, '~')`;
}

/**
 * An expression whose value is equal on two servers exactly when their row
 * hashes can be compared.
 */
export const HASH_PROBE = `pg_catalog.hash_record_extended(row(
  ('closed_deal'::text collate "C"), pg_catalog.float8send(-0.5), null::text,
  pg_catalog.timestamptz_send('2018-02-26 19:58:54+00'::timestamptz)), 0)::text`;

/** Expression over `pg_class c`: the relation is a plain heap, whose rows have ids that stay. */
export const HAS_ROW_IDS = `(c.relkind = 'r' and not c.relhassubclass
  and c.relam = (select oid from pg_catalog.pg_am where amname = 'heap'))`;

/** SQL of the fingerprint of the whole table: columns `count`, `checksum`. */
export function wholeTableSql(
  from: string,
  columns: readonly Column[],
  method: HashMethod,
): string {
  return `select count(*)::text as count, coalesce(sum(${
    rowHash(columns, method)
  }), 0)::text as checksum from ${from}`;
}

/**
 * SQL of the fingerprints by bucket, as one text for {@linkcode parseBuckets}:
 * tens of thousands of rows would cost more to receive than to compute.
 */
export function bucketsSql(
  from: string,
  columns: readonly Column[],
  method: HashMethod,
  buckets: number,
): string {
  // "offset 0" keeps the hash from being computed once per use.
  return `select coalesce(pg_catalog.string_agg(line, ',' order by bucket), '') as buckets from (
      select bucket, bucket || ' ' || count(*) || ' ' || sum(hash) as line from (
        select (hash & ${buckets - 1})::int4 as bucket, hash from (
          select ${
    rowHash(columns, method)
  } as hash from ${from} offset 0) hashes) numbered
      group by bucket) grouped`;
}

/** The fingerprints by bucket from the text that {@linkcode bucketsSql} gives. */
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

/** The fingerprint of the whole table, from those of its buckets. */
export function wholeOf(buckets: Buckets): Fingerprint {
  let count = 0;
  let checksum = 0n;
  for (const bucket of buckets.values()) {
    count += bucket.count;
    checksum += BigInt(bucket.checksum);
  }
  return { count, checksum: checksum.toString() };
}

/**
 * SQL of the rows in the given buckets, as one text for {@linkcode diffRows}:
 * each row's hash and, where the table has such, its row id.
 */
export function rowsSql(
  from: string,
  columns: readonly Column[],
  method: HashMethod,
  { buckets, changed }: BucketDifference,
  hasRowIds: boolean,
): string {
  // Only the ids of rows that are found become text: for every row it would cost more than the hash.
  return `select coalesce(pg_catalog.string_agg(hash || ' ' || id${
    hasRowIds ? "::text" : ""
  }, ';'), '') as rows from (
      select ${rowHash(columns, method)} as hash, ${
    hasRowIds ? "ctid" : "''"
  } as id from ${from} offset 0) hashes
    where (hash & ${buckets - 1}) = any ('{${changed}}'::int8[])`;
}

/** Rows to take away and to copy: those whose hash occurs a different number of times. */
export interface RowDifference {
  readonly hashes: readonly string[];
  /** Row ids of these rows on either side. */
  readonly source: readonly string[];
  readonly target: readonly string[];
}

/** The difference between two sides from the texts that {@linkcode rowsSql} gives. */
export function diffRows(source: string, target: string): RowDifference {
  const wanted = rowIdsByHash(source);
  const present = rowIdsByHash(target);
  const hashes: string[] = [];
  const ids = { source: [] as string[], target: [] as string[] };
  for (const hash of new Set([...wanted.keys(), ...present.keys()])) {
    const here = wanted.get(hash) ?? [];
    const there = present.get(hash) ?? [];
    if (here.length === there.length) continue;
    hashes.push(hash);
    ids.source.push(...here);
    ids.target.push(...there);
  }
  return { hashes, ...ids };
}

function rowIdsByHash(text: string): Map<string, string[]> {
  const rows = new Map<string, string[]>();
  for (const row of text === "" ? [] : text.split(";")) {
    const space = row.indexOf(" ");
    const hash = row.slice(0, space);
    const ids = rows.get(hash);
    if (ids) ids.push(row.slice(space + 1));
    else rows.set(hash, [row.slice(space + 1)]);
  }
  return rows;
}

/** SQL condition that holds for the rows of one side that differ. */
export function differingRowsSql(
  columns: readonly Column[],
  method: HashMethod,
  hashes: readonly string[],
  rowIds: readonly string[] | undefined,
): string {
  return rowIds
    ? `ctid = any ('{${rowIds.map((id) => `"${id}"`)}}'::tid[])`
    : `${rowHash(columns, method)} = any ('{${hashes}}'::int8[])`;
}

/** SQL condition that holds for the rows of the given buckets. */
export function inBucketsSql(
  columns: readonly Column[],
  method: HashMethod,
  { buckets, changed }: BucketDifference,
): string {
  return `(${rowHash(columns, method)} & ${
    buckets - 1
  }) = any ('{${changed}}'::int8[])`;
}

/** Most buckets that are told apart; more cost more than they narrow down. */
const MOST_BUCKETS = 65_536;

/**
 * Number of buckets, a power of two, for a table of this size. Up to some
 * thousands they cost next to nothing; the rows of those that differ are then
 * told apart one by one.
 */
export function bucketCount(rows: number): number {
  let buckets = 256;
  while (buckets < rows / 200 && buckets < MOST_BUCKETS) buckets *= 2;
  return buckets;
}

/** What has to be done to make the target equal to the source. */
export type Plan =
  | { readonly mode: "unchanged" }
  | { readonly mode: "full" }
  | ({ readonly mode: "delta" } & BucketDifference);

/** Buckets that differ. */
export interface BucketDifference {
  readonly buckets: number;
  readonly changed: readonly number[];
  /** Rows in them, in the source and in the target. */
  readonly sourceRows: number;
  readonly targetRows: number;
}

/** Most rows, on one side, that are told apart one by one: they are held in memory. */
const MOST_ROWS_TOLD_APART = 250_000;

/** Whether the rows of the differing buckets are worth telling apart. */
export function isWorthRefining(
  { sourceRows, targetRows }: BucketDifference,
): boolean {
  return Math.max(sourceRows, targetRows) <= MOST_ROWS_TOLD_APART;
}

/** From this share of the rows on a delta costs more than it saves. */
const MOST_DELTA_SHARE = 0.5;

/** Decides from the fingerprints of both sides, by bucket, what to copy. */
export function planFromBuckets(
  source: Buckets,
  target: Buckets,
  buckets: number,
): Plan {
  const changed: number[] = [];
  let copied = 0;
  let deleted = 0;
  let total = 0;
  for (const bucket of new Set([...source.keys(), ...target.keys()])) {
    const wanted = source.get(bucket);
    const present = target.get(bucket);
    total += wanted?.count ?? 0;
    if (equal(wanted, present)) continue;
    changed.push(bucket);
    copied += wanted?.count ?? 0;
    deleted += present?.count ?? 0;
  }
  if (changed.length === 0) return { mode: "unchanged" };
  if (copied + deleted >= 2 * MOST_DELTA_SHARE * total) return { mode: "full" };
  return {
    mode: "delta",
    buckets,
    changed: changed.sort((a, b) => a - b),
    sourceRows: copied,
    targetRows: deleted,
  };
}

/** True when both fingerprints stand for the same rows. */
export function equal(
  a: Fingerprint | undefined,
  b: Fingerprint | undefined,
): boolean {
  return a?.count === b?.count && a?.checksum === b?.checksum;
}
