/**
 * The SQL of fingerprints: queries that sum, find and delete rows by their hash.
 *
 * @module
 */
import type { Column } from "../tables/declaration.ts";
import type { BucketDifference, Bucketing } from "./fingerprint.ts";
import { type HashMethod, keyHash, rowHash } from "./row_hash.ts";

/**
 * SQL expression over `pg_class c`. It is true for a plain heap with stable row ids
 * and without rules.
 */
export const HAS_STABLE_CTID =
  `(c.relkind = 'r' and not c.relhassubclass and not c.relhasrules
  and c.relam = (select oid from pg_catalog.pg_am where amname = 'heap'))`;

/** Returns SQL of the fingerprint of the whole table. Its columns are `count` and `checksum`. */
export function wholeTableSql(
  from: string,
  columns: readonly Column[],
  method: HashMethod,
): string {
  return `select pg_catalog.count(*)::text as count, coalesce(pg_catalog.sum(${
    rowHash(columns, method)
  }), 0)::text as checksum from ${from}`;
}

/** Returns the bucket number of a row as an SQL expression. */
function bucketNumber(
  columns: readonly Column[],
  method: HashMethod,
  { by, buckets }: Bucketing,
): string {
  const hash = by === "row"
    ? rowHash(columns, method)
    : keyHash(columns, method);
  return `(${hash} & ${buckets - 1}::bigint)`;
}

/**
 * Returns SQL of the fingerprints by bucket. The result is one text for
 * {@linkcode parseBuckets}, because many rows cost more.
 */
export function bucketsSql(
  from: string,
  columns: readonly Column[],
  method: HashMethod,
  bucketing: Bucketing,
): string {
  // "offset 0" keeps the planner from expecting one bucket per row, and from sorting.
  return `select coalesce(pg_catalog.string_agg(line, ',' order by bucket), '') as buckets from (
      select bucket, bucket::text || ' ' || pg_catalog.count(*)::text || ' ' || pg_catalog.sum(hash)::text as line from (
        select ${bucketNumber(columns, method, bucketing)}::int4 as bucket,
          ${rowHash(columns, method)} as hash from ${from} offset 0) hashes
      group by bucket) grouped`;
}

/**
 * Returns SQL of the rows that meet the condition, at most `maxRows` and one more. Its
 * columns are `count`, `rows` and `keys`. `rows` is one text for {@linkcode diffRows}.
 * It has the hash of each row and its stable ctid, ordered by the bytes of the hash.
 * `keys` has the hashes of the first columns.
 */
export function rowsSql(
  from: string,
  columns: readonly Column[],
  method: HashMethod,
  condition: string,
  hasStableCtid: boolean,
  maxRows: number,
): string {
  return `select pg_catalog.count(*)::text as count,
      coalesce(pg_catalog.string_agg(hash || ' ' || id, ';' order by hash), '') as rows,
      coalesce(pg_catalog.string_agg(key::text, ','), '') as keys
    from (
      select ${rowHash(columns, method)}::text collate "C" as hash, ${
    hasStableCtid ? "ctid::text" : "''"
  } as id, ${keyHash(columns, method)} as key
      from ${from} where ${condition} limit ${maxRows + 1}) rows`;
}

/**
 * Returns an SQL condition for the rows that this transaction and later ones have
 * written. `id` has 64 bits. Needs a table with row ids.
 */
export function writtenSinceSql(xid8: string): string {
  // A row has the lower 32 bits.
  const xid = BigInt.asUintN(32, BigInt(xid8));
  return `pg_catalog.age(xmin) <= (select pg_catalog.age('${xid}'::pg_catalog.xid))`;
}

/**
 * Returns an SQL condition for the rows whose first columns have the hashes from
 * {@linkcode rowsSql}.
 */
export function withKeysSql(
  columns: readonly Column[],
  method: HashMethod,
  keys: string,
): string {
  return `${keyHash(columns, method)} = any ('{${keys}}'::int8[])`;
}

/** Returns an SQL condition for the differing rows of one side. */
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

/** Returns an SQL condition for the rows of the given buckets. */
export function inBucketsSql(
  columns: readonly Column[],
  method: HashMethod,
  difference: BucketDifference,
): string {
  return `${
    bucketNumber(columns, method, difference)
  } = any ('{${difference.changed}}'::int8[])`;
}

/**
 * Returns SQL that deletes rows and returns their fingerprint. Its columns are
 * `count` and `checksum`.
 */
export function deleteSql(
  relation: string,
  columns: readonly Column[],
  method: HashMethod,
  condition: string,
): string {
  return `with gone as (delete from ${relation} where ${condition} returning ${
    rowHash(columns, method)
  } as hash)
    select pg_catalog.count(*)::text as count, coalesce(pg_catalog.sum(hash), 0)::text as checksum from gone`;
}

/**
 * Returns SQL of the fingerprint of the rows that this transaction has written.
 * Its columns are `count`, `checksum`, and `total` for all rows. Requires a table
 * with a stable ctid.
 *
 * The lock keeps other writers out. So rows that are not older than this
 * transaction are its own or those of its subtransactions.
 */
export function writtenRowsSql(
  relation: string,
  columns: readonly Column[],
  method: HashMethod,
): string {
  return `select pg_catalog.count(*)::text as total, pg_catalog.count(hash)::text as count, coalesce(pg_catalog.sum(hash), 0)::text as checksum from (
      select case when pg_catalog.age(xmin) <= 0 then ${
    rowHash(columns, method)
  } end as hash from ${relation} offset 0) rows`;
}
