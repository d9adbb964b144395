/**
 * Quotes names and values in SQL, and types its rows and parameters.
 *
 * @module
 */

/** A row by column name. Values are as postgres.js decodes them: int8 and numeric are strings. */
// deno-lint-ignore no-explicit-any -- the code beside the SQL knows the columns of its rows
export type Row = Record<string, any>;

/** The value of a statement's parameter. */
export type Parameter =
  | string
  | number
  | boolean
  | Date
  | readonly string[]
  | null;

/** Runs one statement: a pool, or a session whose transaction has not failed. */
export interface Queryable {
  query<T extends Row = Row>(
    text: string,
    parameters?: readonly Parameter[],
  ): Promise<T[]>;
}

/**
 * Sets the search path for all statements of the service. PostgreSQL calls the
 * function whose argument types fit exactly, in any schema of the path. So the
 * path contains no other schema. Without `pg_temp` in it, PostgreSQL would look
 * up temporary tables first.
 */
export const SET_SEARCH_PATH = "set local search_path = pg_catalog, pg_temp";

/**
 * Turns off the timeouts of the role. It works under any search path. It must come
 * first in a script, because the timeouts apply until then.
 */
export const LIFT_TIMEOUTS =
  `select case when pg_catalog.int4ge(pg_catalog.current_setting('server_version_num')::pg_catalog.int4, 170000)
  then pg_catalog.set_config('transaction_timeout', '0', true) end;
set local statement_timeout = 0;
set local lock_timeout = 0;
set local idle_in_transaction_session_timeout = 0`;

/** Returns SQL that limits each wait for a lock in the transaction. At least 1 ms, because 0 would disable the limit. */
export function setLockTimeout(seconds: number): string {
  return `set local lock_timeout = '${Math.ceil(seconds * 1000)}ms'`;
}

/** Quotes an identifier. */
export function identifier(name: string): string {
  return `"${name.replaceAll('"', '""')}"`;
}

/** Quotes a schema-qualified name. */
export function qualified(of: { schema: string; name: string }): string {
  return `${identifier(of.schema)}.${identifier(of.name)}`;
}

/** Quotes a string as a literal that is valid under any `standard_conforming_strings`. */
export function literal(text: string): string {
  const quoted = `'${text.replaceAll("'", "''")}'`;
  return text.includes("\\") ? ` E${quoted.replaceAll("\\", "\\\\")}` : quoted;
}

/** Quotes a parameter as a literal of unknown type. The type of an array must be named after it. */
function literalOf(value: Parameter): string {
  if (value === null) return "null";
  if (value instanceof Array) return `array[${value.map(literal)}]`;
  if (typeof value === "boolean") return String(value);
  return literal(value instanceof Date ? value.toISOString() : String(value));
}

/** Replaces `$1`, `$2`, … by the parameters, so that the statement can be part of a script. */
export function withParameters(
  text: string,
  parameters: readonly Parameter[],
): string {
  if (parameters.length === 0) return text;
  return text.replace(/\$(\d+)/g, (_, number) => {
    const value = parameters[number - 1];
    if (value === undefined) throw new RangeError(`No parameter $${number}`);
    return literalOf(value);
  });
}
