/**
 * The hash of a row, as SQL.
 *
 * Every operator gets exactly the types that it is declared for. Otherwise an
 * operator of another schema in the search path could fit better.
 *
 * @module
 */
import { identifier } from "../postgres/sql.ts";
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
 * Returns the text of the value that the target has, as SQL. A cast to text would trim
 * a CHAR, and could call a function of the type's owner.
 */
export function textOf(column: Column): string {
  const value = castToTarget(column);
  return `(case pg_catalog.num_nulls(${value}) when 0 then pg_catalog.format('%s', ${value}) end)`;
}

/** Returns the bytes of a value that is not NULL as hexadecimal digits, as SQL. */
export function hexOf(column: Column): string {
  // The first twelve bytes of the record describe the value.
  return `pg_catalog.encode(pg_catalog.substr(pg_catalog.record_send(row(${
    castToTarget(column)
  })), 13), 'hex')`;
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
  // The seed distinguishes NULL from the empty text. A row of NULLs is NULL, but its text is not.
  const isNull = `(case when (${
    castToTarget(first)
  }) is null then 1 else 0 end)::bigint`;
  return hashOf(
    `coalesce(${valueAsText(first)}, '')`,
    [seedOf(method, 1), isNull, ...seeds].join(" # "),
  );
}

/**
 * Returns the hash of the first column as an SQL expression. NULL may have the hash
 * of another value.
 */
export function keyHash(
  columns: readonly Column[],
  method: HashMethod,
): string {
  const first = columns.slice(0, 1);
  return method.kind === "text"
    ? rowHash(first, method)
    : `coalesce(${hashOf(valueAsText(first[0]!), seedOf(method, 0))}, 0)`;
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
export function bytesOf(text: string): string {
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
