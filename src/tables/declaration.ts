/**
 * The declaration of a table: its source, its target and their columns. DDL,
 * casts, fingerprints, COPY lists and column checks are derived from it.
 *
 * @module
 */
import { printable } from "../format.ts";
import type { TypeName } from "./column_types.ts";

/** A schema and the name of a relation in it, not quoted. */
export interface RelationName {
  readonly schema: string;
  readonly name: string;
}

/** Returns the qualified name, with quotes where SQL needs them to keep its letters. */
export function formatRelation({ schema, name }: RelationName): string {
  return `${formatName(schema)}.${formatName(name)}`;
}

/** Returns the name, with quotes where SQL needs them to keep its letters. */
export function formatName(name: string): string {
  return /^[a-z_][a-z0-9_$]*$/.test(name)
    ? name
    : `"${name.replaceAll('"', '""')}"`;
}

/** One column of a target. */
export interface Column {
  readonly name: string;
  /** Type in the warehouse. The source value is cast to it where it is a built-in type. */
  readonly type: TypeName;
  /** Source column where its name differs. */
  readonly from?: string;
  /** SQL expression over the source columns, in place of a source column. */
  readonly expression?: string;
  /**
   * Whether the column is copied and compared as text, because its binary form
   * contains OIDs of one server.
   */
  readonly isText?: boolean;
  /** Attributes and built-in types inside of a user-defined type of the source, in order: `a`, `a.b integer`. */
  readonly layout?: readonly string[];
}

/** The allowed ways to treat new columns of the source. The first one is the default. */
export const NEW_COLUMNS = ["ignore", "add", "fail"] as const;

/** A condition on the rows of a target. A load that breaks it does not become visible. */
export type TableCheck =
  | {
    readonly kind: "not_null" | "unique";
    readonly columns: readonly string[];
  }
  | {
    readonly kind: "sql";
    /** A query of the warehouse that returns one boolean. */
    readonly sql: string;
  };

/** Maximum number of characters of a check's query in a name. */
const MAX_QUERY_LENGTH = 80;

/** Returns the name of a check for messages and events, such as `unique (id)`. */
export function formatCheck(check: TableCheck): string {
  if (check.kind !== "sql") {
    return printable(`${check.kind} (${check.columns.join(", ")})`);
  }
  const letters = [...printable(check.sql)];
  const shown = letters.slice(0, MAX_QUERY_LENGTH).join("");
  return `sql (${shown}${letters.length > MAX_QUERY_LENGTH ? "…" : ""})`;
}

/** The declaration of a source table, and of the warehouse table that is kept equal to it. */
export interface TableDeclaration {
  /** Name for users, as in `load --table closed_deal`. */
  readonly name: string;
  /** Name that selects several tables. */
  readonly group?: string;
  readonly source: RelationName;
  readonly target: RelationName;
  /** The columns of the target, or `undefined` for every column of the source. */
  readonly columns: readonly Column[] | undefined;
  /** SQL condition over the source columns. Rows that do not meet it are not loaded. */
  readonly where?: string;
  /** Target columns that identify a row. A load never trusts that they do. */
  readonly key?: readonly string[];
  /**
   * The treatment of columns that the source has and the target lacks. Only where
   * `columns` is undefined.
   */
  readonly newColumns?: (typeof NEW_COLUMNS)[number];
  /** The share of the target's rows that a load may remove, in place of MAX_SHRINK. */
  readonly maxShrink?: number;
  /** Conditions that the loaded rows must meet. */
  readonly checks?: readonly TableCheck[];
}

/** A table whose columns are known. */
export interface Table extends TableDeclaration {
  readonly columns: readonly Column[];
}

/** Returns the names of the tables. */
export function namesOf(
  tables: readonly TableDeclaration[],
): readonly string[] {
  return tables.map(({ name }) => name);
}

/** Why a group cannot be selected where no table has one, and the remedy. */
export const NO_GROUP =
  "no table has a group. Give tables the key group in TABLES_FILE, or name the tables";

/** Returns the names of the groups, each once. */
export function groupsOf(
  tables: readonly TableDeclaration[],
): readonly string[] {
  return [...new Set(tables.flatMap(({ group = [] }) => group))];
}

/**
 * Returns the tables of the given names and groups, each once, in the order of
 * `tables`. Returns all tables where neither is given.
 */
export function selectTables<T extends TableDeclaration>(
  tables: readonly T[],
  names: readonly string[],
  groups: readonly string[] = [],
): readonly T[] {
  if (names.length + groups.length === 0) return tables;
  return tables.filter(({ name, group }) =>
    names.includes(name) || group !== undefined && groups.includes(group)
  );
}

/** OIDs below come with PostgreSQL: they are the same on all servers, and no type among them is a domain. */
export const FIRST_VARIABLE_OID = 10_000;

/**
 * SQL, lateral to `pg_attribute a`, of the stored type of a column: `oid` and
 * `typmod`. A domain stores its base type, through any number of domains.
 * `offset 0` makes the server look the type up instead of scanning all types.
 */
export const BASE_TYPE = `(
  with recursive domain (oid, typmod, depth) as (
    select a.atttypid, a.atttypmod, 0
    union all
    select t.typbasetype, t.typtypmod, domain.depth + 1
    from domain, lateral (
      select * from pg_catalog.pg_type t where t.oid = domain.oid and t.typtype = 'd' offset 0) t)
  select oid, typmod from domain order by depth desc limit 1)`;

/**
 * SQL of a recursive query `part`: the type of `a.atttypid` and the types inside of it,
 * by `oid`. Attributes of composite types have a `path`, and a `place` to sort by.
 */
export const PARTS = `recursive part (oid, place, path) as (
  select a.atttypid, '{}'::int8[], ''::text collate "C"
  union all
  select next.oid, part.place || next.place::int8, pg_catalog.concat_ws('.', nullif(part.path, ''), pg_catalog.quote_ident(next.name))
  from part, lateral (
    select * from pg_catalog.pg_type t where t.oid = part.oid offset 0) t, lateral (
    select t.typelem as oid, 0 as place, null as name where t.typcategory = 'A'
    union all select t.typbasetype, 0, null where t.typtype = 'd'
    union all select r.rngsubtype, 0, null from pg_catalog.pg_range r where t.oid in (r.rngtypid, r.rngmultitypid)
    union all select f.atttypid, f.attnum, f.attname from pg_catalog.pg_attribute f
      where f.attrelid = t.typrelid and f.attnum > 0 and not f.attisdropped) next)`;

/**
 * SQL over {@linkcode PARTS} and their `pg_type p` of the layout of a {@linkcode Column}.
 * It omits domains, which count as their base types.
 */
export const LAYOUT =
  `pg_catalog.json_agg(pg_catalog.concat_ws(' ', nullif(part.path, ''),
     case when p.oid < ${FIRST_VARIABLE_OID} then pg_catalog.format_type(p.oid, null) end) order by part.place)
     filter (where p.oid < ${FIRST_VARIABLE_OID} or part.path <> '' and p.typcategory <> 'A' and p.typtype in ('b', 'c', 'e'))`;
