/**
 * Finds the source tables, locks them with the relations under views, and checks
 * their columns.
 *
 * @module
 */
import type { Session } from "../postgres/session.ts";
import { identifier, literal, qualified, type Row } from "../postgres/sql.ts";
import { ServiceError } from "../errors.ts";
import { HAS_STABLE_CTID } from "../diff/queries.ts";
import {
  fitOf,
  formatTypeName,
  isBuiltIn,
  isUnloadable,
  isUserDefined,
  parseTypeName,
  type TypeName,
} from "../tables/column_types.ts";
import {
  BASE_TYPE,
  type Column,
  FIRST_VARIABLE_OID,
  formatCheck,
  formatRelation,
  LAYOUT,
  PARTS,
  type Table,
  type TableDeclaration,
} from "../tables/declaration.ts";
import { tableError } from "./table_errors.ts";

/** A readable source relation, such as a table or a view. */
export interface SourceTable extends TableDeclaration {
  readonly oid: number;
  /** `pg_class.relkind`: a table (r), partitioned (p), a view (v), materialized (m) or foreign (f). */
  readonly kind: string;
  /** Size by the statistics of the server, in pages. 0 for views. */
  readonly pages: number;
}

/** A table with its columns, and warnings about its source. */
export interface ResolvedTable {
  readonly table: Table;
  readonly warnings: readonly string[];
  /** The inputs of a row's values other than the row. */
  readonly dependsOn: "nothing" | "time zone" | "SQL";
}

/** Each table by its name, or the reason why it cannot be loaded. */
export type SourceChecks = Map<string, ResolvedTable | ServiceError>;

/** Returns SQL of the source tables that exist, for {@linkcode readableOf}. */
export function existingSql(tables: readonly TableDeclaration[]): string {
  return `select n.nspname as schema, c.relname as name, c.oid, c.relkind as kind, c.relpages as pages,
       has_schema_privilege(n.oid, 'USAGE') and has_table_privilege(c.oid, 'SELECT') as readable
     from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
     where ${isSource(tables)}`;
}

/** Returns the tables that exist and can be read. Puts the others into `found` with the reason. */
export function readableOf(
  rows: readonly Row[],
  session: Session,
  tables: readonly TableDeclaration[],
  found: SourceChecks,
): SourceTable[] {
  return tables.flatMap((table) => {
    const { schema, name } = table.source;
    const row = rows.find((r) => r.schema === schema && r.name === name);
    if (!row || !row.readable) {
      const error = row
        ? tableError(
          table.name,
          "permission_denied",
          `role "${session.config.user}" has no privilege to read ${
            formatRelation(table.source)
          } in the source`,
          `Grant USAGE on schema ${identifier(schema)} and SELECT on ${
            qualified(table.source)
          } to ${identifier(session.config.user)}.`,
        )
        : tableError(
          table.name,
          "source_table_missing",
          `table ${
            formatRelation(table.source)
          } is missing in the source database "${session.config.database}"`,
        );
      found.set(table.name, error);
      return [];
    }
    return [{ ...table, oid: row.oid, kind: row.kind, pages: row.pages }];
  });
}

/**
 * Returns SQL that takes the locks of reading the table, and reads nothing.
 *
 * LOCK includes partitions and children. On a view, LOCK skips materialized views
 * and requires more privileges of the owner than SELECT does. Planning a query
 * locks every relation that the query reads, with the privileges of the query.
 * With `where false` the planner would skip some of them.
 */
export function lockSql({ kind, source }: SourceTable): string {
  return isLockable(kind)
    ? `lock table ${qualified(source)} in access share mode`
    : `explain select * from ${qualified(source)}`;
}

/** Returns whether LOCK covers every relation that is read, without taking a snapshot. */
export function isLockable(kind: string): boolean {
  return kind === "r" || kind === "p";
}

/** A relation that reading a source table reads: the table, a relation under a view, a partition or a child. */
export interface SourceRelation {
  readonly table: string;
  readonly oid: number;
  readonly kind: string;
  /** Schema-qualified name, quoted where needed. */
  readonly relation: string;
  readonly isSource: boolean;
  readonly hasStableCtid: boolean;
  /** Number of rows ever inserted, updated and deleted, by the server's statistics. */
  readonly changes: string;
  /** Number of rows ever updated and deleted. */
  readonly removals: string;
  /** Whether it is the source, or a materialized view or foreign table that planning its query has locked. */
  readonly isAsked: boolean;
  readonly isPopulated: boolean;
}

/**
 * Returns the relations that reading the tables reads, by the catalog. Relations
 * that functions of a view read are not included.
 */
export async function findDependencies(
  session: Session,
  tables: readonly TableDeclaration[],
): Promise<SourceRelation[]> {
  if (tables.length === 0) return [];
  const sources = await session.query(
    `select n.nspname as schema, c.relname as relation, ${READ_COLUMNS}, c.relhassubclass as parent
     from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
     where ${isSource(tables)}`,
  );
  const reads = await Promise.all(tables.map(async ({ name, source }) => {
    const row = sources.find((s) =>
      s.schema === source.schema && s.relation === source.name
    );
    if (!row) return [];
    const isAlone = row.kind === "r" && !row.parent;
    return [
      readOf(name, row, true),
      ...isAlone ? [] : await findUnderlying(session, name, row.oid),
    ];
  }));
  return reads.flat();
}

/** Kinds of relations with rows. */
const KINDS = "'r', 'p', 'v', 'm', 'f'";

/** Returns an SQL condition for the sources of the tables. */
function isSource(tables: readonly TableDeclaration[]): string {
  const names = tables.map(({ source }) =>
    `(${literal(source.schema)}, ${literal(source.name)})`
  );
  // An earlier snapshot may have refused every table.
  return names.length === 0
    ? "false"
    : `c.relkind in (${KINDS}) and (n.nspname, c.relname) in (${names})`;
}

const READ_COLUMNS =
  `c.oid, c.relkind as kind, pg_catalog.format('%I.%I', n.nspname, c.relname) as name,
  ${HAS_STABLE_CTID} as rowids, c.relispopulated as populated,
  (pg_catalog.pg_stat_get_tuples_inserted(c.oid) + pg_catalog.pg_stat_get_tuples_updated(c.oid)
    + pg_catalog.pg_stat_get_tuples_deleted(c.oid))::text as changes,
  (pg_catalog.pg_stat_get_tuples_updated(c.oid) + pg_catalog.pg_stat_get_tuples_deleted(c.oid))::text as removals`;

function readOf(table: string, row: Row, isSource: boolean): SourceRelation {
  return {
    table,
    isSource,
    oid: row.oid,
    kind: row.kind,
    relation: row.name,
    hasStableCtid: row.rowids,
    changes: row.changes,
    removals: row.removals,
    isPopulated: row.populated,
    isAsked: isSource || row.asked,
  };
}

/** Returns the relations under a view, the partitions and the children, at any depth. */
async function findUnderlying(
  session: Session,
  table: string,
  oid: number,
): Promise<SourceRelation[]> {
  const rows = await session.query(
    `with recursive underlying (oid) as (
       values (${oid}::oid)
       union
       select next.oid from underlying join pg_catalog.pg_class c on c.oid = underlying.oid, lateral (
         select i.inhrelid as oid from pg_catalog.pg_inherits i where i.inhparent = c.oid
         union all
         select d.refobjid from pg_catalog.pg_rewrite r join pg_catalog.pg_depend d
           on d.classid = 'pg_catalog.pg_rewrite'::regclass and d.objid = r.oid
             and d.refclassid = 'pg_catalog.pg_class'::regclass
         where r.ev_class = c.oid and r.ev_type = '1' and c.relkind = 'v'
       ) next)
     select ${READ_COLUMNS}, c.relkind in ('m', 'f') and exists (select from pg_catalog.pg_locks l
         where l.pid = pg_catalog.pg_backend_pid() and l.locktype = 'relation' and l.relation = c.oid) as asked
     from underlying join pg_catalog.pg_class c on c.oid = underlying.oid
       join pg_catalog.pg_namespace n on n.oid = c.relnamespace
     where c.relkind in (${KINDS}) and c.oid <> ${oid} order by c.oid`,
  );
  return rows.map((row) => readOf(table, row, false));
}

/** Returns why a table that reads these relations cannot be loaded, or `undefined`. */
export function unsupportedReason(
  { name: table, source }: TableDeclaration,
  reads: readonly SourceRelation[],
): ServiceError | undefined {
  const name = formatRelation(source);
  const foreign = reads.find((r) => r.kind === "f" && r.isAsked);
  if (foreign) {
    return tableError(
      table,
      "source_foreign",
      `${name} ${
        foreign.isSource
          ? "is a foreign table"
          : `reads the foreign table ${foreign.relation}`
      }, and the source snapshot does not cover foreign tables`,
    );
  }
  const empty = reads.find((r) => r.isAsked && !r.isPopulated);
  return empty &&
    tableError(
      table,
      "source_unpopulated",
      `the materialized view ${empty.relation}${
        empty.isSource ? "" : `, which ${name} reads,`
      } has never been filled`,
      `Run REFRESH MATERIALIZED VIEW ${empty.relation} in the source.`,
    );
}

/** A column of a source table, or the value of an expression over it. */
interface SourceColumn {
  readonly name: string;
  readonly type: TypeName;
  /** `pg_type.typcategory` of the base type. */
  readonly category: string;
  readonly isText: boolean;
  readonly layout: readonly string[] | null;
  /** A type inside of it whose values cannot be loaded. */
  readonly unloadable: string | undefined;
  /** Whether values of the type have a binary form that a server can receive. */
  readonly isBinary: boolean;
}

/** Types with an empty value whose binary form no server accepts. */
const WITHOUT_BINARY =
  "('tsquery'::regtype, 'oidvector'::regtype, 'int2vector'::regtype)";

/**
 * SQL condition for a type that older servers read differently inside of another type.
 * PostgreSQL 16 and older read the bytes of an infinite interval as a finite one, and
 * refuse its text.
 */
const isNewInside = (oid: string) =>
  `${oid} = 'interval'::regtype and pg_catalog.current_setting('server_version_num')::int >= 170000`;

/** Columns of a query over `t`, the `pg_type` of `base`, for {@linkcode sourceColumn}. */
const TYPE_COLUMNS =
  `pg_catalog.format_type(base.oid, base.typmod) as type, t.typcategory as category,
   t.typsend <> 0 and t.typreceive <> 0 as is_binary,
   -- The binary form of an array or a row names the types inside by their OIDs.
   -- Only those of the types that come with PostgreSQL are the same everywhere.
   case when base.oid >= ${FIRST_VARIABLE_OID} or base.oid in ${WITHOUT_BINARY} or t.typelem in ${WITHOUT_BINARY} or ${
    isNewInside("t.typelem")
  } then (
     with ${PARTS}
     select pg_catalog.json_build_object('layout', ${LAYOUT},
       'types', pg_catalog.json_agg(pg_catalog.format_type(p.oid, null)),
       'isText', pg_catalog.bool_or(p.oid in ${WITHOUT_BINARY} or ${
    isNewInside("p.oid")
  } or p.typcategory = 'A' and p.typelem >= ${FIRST_VARIABLE_OID}
       or exists (select from pg_catalog.pg_attribute f where f.attrelid = p.typrelid
         and f.attnum > 0 and not f.attisdropped and f.atttypid >= ${FIRST_VARIABLE_OID})))
     from part join pg_catalog.pg_type p on p.oid = part.oid) end as parts`;

function sourceColumn(row: Row): SourceColumn {
  return {
    name: row.column,
    type: typeNameOf(row.type),
    category: row.category,
    isText: row.parts?.isText ?? false,
    layout: row.parts?.layout ?? null,
    unloadable: row.parts?.types.find(isUnloadable),
    isBinary: row.is_binary,
  };
}

/** Returns the type that `format_type` prints so. The modifiers of an extension's type can have any form. */
function typeNameOf(text: string): TypeName {
  try {
    return parseTypeName(text);
  } catch {
    return { base: text, modifiers: "", isArray: false };
  }
}

/** Returns the columns of locked tables, for {@linkcode resolveTables}, and the bytes of each table, including TOAST. */
export async function findColumns(
  session: Session,
  tables: readonly SourceTable[],
): Promise<readonly Row[]> {
  if (tables.length === 0) return [];
  return await session.query(
    `select a.attrelid as oid, a.attname as column, found.bytes, ${TYPE_COLUMNS}
     from (select oid, pg_catalog.pg_table_size(oid)::float8 as bytes
         from pg_catalog.unnest('{${
      tables.map(({ oid }) => oid)
    }}'::oid[]) oid offset 0) found
       join pg_catalog.pg_attribute a on a.attrelid = found.oid
       cross join lateral ${BASE_TYPE} base join pg_catalog.pg_type t on t.oid = base.oid
     where a.attnum > 0 and not a.attisdropped order by a.attnum`,
  );
}

/** Checks the types of the columns of every table. */
export async function resolveTables(
  session: Session,
  tables: readonly SourceTable[],
  rows: readonly Row[],
): Promise<[string, ResolvedTable | ServiceError][]> {
  const resolved: [string, ResolvedTable | ServiceError][] = [];
  for (const declaration of tables) {
    const columns = rows.filter((row) => row.oid === declaration.oid)
      .map(sourceColumn);
    const values = await describeExpressions(session, declaration);
    resolved.push([
      declaration.name,
      values instanceof ServiceError
        ? values
        : resolveTable(declaration, columns, values),
    ]);
  }
  return resolved;
}

/**
 * Returns the types of the expressions, by the name of the column. Evaluates
 * nothing. Returns the error of the first fragment that the server refuses.
 */
async function describeExpressions(
  session: Session,
  table: SourceTable,
): Promise<ReadonlyMap<string, SourceColumn> | ServiceError> {
  const { columns = [], where } = table;
  const found = new Map<string, SourceColumn>();
  if (where !== undefined) {
    const refused = await trySql(
      session,
      `select from ${qualified(table.source)} where ${fragment(where)} limit 0`,
    );
    if (refused instanceof ServiceError) {
      return badFragment(table, "where", refused);
    }
  }
  for (const { name, expression } of columns) {
    if (expression === undefined) continue;
    const rows = await trySql(
      session,
      `select ${literal(name)} as column, ${TYPE_COLUMNS}
       from (select 1) one left join (
           select ${fragment(expression)} as value from ${
        qualified(table.source)
      } limit 0) q on true
         cross join lateral (select pg_catalog.pg_typeof(q.value)::oid as atttypid, -1 as atttypmod) a
         cross join lateral ${BASE_TYPE} base join pg_catalog.pg_type t on t.oid = base.oid`,
    );
    if (rows instanceof ServiceError) {
      return badFragment(table, `the expression of column "${name}"`, rows);
    }
    found.set(name, sourceColumn(rows[0]!));
  }
  return found;
}

/** Runs a statement that may fail without ending the transaction. Returns the server's error. */
async function trySql(
  session: Session,
  sql: string,
): Promise<Row[] | ServiceError> {
  await session.query("savepoint fragment");
  try {
    const rows = await session.query(sql);
    await session.query("release savepoint fragment");
    return rows;
  } catch (error) {
    if (
      !(error instanceof ServiceError) || !error.sqlstate || session.failure
    ) throw error;
    // No snapshot is exported from a subtransaction.
    await session.query(
      "rollback to savepoint fragment; release savepoint fragment",
    );
    return error;
  }
}

function badFragment(
  { name }: TableDeclaration,
  what: string,
  cause: ServiceError,
): ServiceError {
  return new ServiceError(
    "configuration",
    `the source refuses ${what}: ${cause.reason}`,
    {
      table: name,
      cause,
      remedy:
        "Correct it in TABLES_FILE. Name functions of extensions with their schema.",
    },
  );
}

/** Returns the fragment so that it cannot leave its brackets. */
function fragment(text: string): string {
  return `(${text}\n)`;
}

/** Returns the table with the columns that a load copies. */
function resolveTable(
  { oid: _oid, kind: _kind, pages: _pages, ...declaration }: SourceTable,
  found: readonly SourceColumn[],
  expressions: ReadonlyMap<string, SourceColumn>,
): ResolvedTable | ServiceError {
  const table = declaration.name;
  const relation = formatRelation(declaration.source);
  const warnings: string[] = [];
  const columns: Column[] = [];
  let dependsOnTimezone = false;
  const declared = declaration.columns ??
    found.map(({ name, type }): Column => ({ name, type }));
  for (const column of declared) {
    const from = column.from ?? column.name;
    const source = expressions.get(column.name) ??
      found.find((c) => c.name === from);
    if (!source) {
      return tableError(
        table,
        "source_column_missing",
        `column "${from}" is missing in ${relation}`,
      );
    }
    const isExpression = column.expression !== undefined;
    const fit = fitOf(
      source.type,
      source.category,
      column.type,
      isExpression,
    );
    const subject = !isExpression
      ? `column "${from}" of ${relation}`
      : `the expression of column "${column.name}"`;
    const isSame = source.type.base === column.type.base;
    // A DATE or TIMESTAMP becomes an instant by the rules of a zone, which can change.
    dependsOnTimezone ||= !isSame &&
      column.type.base === "timestamp with time zone";
    const reason = fit.kind === "refused"
      ? fit.reason
      : isSame && source.unloadable
      ? `it contains values of type ${source.unloadable}, which have a meaning on one server only`
      : isSame && !source.isBinary
      ? `no server accepts values of its type ${formatTypeName(source.type)}`
      : undefined;
    if (reason) {
      return tableError(
        table,
        "source_column_incompatible",
        `${subject} cannot be used: ${reason}`,
        // The source returns the base type of a domain.
        fit.kind === "refused" && isUserDefined(column.type)
          ? `Declare the type ${
            formatTypeName(source.type)
          } in TABLES_FILE, also where ${
            formatTypeName(column.type)
          } is a domain.`
          : undefined,
      );
    }
    if (fit.kind === "rounds") {
      warnings.push(`column "${from}" ${fit.warning}`);
    }
    const { layout } = source;
    // A cast to a built-in type has a binary form.
    const isText = source.isText && (isSame || !isBuiltIn(column.type));
    columns.push({
      ...column,
      ...isText ? { isText } : {},
      ...layout && !isBuiltIn(column.type) ? { layout } : {},
    });
  }
  if (columns.length === 0) {
    return tableError(
      table,
      "source_column_missing",
      `${relation} has no columns`,
    );
  }
  const { key = [], checks = [] } = declaration;
  const named = [
    { by: "the key", names: key },
    ...checks.flatMap((check) =>
      check.kind === "sql"
        ? []
        : [{ by: `check ${formatCheck(check)}`, names: check.columns }]
    ),
  ];
  for (const { by, names } of named) {
    const missing = names.find((n) => !columns.some(({ name }) => name === n));
    if (missing === undefined) continue;
    return tableError(
      table,
      "configuration",
      `column "${missing}" of ${by} is missing in ${relation}`,
      `Correct ${by} in TABLES_FILE.`,
    );
  }
  const used = new Set(declared.map(({ name, from }) => from ?? name));
  const hasExpressions = expressions.size > 0;
  const extra = found.filter((c) => !used.has(c.name))
    .map((c) => `"${c.name}"`);
  // An expression may use a column that no other key names.
  if (extra.length > 0 && !hasExpressions) {
    warnings.push(
      `${relation} has columns that the load ignores: ${extra.join(", ")}`,
    );
  }
  const isComputed = expressions.size > 0 || declaration.where !== undefined;
  return {
    table: { ...declaration, columns },
    warnings,
    dependsOn: isComputed ? "SQL" : dependsOnTimezone ? "time zone" : "nothing",
  };
}

/**
 * Returns SQL of the rows of the source. It is the source table, or a subquery whose
 * columns have the names of the target's.
 */
export function sourceRelation(
  { source, columns, where }: Table,
  hasStableCtid: boolean,
): string {
  const relation = qualified(source);
  const isMapped = where !== undefined ||
    columns.some((column) =>
      column.expression !== undefined ||
      (column.from ?? column.name) !== column.name
    );
  if (!isMapped) return relation;
  const values = columns.map(({ name, from, expression }) =>
    `${
      expression === undefined ? identifier(from ?? name) : fragment(expression)
    } as ${identifier(name)}`
  );
  // These columns lead to the row of the table.
  const row = hasStableCtid ? ["ctid", "xmin"] : [];
  return `(select ${[...row, ...values]}
    from ${relation}${
    where === undefined ? "" : ` where ${fragment(where)}`
  }) mapped`;
}
