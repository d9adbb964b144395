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
