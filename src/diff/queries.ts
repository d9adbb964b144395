/**
 * The SQL of fingerprints: queries that sum, find and delete rows by their hash.
 *
 * @module
 */
import { identifier } from "../postgres/sql.ts";
import type { Column } from "../tables/declaration.ts";
import { type HashMethod, rowHash } from "./row_hash.ts";

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

/** A range of hashes, both limits included. */
export type HashRange = readonly [min: bigint, max: bigint];

/**
 * Returns SQL of the rows for a {@linkcode RowMatcher}: the hash and, where it is
 * stable, the ctid. `range` restricts the hash.
 */
export function hashesSql(
  { relation, hasStableCtid }: { relation: string; hasStableCtid: boolean },
  hash: string,
  range: HashRange | undefined,
): string {
  const values = hasStableCtid ? "hash, ctid" : "hash";
  const rows = `select ${hash} as hash${
    hasStableCtid ? ", ctid" : ""
  } from ${relation}`;
  // "offset 0" keeps the server from computing the hash twice.
  return range
    ? `select ${values} from (${rows} offset 0) rows where hash between '${
      range[0]
    }'::bigint and '${range[1]}'::bigint`
    : rows;
}

/** Joins many values by commas. Joins a few at a time, because all of them would take much memory. */
function joined(
  values: Iterable<string>,
  format: (value: string) => string = String,
): string {
  let text = "";
  let part: string[] = [];
  for (const value of values) {
    if (part.push(format(value)) < 1000) continue;
    text += `${part.join()},`;
    part = [];
  }
  return part.length > 0 ? text + part.join() : text.slice(0, -1);
}

/** Returns an SQL condition for the rows with these ctids. */
export function ctidSql(ctids: Iterable<string>): string {
  return `ctid = any ('{${joined(ctids, (ctid) => `"${ctid}"`)}}'::tid[])`;
}

/** Returns an SQL condition for the rows with these hashes. */
export function hashSql(hash: string, hashes: Iterable<string>): string {
  return `(${hash}) = any ('{${joined(hashes)}}'::int8[])`;
}

/**
 * Returns SQL for FROM: the rows with these hashes. Of equal rows, it has as many as
 * the hash is repeated. `values` are the columns that it has.
 */
export function rowsWithHashesSql(
  from: string,
  columns: readonly Column[],
  method: HashMethod,
  hashes: Iterable<string>,
  values: readonly string[],
): string {
  const list = joined(hashes);
  const hash = rowHash(columns, method);
  // Random names, which no column of the table has.
  const [found, number, wanted, needed] = Array.from(
    "1234",
    (n) => identifier(`${n} ${method.seed}`),
  );
  return `(select ${values} from (
      select ${values}, ${hash} as ${found},
        pg_catalog.row_number() over (partition by ${hash}) as ${number}
      from ${from} where (${hash}) = any ('{${list}}'::int8[])) rows
    join (select hash as ${wanted}, pg_catalog.count(*) as ${needed}
      from pg_catalog.unnest('{${list}}'::int8[]) hash group by hash) hashes
      on ${wanted} = ${found} and ${number} <= ${needed}) chosen`;
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
  const isWritten = "where pg_catalog.age(xmin) <= 0";
  return `select pg_catalog.count(*)::text as total,
      pg_catalog.count(*) filter (${isWritten})::text as count,
      coalesce(pg_catalog.sum(${
    rowHash(columns, method)
  }) filter (${isWritten}), 0)::text as checksum from ${relation}`;
}
