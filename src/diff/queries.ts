/**
 * The SQL that fingerprints are computed with: the hash of a row, and what is
 * summed, found and deleted by it.
 *
 * Operators are given the very types that they are declared for: one that fits
 * better, in any schema of the search path, would be called instead.
 *
 * @module
 */
import { identifier } from "../postgres/sql.ts";
import type { BucketDifference, Bucketing } from "./fingerprint.ts";
import type { Column } from "../tables/declaration.ts";

/** How rows are hashed. */
export interface HashMethod {
  /**
   * `native` is PostgreSQL's own 64-bit hash. `text` is for two servers whose own
   * hashes disagree (another byte order, another encoding) and costs several
   * times as much.
   */
  readonly kind: "native" | "text";
  /**
   * Signed 64-bit number, drawn for each snapshot. With a seed that is known
   * beforehand, a text can be computed that has the hash of another one.
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

/** The column cast to the type that the target has. */
export function castToTarget(column: Column): string {
  return `${identifier(column.name)}::${column.type}`;
}

/**
 * The hash of a row as an SQL expression, such that equal hashes mean equal
 * bytes.
 *
 * Every column is hashed with a seed of its own, and all but the first become
 * the seed of the first. So it is not linear in its columns: the sum over a
 * table changes when two rows exchange a value, which it does not for
 * `hash_record_extended` (31 times the columns before, plus the next one).
 * It also costs less than making a record.
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
    return `coalesce(${hashOf(bytesAsText(column), seed)}, ${seed})`;
  });
  // NULL and the empty text are told apart by the seed.
  const isNull = `(case when ${
    identifier(first.name)
  } is null then 1 else 0 end)::bigint`;
  return hashOf(
    `coalesce(${bytesAsText(first)}, '')`,
    [seedOf(method, 1), isNull, ...seeds].join(" # "),
  );
}

/** 64 bits of a text's bytes, whatever the database's collation takes for equal. */
function hashOf(text: string, seed: string): string {
  return `pg_catalog.hashtextextended(${text} collate "C", ${seed})`;
}

/**
 * A text that is equal exactly where the value's bytes are. PostgreSQL's own
 * hashes of 8-byte types take -0.0 for 0.0 and fold integers to 32 bits.
 */
function bytesAsText(column: Column): string {
  const value = castToTarget(column);
  switch (column.type) {
    case "text":
      return value;
    case "double precision":
      return `pg_catalog.encode(pg_catalog.float8send(${value}), 'hex')`;
    case "timestamp with time zone":
      return `pg_catalog.encode(pg_catalog.timestamptz_send(${value}), 'hex')`;
  }
}

/**
 * The field with its length before it, so that no two rows run together to one
 * text. The length is of the bytes that are hashed: SQL_ASCII takes each for a
 * character.
 */
function withLength(column: Column): string {
  const value = bytesAsText(column);
  return `coalesce(pg_catalog.octet_length(${
    bytesOf(value)
  })::text || ':' || ${value}, '~')`;
}

/** The bytes that COPY moves, on every server the same; in a SQL_ASCII database as they are, valid or not. */
function bytesOf(text: string): string {
  return `pg_catalog.convert_to(${text},
    case pg_catalog.getdatabaseencoding() when 'SQL_ASCII' then 'SQL_ASCII' else 'UTF8' end)`;
}

/**
 * An expression whose value is equal on two servers exactly when their row
 * hashes can be compared.
 */
export const HASH_PROBE = `(select ${
  rowHash([
    { name: "a", type: "text" },
    { name: "b", type: "double precision" },
    { name: "c", type: "timestamp with time zone" },
    { name: "d", type: "text" },
  ], { kind: "native", seed: 0n })
}::text from (values ('closed_deal', -0.5, '2018-02-26 19:58:54+00', null)) probe (a, b, c, d))`;

/** Expression over `pg_class c`: a plain heap, whose rows have ids that stay, and no rule rewrites what is done to it. */
export const HAS_STABLE_CTID =
  `(c.relkind = 'r' and not c.relhassubclass and not c.relhasrules
  and c.relam = (select oid from pg_catalog.pg_am where amname = 'heap'))`;

/** SQL of the fingerprint of the whole table: columns `count`, `checksum`. */
export function wholeTableSql(
  from: string,
  columns: readonly Column[],
  method: HashMethod,
): string {
  return `select pg_catalog.count(*)::text as count, coalesce(pg_catalog.sum(${
    rowHash(columns, method)
  }), 0)::text as checksum from ${from}`;
}

/** The hash of the first column as an SQL expression. It need not tell NULL from anything. */
function keyHash(columns: readonly Column[], method: HashMethod): string {
  const first = columns.slice(0, 1);
  return method.kind === "text"
    ? rowHash(first, method)
    : `coalesce(${hashOf(bytesAsText(first[0]!), seedOf(method, 0))}, 0)`;
}

/** The number of a row's bucket as an SQL expression. */
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
 * SQL of the fingerprints by bucket, as one text for {@linkcode parseBuckets}:
 * tens of thousands of rows would cost more to receive than to compute.
 */
export function bucketsSql(
  from: string,
  columns: readonly Column[],
  method: HashMethod,
  bucketing: Bucketing,
): string {
  // "offset 0" keeps the planner from guessing that there is a bucket a row, and sorting.
  return `select coalesce(pg_catalog.string_agg(line, ',' order by bucket), '') as buckets from (
      select bucket, bucket::text || ' ' || pg_catalog.count(*)::text || ' ' || pg_catalog.sum(hash)::text as line from (
        select ${bucketNumber(columns, method, bucketing)}::int4 as bucket,
          ${rowHash(columns, method)} as hash from ${from} offset 0) hashes
      group by bucket) grouped`;
}

/**
 * SQL of the rows for which the condition holds, of at most one more than
 * `most`: `count`; `rows`, one text for {@linkcode diffRows} with
 * each row's hash and, where the table has such, its row id, ordered by the
 * hash's bytes; and `keys`, the hashes of their first columns.
 */
export function rowsSql(
  from: string,
  columns: readonly Column[],
  method: HashMethod,
  condition: string,
  hasStableCtid: boolean,
  most: number,
): string {
  return `select pg_catalog.count(*)::text as count,
      coalesce(pg_catalog.string_agg(hash || ' ' || id, ';' order by hash), '') as rows,
      coalesce(pg_catalog.string_agg(key::text, ','), '') as keys
    from (
      select ${rowHash(columns, method)}::text collate "C" as hash, ${
    hasStableCtid ? "ctid::text" : "''"
  } as id, ${keyHash(columns, method)} as key
      from ${from} where ${condition} limit ${most + 1}) rows`;
}

/** SQL condition that holds for the rows that the transaction with this 64-bit id and later ones have written. Needs a table with row ids. */
export function writtenSinceSql(xid8: string): string {
  // In a row there are the lower 32 bits.
  const xid = BigInt.asUintN(32, BigInt(xid8));
  return `pg_catalog.age(xmin) <= (select pg_catalog.age('${xid}'::pg_catalog.xid))`;
}

/** SQL condition that holds for the rows whose first columns have the given hashes, as {@linkcode rowsSql} tells them. */
export function withKeysSql(
  columns: readonly Column[],
  method: HashMethod,
  keys: string,
): string {
  return `${keyHash(columns, method)} = any ('{${keys}}'::int8[])`;
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
  difference: BucketDifference,
): string {
  return `${
    bucketNumber(columns, method, difference)
  } = any ('{${difference.changed}}'::int8[])`;
}

/** SQL that deletes rows and tells the fingerprint of those that are gone: columns `count`, `checksum`. */
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
 * SQL of the fingerprint of the rows that this transaction has written, columns
 * `count`, `checksum`, and of `total`, the number of all rows. Needs a table
 * with row ids.
 *
 * Nobody else writes while the table is locked, so what is not older than this
 * transaction is its own or a subtransaction's.
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
