/**
 * The SQL of fingerprints: the hash of a row, and the queries that sum, find and
 * delete rows by it.
 *
 * Every operator gets exactly the types that it is declared for. Otherwise an
 * operator of another schema in the search path could fit better.
 *
 * @module
 */
import { identifier } from "../postgres/sql.ts";
import type { BucketDifference, Bucketing } from "./fingerprint.ts";
import {
  bytesAsText,
  castName,
  isBuiltIn,
  parseTypeName,
} from "../tables/column_types.ts";
import type { Column } from "../tables/declaration.ts";

/** The method of hashing rows. */
export interface HashMethod {
  /**
   * `native` is PostgreSQL's own 64-bit hash. `text` is for two servers whose own
   * hashes differ (another byte order, another encoding). It costs several times
   * as much.
   */
  readonly kind: "native" | "text";
  /**
   * Signed random 64-bit number of the snapshot. With a known seed, one can compute
   * a text that has the hash of another text.
   */
  readonly seed: bigint;
}

/** Returns a random seed for {@linkcode HashMethod}. */
export function randomSeed(): bigint {
  return crypto.getRandomValues(new BigInt64Array(1))[0]!;
}

/** The seed of the column at this position, as SQL: another odd multiple for each. */
function seedOf({ seed }: HashMethod, position: number): string {
  const mixed = (seed + BigInt(position)) * 0x9e3779b97f4a7c15n;
  return `'${BigInt.asIntN(64, mixed)}'::bigint`;
}

/**
 * Returns the column with the type that the target has. Only PostgreSQL's own
 * types have the same name on both servers, and only they accept other types.
 */
export function castToTarget({ name, type }: Column): string {
  return isBuiltIn(type)
    ? `${identifier(name)}::${castName(type)}`
    : identifier(name);
}

/**
 * Returns the hash of a row as an SQL expression. Equal hashes mean equal bytes.
 * Each column is hashed with its own seed. The hashes of all columns but the first
 * become the seed of the first. So the hash is not linear in its columns. The sum
 * over a table changes when two rows exchange a value. The sum of
 * `hash_record_extended` does not change then. Building a record also costs more.
 */
export function rowHash(
  columns: readonly Column[],
  method: HashMethod,
): string {
  if (method.kind === "text") {
    const fields = [`'${method.seed}'`, ...columns.map(withLength)];
    // Sixteen hex digits of the digest, as a signed 64-bit number.
    return `('x' || pg_catalog.substr(pg_catalog.md5(${
      bytesOf(fields.join(" || "))
    }), 1, 16))::bit(64)::bigint`;
  }
  const [first, ...rest] = columns as readonly [Column, ...Column[]];
  const seeds = rest.map((column, index) => {
    const seed = seedOf(method, index + 2);
    return `coalesce(${hashOf(valueAsText(column), seed)}, ${seed})`;
  });
  // The seed distinguishes NULL from the empty text.
  const isNull = `(case when ${
    identifier(first.name)
  } is null then 1 else 0 end)::bigint`;
  return hashOf(
    `coalesce(${valueAsText(first)}, '')`,
    [seedOf(method, 1), isNull, ...seeds].join(" # "),
  );
}

/** Returns 64 bits of the bytes of a text, for every collation. */
function hashOf(text: string, seed: string): string {
  return `pg_catalog.hashtextextended(${text} collate "C", ${seed})`;
}

/**
 * Returns a text that is equal exactly when the bytes of the value are equal.
 * PostgreSQL's own hashes treat -0.0 as 0.0, and fold integers to 32 bits.
 */
function valueAsText(column: Column): string {
  const value = castToTarget(column);
  return column.isText ? `${value}::text` : bytesAsText(column.type, value);
}

/**
 * Returns the field after its length, so that two different rows never become the
 * same text. The length counts bytes: SQL_ASCII treats each byte as a character.
 */
function withLength(column: Column): string {
  const value = valueAsText(column);
  return `coalesce(pg_catalog.octet_length(${
    bytesOf(value)
  })::text || ':' || ${value}, '~')`;
}

/**
 * Returns the bytes that COPY moves. They are the same on every server. A SQL_ASCII
 * database also has invalid ones.
 */
function bytesOf(text: string): string {
  return `pg_catalog.convert_to(${text},
    case pg_catalog.getdatabaseencoding() when 'SQL_ASCII' then 'SQL_ASCII' else 'UTF8' end)`;
}

/**
 * SQL expression with the same value on two servers exactly when their row hashes
 * are comparable.
 */
export const HASH_PROBE = `(select ${
  rowHash([
    { name: "a", type: parseTypeName("text") },
    { name: "b", type: parseTypeName("double precision") },
    { name: "c", type: parseTypeName("timestamptz") },
    { name: "d", type: parseTypeName("text") },
  ], { kind: "native", seed: 0n })
}::text from (values ('closed_deal', -0.5, '2018-02-26 19:58:54+00', null)) probe (a, b, c, d))`;

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

/**
 * Returns the hash of the first column as an SQL expression. NULL may have the hash
 * of another value.
 */
function keyHash(columns: readonly Column[], method: HashMethod): string {
  const first = columns.slice(0, 1);
  return method.kind === "text"
    ? rowHash(first, method)
    : `coalesce(${hashOf(valueAsText(first[0]!), seedOf(method, 0))}, 0)`;
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
