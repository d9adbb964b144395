/**
 * Finds the source tables, locks them with the relations under views, and checks
 * their columns.
 *
 * @module
 */
import type { Session } from "../postgres/session.ts";
import { literal, qualified, type Row } from "../postgres/sql.ts";
import { ServiceError } from "../errors.ts";
import { HAS_STABLE_CTID } from "../diff/queries.ts";
import {
  BASE_TYPE,
  incompatibility,
  roundingWarning,
  type Table,
} from "../tables/declaration.ts";

/** A readable source table, view or the like. */
export interface SourceTable extends Table {
  readonly oid: number;
  /** `pg_class.relkind`: a table (r), partitioned (p), a view (v), materialized (m) or foreign (f). */
  readonly kind: string;
}

/** Warnings about each source table, or the reason why it cannot be loaded. */
export type SourceChecks = Map<string, readonly string[] | ServiceError>;

/** Returns the tables that exist and can be read. Puts the others into `found` with the reason. */
export async function findReadable(
  session: Session,
  tables: readonly Table[],
  found: SourceChecks,
): Promise<SourceTable[]> {
  const rows = await session.query(
    `select n.nspname as schema, c.relname as name, c.oid, c.relkind as kind,
       has_schema_privilege(n.oid, 'USAGE') and has_table_privilege(c.oid, 'SELECT') as readable
     from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
     where c.relkind in (${KINDS}) and (n.nspname, c.relname) in (${
      tables.map(({ source }) =>
        `(${literal(source.schema)}, ${literal(source.name)})`
      )
    })`,
  );
  return tables.flatMap((table) => {
    const { schema, name } = table.source;
    const row = rows.find((r) => r.schema === schema && r.name === name);
    if (!row || !row.readable) {
      const error = row
        ? new ServiceError(
          "permission_denied",
          `role "${session.config.user}" has no privilege to read ${schema}.${name} in the source`,
          {
            table: table.name,
            remedy:
              `Grant USAGE on schema ${schema} and SELECT on ${schema}.${name} to "${session.config.user}".`,
          },
        )
        : new ServiceError(
          "source_table_missing",
          `table ${schema}.${name} is missing in the source database "${session.config.database}"`,
          { table: table.name },
        );
      found.set(table.name, error);
      return [];
    }
    return [{ ...table, oid: row.oid, kind: row.kind }];
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
  /** Number of rows ever deleted, by the server's statistics. */
  readonly deletions: string;
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
  tables: readonly Table[],
): Promise<SourceRelation[]> {
  if (tables.length === 0) return [];
  const sources = await session.query(
    `select n.nspname as schema, c.relname as relation, ${READ_COLUMNS}, c.relhassubclass as parent
     from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
     where c.relkind in (${KINDS}) and (n.nspname, c.relname) in (${
      tables.map(({ source }) =>
        `(${literal(source.schema)}, ${literal(source.name)})`
      )
    })`,
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

const READ_COLUMNS =
  `c.oid, c.relkind as kind, pg_catalog.format('%I.%I', n.nspname, c.relname) as name,
  ${HAS_STABLE_CTID} as rowids, c.relispopulated as populated,
  pg_catalog.pg_stat_get_tuples_deleted(c.oid)::text as deletions`;

function readOf(table: string, row: Row, isSource: boolean): SourceRelation {
  return {
    table,
    isSource,
    oid: row.oid,
    kind: row.kind,
    relation: row.name,
    hasStableCtid: row.rowids,
    deletions: row.deletions,
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
  { name: table, source }: Table,
  reads: readonly SourceRelation[],
): ServiceError | undefined {
  const name = `${source.schema}.${source.name}`;
  const foreign = reads.find((r) => r.kind === "f" && r.isAsked);
  if (foreign) {
    return new ServiceError(
      "source_foreign",
      `${name} ${
        foreign.isSource
          ? "is a foreign table"
          : `reads the foreign table ${foreign.relation}`
      }, and the source snapshot does not cover foreign tables`,
      { table },
    );
  }
  const empty = reads.find((r) => r.isAsked && !r.isPopulated);
  return empty && new ServiceError(
    "source_unpopulated",
    `the materialized view ${empty.relation}${
      empty.isSource ? "" : `, which ${name} reads,`
    } has never been filled`,
    {
      table,
      remedy: `Run REFRESH MATERIALIZED VIEW ${empty.relation} in the source.`,
    },
  );
}

/** Checks the columns of every table. */
export async function checkColumns(
  session: Session,
  tables: readonly SourceTable[],
): Promise<[string, readonly string[] | ServiceError][]> {
  if (tables.length === 0) return [];
  const columns = await session.query(
    `select a.attrelid as oid, a.attname as column,
       pg_catalog.format_type(base.oid, base.typmod) as type, t.typcategory as category
     from pg_catalog.pg_attribute a cross join lateral ${BASE_TYPE} base
       join pg_catalog.pg_type t on t.oid = base.oid
     where a.attnum > 0 and not a.attisdropped and a.attrelid in (${
      tables.map(({ oid }) => oid)
    }) order by a.attnum`,
  );
  return tables.map((table) => [
    table.name,
    checkColumnsOf(table, columns.filter((c) => c.oid === table.oid)),
  ]);
}

function checkColumnsOf(
  table: Table,
  columns: readonly Row[],
): readonly string[] | ServiceError {
  const { schema, name } = table.source;
  const warnings: string[] = [];
  for (const column of table.columns) {
    const found = columns.find((c) => c.column === column.name);
    if (!found) {
      return new ServiceError(
        "source_column_missing",
        `column "${column.name}" is missing in ${schema}.${name}`,
        { table: table.name },
      );
    }
    const reason = incompatibility(column, found.type, found.category);
    if (reason) {
      return new ServiceError(
        "source_column_incompatible",
        `column "${column.name}" of ${schema}.${name} cannot be used: ${reason}`,
        { table: table.name },
      );
    }
    const rounding = roundingWarning(column, found.type);
    if (rounding) warnings.push(rounding);
  }
  const extra = columns
    .filter((c) => !table.columns.some((column) => column.name === c.column))
    .map((c) => `"${c.column}"`);
  if (extra.length > 0) {
    warnings.push(
      `${schema}.${name} has columns that the load ignores: ${
        extra.join(", ")
      }`,
    );
  }
  return warnings;
}
