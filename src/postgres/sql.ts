/**
 * The text of SQL: quoting, and the values that go in and out.
 *
 * @module
 */

/** A row by column name. Values are as postgres.js decodes them: int8 and numeric are strings. */
// deno-lint-ignore no-explicit-any -- the shape of a row is known where its SQL is
export type Row = Record<string, any>;

/** A value that a statement takes as a parameter. */
export type Parameter = string | number | boolean | Date | null;

/**
 * Sets the search path of every statement of ours. PostgreSQL calls a function
 * whose argument types fit exactly, in whichever schema of the path it stands.
 * So no other schema may be in the path. Temporary tables would come first if
 * they were not named.
 */
export const SET_SEARCH_PATH = "set local search_path = pg_catalog, pg_temp";

/**
 * Lifts the timeouts that the role may carry, whatever the search path is. Comes
 * first in a script: they count until then.
 */
export const LIFT_TIMEOUTS =
  `select case when pg_catalog.int4ge(pg_catalog.current_setting('server_version_num')::pg_catalog.int4, 170000)
  then pg_catalog.set_config('transaction_timeout', '0', true) end;
set local statement_timeout = 0;
set local lock_timeout = 0;
set local idle_in_transaction_session_timeout = 0`;

/** Quotes an identifier. */
export function identifier(name: string): string {
  return `"${name.replaceAll('"', '""')}"`;
}

/** Quotes a schema-qualified name. */
export function qualified(of: { schema: string; name: string }): string {
  return `${identifier(of.schema)}.${identifier(of.name)}`;
}

/** Quotes a string as a literal, whatever `standard_conforming_strings` is. */
export function literal(text: string): string {
  const quoted = `'${text.replaceAll("'", "''")}'`;
  return text.includes("\\") ? ` E${quoted.replaceAll("\\", "\\\\")}` : quoted;
}

/** Quotes a parameter as a literal that the server reads as it reads a parameter of unknown type. */
function literalOf(value: Parameter): string {
  if (value === null) return "null";
  if (typeof value === "boolean") return String(value);
  return literal(value instanceof Date ? value.toISOString() : String(value));
}

/** Puts the parameters in the place of `$1`, `$2`, …, so that the statement fits into a script. */
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
