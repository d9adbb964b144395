/**
 * The declaration of a table: its source, its target and their columns. DDL,
 * casts, fingerprints, COPY lists and column checks are derived from it.
 *
 * @module
 */

/** PostgreSQL type of a target column, spelled as `format_type` prints it. */
type ColumnType =
  | "text"
  | "timestamp with time zone"
  | "double precision";

/** A column of a table. Its name is the same in source and target. */
export interface Column {
  readonly name: string;
  /** Type in the warehouse. The source column is cast to it. */
  readonly type: ColumnType;
}

/** A source table, and the warehouse table that is kept equal to it. */
export interface Table {
  /** Name for users, as in `load --table closed_deal`. */
  readonly name: string;
  readonly source: { readonly schema: string; readonly name: string };
  readonly target: { readonly schema: string; readonly name: string };
  readonly columns: readonly Column[];
}

/** Returns the names of the tables. */
export function namesOf(tables: readonly Table[]): readonly string[] {
  return tables.map(({ name }) => name);
}

/** Returns the tables of the given names, each once, in the order of `tables`. */
export function selectTables(
  tables: readonly Table[],
  names: readonly string[],
): readonly Table[] {
  return tables.filter(({ name }) => names.includes(name));
}

/**
 * SQL for the stored type of a column: `oid` and `typmod`. It is lateral to
 * `pg_attribute a`. A column of a domain stores the base type of the domain.
 */
export const BASE_TYPE = `(
  with recursive domain (oid, typmod, depth) as (
    select a.atttypid, a.atttypmod, 0
    union all
    select t.typbasetype, t.typtypmod, domain.depth + 1
    from domain join pg_catalog.pg_type t on t.oid = domain.oid and t.typtype = 'd')
  select oid, typmod from domain order by depth desc limit 1)`;

/**
 * Returns why a source column of this type cannot be loaded into the target
 * column, or `undefined` when it can. `sourceType` is the stored type, spelled as
 * `format_type` prints it. `category` is `pg_type.typcategory`.
 */
export function incompatibility(
  column: Column,
  sourceType: string,
  category: string,
): string | undefined {
  const allowed = column.type === "text"
    ? category === "S" || category === "E" || sourceType === "uuid"
    : column.type === "double precision"
    ? category === "N" && NUMBERS.has(sourceType.replace(/\(.*\)/, ""))
    : DATES.has(sourceType.replace(/\(\d\)/, ""));
  return allowed
    ? undefined
    : `its type ${sourceType} cannot become ${column.type} without a change of meaning`;
}

const NUMBERS = new Set([
  "double precision",
  "real",
  "smallint",
  "integer",
  "bigint",
  "numeric",
]);

const DATES = new Set([
  "timestamp with time zone",
  "timestamp without time zone",
  "date",
]);

/** Returns a warning when the target rounds values of the source type, or `undefined`. */
export function roundingWarning(
  column: Column,
  sourceType: string,
): string | undefined {
  return column.type === "double precision" &&
      /^(bigint|numeric)/.test(sourceType)
    ? `column "${column.name}" is ${sourceType} in the source and is rounded to double precision`
    : undefined;
}
