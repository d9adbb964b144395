/**
 * Finds the warehouse table in the catalog.
 *
 * @module
 */
import type { Session } from "../postgres/session.ts";
import { literal, type Row } from "../postgres/sql.ts";
import { HAS_STABLE_CTID } from "../diff/queries.ts";
import { HASH_PROBE } from "../diff/row_hash.ts";
import {
  BASE_TYPE,
  FIRST_VARIABLE_OID,
  type Table,
  type TableDeclaration,
} from "../tables/declaration.ts";

/** The warehouse table that a load writes. */
export interface Target extends
  Pick<
    FoundTarget,
    | "hashProbe"
    | "hasStableCtid"
    | "hasNoSideEffects"
    | "callsFunctions"
    | "lacksReplicaIdentity"
    | "identityColumns"
    | "references"
  > {
  /** Quoted, schema-qualified. */
  readonly relation: string;
  readonly oid: number;
  /** Whether this transaction created it, so that it is empty and invisible to others. */
  readonly isNew: boolean;
  /** The table with the columns that a load writes. */
  readonly table: Table;
  readonly warnings: readonly string[];
}

/** A foreign key that refers to the target. */
export interface Reference {
  readonly name: string;
  /** Quoted, qualified name of the table that refers to the target. */
  readonly from: string;
  /** The columns that it refers to. */
  readonly columns: readonly string[];
  /** Whether a deletion changes the referring rows: CASCADE, SET NULL, SET DEFAULT. */
  readonly actsOnDelete: boolean;
  readonly actsOnUpdate: boolean;
  /** Whether it is RESTRICT, which is checked at once also where the row is inserted again. */
  readonly restricts: boolean;
}

/** A column of the warehouse table. */
interface FoundColumn {
  readonly name: string;
  /** Declared type. A domain has its name. */
  readonly declared: string;
  /** Stored type: the base type of a domain. */
  readonly type: string;
  readonly isGenerated: boolean;
  /** Whether it is GENERATED ALWAYS AS IDENTITY. */
  readonly isIdentity: boolean;
  readonly isNotNull: boolean;
}

/** The object that has the target's name in the warehouse. */
export interface FoundTarget {
  readonly exists: boolean;
  readonly oid: number | null;
  /** `pg_class.relkind`, or `T` for a type without a table. */
  readonly kind: string;
  readonly columns: readonly FoundColumn[];
  /** Whether this transaction holds the lock of a load. */
  readonly isLocked: boolean;
  readonly hashProbe: string;
  readonly hasStableCtid: boolean;
  /**
   * Whether writing to it may call functions of others: in triggers, rules, checks,
   * domains, indexes or partition keys. They may need the role's own search path.
   */
  readonly callsFunctions: boolean;
  /** Whether writing to it calls no function of others. */
  readonly hasNoSideEffects: boolean;
  /** Quoted, qualified names of tables that inherit from it. Partitions do not count. */
  readonly children: readonly string[];
  /** Quoted, qualified names of its foreign partitions. */
  readonly foreignParts: readonly string[];
  /** Rules that keep a load from writing. */
  readonly obstructingRules: readonly string[];
  readonly references: readonly Reference[];
  /** Whether it is published without the replica identity that its writes need. */
  readonly lacksReplicaIdentity: boolean;
  /** Columns that are GENERATED ALWAYS AS IDENTITY, which no UPDATE can set. */
  readonly identityColumns: readonly string[];
  /** The role of the session. */
  readonly role: string;
  /** Whether the role has the rights of the table's owner. */
  readonly isOwned: boolean;
  readonly mayUseSchema: boolean;
  /** Whether the role can create the table, and its schema where it is missing. */
  readonly mayCreate: boolean;
  /** Whether the role can create the temporary table of an update by key. */
  readonly mayUseTemporary: boolean;
  /** Privileges that a load needs and the role does not have. */
  readonly missingPrivileges: readonly string[];
  /** Whether a policy hides rows from the role. */
  readonly hasRowSecurity: boolean;
}

/**
 * SQL that is true for a relation `c` whose rules, checks, indexes, partition keys or
 * types may call functions. Domains have checks, and arrays, composite types and
 * ranges can contain domains.
 */
const HAS_CODE =
  `(c.relkind <> 'r' or c.relispartition or c.relhasrules or c.relchecks > 0 or exists (
         select from pg_catalog.pg_index x where x.indrelid = c.oid
           and (x.indexprs is not null or x.indpred is not null)) or exists (
         with recursive part (oid) as (
           select d.atttypid from pg_catalog.pg_attribute d where d.attrelid = c.oid and d.attnum > 0
           union
           select next.oid from part, lateral (
             select * from pg_catalog.pg_type t where t.oid = part.oid offset 0) t, lateral (
             select t.typelem as oid where t.typcategory = 'A'
             union all select d.atttypid from pg_catalog.pg_attribute d
               where t.typtype = 'c' and d.attrelid = t.typrelid and d.attnum > 0
             union all select r.rngsubtype from pg_catalog.pg_range r where r.rngtypid = t.oid
             union all select r.rngtypid from pg_catalog.pg_range r where r.rngmultitypid = t.oid) next)
         select from part, lateral (
           select * from pg_catalog.pg_type t where t.oid = part.oid offset 0) t
         where t.typtype = 'd' or t.typnamespace <> 'pg_catalog'::pg_catalog.regnamespace and exists (
           select from pg_catalog.pg_range r where r.rngtypid = t.oid and (r.rngcanonical <> 0 or r.rngsubdiff <> 0))))`;

/** SQL that is true for a relation `c` with triggers that do more than check unique values and foreign keys. */
const HAS_ACTING_TRIGGERS =
  `exists (select from pg_catalog.pg_trigger g join pg_catalog.pg_proc f on f.oid = g.tgfoid
       where g.tgrelid = c.oid and not (g.tgisinternal
         and f.proname ~ '^(RI_FKey_(check|noaction|restrict)_|unique_key_recheck)'))`;

/**
 * SQL that is true for a relation `c` without triggers, rules, partitions, children and
 * code. It is planned much faster than the queries that search for them.
 */
const IS_PLAIN =
  `(${HAS_STABLE_CTID} and not c.relispartition and not c.relhastriggers and c.relchecks = 0
     and not exists (select from pg_catalog.pg_index x where x.indrelid = c.oid
       and (x.indexprs is not null or x.indpred is not null))
     and not exists (select from pg_catalog.pg_attribute a
       where a.attrelid = c.oid and a.attnum > 0 and a.atttypid >= ${FIRST_VARIABLE_OID}))`;

/** The targets, before they are locked. */
export interface UnlockedTargets {
  /** Schemas of targets that do not exist, each once. */
  readonly missingSchemas: readonly string[];
  /** For each target that exists: whether writing to it may write to another table. */
  readonly acting: ReadonlyMap<string, boolean>;
}

/** Looks up the targets in the catalog. */
export async function lookUpTargets(
  tables: readonly TableDeclaration[],
  warehouse: Pick<Session, "query">,
): Promise<UnlockedTargets> {
  const rows = await warehouse.query(
    `select t.name, t.schema, n.oid as namespace, c.oid, ${IS_PLAIN} as plain
     from (values ${
      tables.map(({ name, target }) =>
        `(${[name, target.schema, target.name].map(literal)})`
      )
    }) t (name, schema, relation)
       left join pg_catalog.pg_namespace n on n.nspname = t.schema
       left join pg_catalog.pg_class c on c.relnamespace = n.oid and c.relname = t.relation`,
  );
  const existing = rows.filter(({ oid }) => oid !== null);
  const oids = existing.flatMap(({ oid, plain }) => plain ? [] : [oid]);
  const acting = oids.length === 0 ? [] : await warehouse.query(
    `select c.oid from pg_catalog.pg_class c where c.oid in (${oids})
       and (not ${HAS_STABLE_CTID} or ${HAS_ACTING_TRIGGERS} or ${HAS_CODE})`,
  );
  const missing = rows.filter(({ namespace }) => namespace === null);
  return {
    missingSchemas: [...new Set(missing.map(({ schema }) => schema))],
    acting: new Map(
      existing.map((
        { name, oid },
      ) => [name, acting.some((row) => row.oid === oid)]),
    ),
  };
}

/**
 * Returns the OIDs of the relations whose rows the open transaction may have changed, and
 * of those that they are part of. A transaction keeps its locks until its end, except
 * for what is undone.
 */
export async function writtenRelations(
  warehouse: Session,
): Promise<ReadonlySet<number>> {
  const rows = await warehouse.query(
    `with recursive written (oid) as (
       select relation from pg_catalog.pg_locks
       where pid = pg_catalog.pg_backend_pid() and locktype = 'relation' and granted
         -- Those of DML, of new parts and children, and of TRUNCATE and other DDL.
         and mode in ('RowExclusiveLock', 'ShareUpdateExclusiveLock', 'AccessExclusiveLock')
       union
       select i.inhparent from written w join pg_catalog.pg_inherits i on i.inhrelid = w.oid)
     select oid from written`,
  );
  return new Set(rows.map(({ oid }) => oid));
}

/**
 * Returns the object that has the target's name.
 *
 * @param isDefined whether this transaction defines it, which can call event triggers.
 */
export async function findTarget(
  table: TableDeclaration,
  warehouse: Pick<Session, "query">,
  isDefined = false,
): Promise<FoundTarget> {
  const { schema, name } = table.target;
  // Facts about the table are subqueries of one row. With a row for each column, the server would repeat them.
  const [found] = await warehouse.query(
    `select c.oid, coalesce(c.relkind::text, case when standalone.oid is not null then 'T' end) as kind,
       (select pg_catalog.json_agg(pg_catalog.json_build_object(
          'name', a.attname, 'declared', pg_catalog.format_type(a.atttypid, a.atttypmod),
          'type', pg_catalog.format_type(base.oid, base.typmod), 'isGenerated', a.attgenerated <> '',
          'isIdentity', a.attidentity = 'a', 'isNotNull', a.attnotnull,
          'mayInsert', pg_catalog.has_column_privilege(c.oid, a.attnum, 'INSERT'),
          'mayUpdate', pg_catalog.has_column_privilege(c.oid, a.attnum, 'UPDATE')) order by a.attnum)
        from pg_catalog.pg_attribute a cross join lateral ${BASE_TYPE} base
        where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped) as columns,
       ${HASH_PROBE} as probe, ${HAS_STABLE_CTID} as rowids, ${IS_PLAIN} as plain,
       ${MAY_LACK_REPLICA_IDENTITY} as may_lack_identity,
       ${isDefined} and exists (select from pg_catalog.pg_event_trigger where evtenabled <> 'D') as calls_event_triggers,
       exists (select from pg_catalog.pg_locks l where l.pid = pg_catalog.pg_backend_pid()
         and l.locktype = 'relation' and l.relation = c.oid and l.mode = 'ShareRowExclusiveLock') as is_locked,
       pg_catalog.pg_has_role(c.relowner, 'USAGE') as is_owned, current_user as role, pg_catalog.has_schema_privilege(n.oid, 'USAGE') as may_use,
       case when n.oid is null
         then pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE')
         else pg_catalog.has_schema_privilege(n.oid, 'CREATE') end as may_create,
       pg_catalog.has_database_privilege(pg_catalog.current_database(), 'TEMPORARY') as may_temporary,
       pg_catalog.has_table_privilege(c.oid, 'SELECT') as may_select,
       pg_catalog.has_table_privilege(c.oid, 'DELETE') as may_delete,
       case when c.relkind in ('r', 'p') then pg_catalog.row_security_active(c.oid) else false end as row_security
     from (select 1) one
       left join pg_catalog.pg_namespace n on n.nspname = ${literal(schema)}
       left join pg_catalog.pg_class c on c.relnamespace = n.oid and c.relname = ${
      literal(name)
    }
       left join pg_catalog.pg_type standalone on standalone.typnamespace = n.oid
         and standalone.typname = ${literal(name)} and standalone.typrelid = 0
         -- The server renames an array type that has the name of a new table.
         and not exists (select from pg_catalog.pg_type e where e.typarray = standalone.oid)`,
  );
  const columns: (FoundColumn & { mayInsert: boolean; mayUpdate: boolean })[] =
    found!.columns ?? [];
  const missing = {
    // For a table that was dropped meanwhile, the answer is null, not false.
    SELECT: found!.may_select === false,
    INSERT: columns.some(({ mayInsert }) => mayInsert === false),
    UPDATE: table.key !== undefined &&
      columns.some(({ mayUpdate }) => mayUpdate === false),
    DELETE: found!.may_delete === false,
  };
  const isPlain = found!.oid === null || found!.plain;
  const more = isPlain ? {} : await findMore(table, found!.oid, warehouse);
  const hasStableCtid = found!.rowids ?? false;
  const callsFunctions = Boolean(more.has_code || more.has_triggers);
  return {
    exists: Boolean(found!.kind),
    oid: found!.oid,
    kind: found!.kind ?? "",
    columns,
    isLocked: found!.is_locked,
    hashProbe: found!.probe,
    hasStableCtid,
    callsFunctions,
    hasNoSideEffects: hasStableCtid && !callsFunctions &&
      !found!.calls_event_triggers,
    children: more.children ?? [],
    foreignParts: more.foreign_parts ?? [],
    obstructingRules: more.rules ?? [],
    references: more.references ?? [],
    lacksReplicaIdentity: found!.may_lack_identity === true &&
      await isPublished(table, warehouse),
    identityColumns: columns.filter(({ isIdentity }) => isIdentity)
      .map(({ name }) => name),
    role: found!.role,
    isOwned: found!.is_owned ?? false,
    mayUseSchema: found!.may_use ?? true,
    mayCreate: found!.may_create !== false,
    mayUseTemporary: found!.may_temporary,
    missingPrivileges: Object.entries(missing)
      .flatMap(([privilege, isMissing]) => isMissing ? [privilege] : []),
    hasRowSecurity: found!.row_security ?? false,
  };
}

/** Returns the facts of a target that is not plain. A plain one has none of them. */
async function findMore(
  { key }: TableDeclaration,
  oid: number,
  warehouse: Pick<Session, "query">,
): Promise<Row> {
  const [row] = await warehouse.query(
    `select ${HAS_CODE} as has_code, c.relhastriggers as has_triggers,
       (select pg_catalog.json_agg(pg_catalog.format('%I.%I', cn.nspname, child.relname) order by child.oid)
        from pg_catalog.pg_inherits i join pg_catalog.pg_class child on child.oid = i.inhrelid
          join pg_catalog.pg_namespace cn on cn.oid = child.relnamespace
        where i.inhparent = c.oid and c.relkind = 'r') as children,
       (select pg_catalog.json_agg(pg_catalog.format('%I.%I', pn.nspname, part.relname) order by part.oid)
        from pg_catalog.pg_partition_tree(c.oid) p join pg_catalog.pg_class part on part.oid = p.relid
          join pg_catalog.pg_namespace pn on pn.oid = part.relnamespace
        where c.relkind = 'p' and part.relkind = 'f') as foreign_parts,
       (select pg_catalog.json_agg(pg_catalog.quote_ident(w.rulename) order by w.rulename)
        from pg_catalog.pg_rewrite w
        where w.ev_class = c.oid and w.ev_enabled <> 'D'
          and ${
      key ? "w.ev_type <> '1'" : "w.ev_type = '4' and w.is_instead"
    }) as rules,
       ${REFERENCES} as references
     from pg_catalog.pg_class c where c.oid = ${oid}`,
  );
  return row ?? {};
}

/** SQL over `pg_class c` of each {@linkcode Reference}. A constraint without triggers is not enforced. */
const REFERENCES = `(select pg_catalog.json_agg(pg_catalog.json_build_object(
       'name', pg_catalog.quote_ident(f.conname),
       'actsOnDelete', f.confdeltype in ('c', 'n', 'd'), 'actsOnUpdate', f.confupdtype in ('c', 'n', 'd'),
       'restricts', f.confdeltype = 'r' or f.confupdtype = 'r',
       'from', (select pg_catalog.format('%I.%I', rn.nspname, r.relname) from pg_catalog.pg_class r
         join pg_catalog.pg_namespace rn on rn.oid = r.relnamespace where r.oid = f.conrelid),
       'columns', (select pg_catalog.json_agg(k.attname order by k.attnum) from pg_catalog.pg_attribute k
         where k.attrelid = f.confrelid and k.attnum = any (f.confkey))) order by f.conname)
   from pg_catalog.pg_constraint f
   where f.contype = 'f' and (f.confrelid = c.oid or f.conparentid = 0 and f.confrelid in (
       select relid from pg_catalog.pg_partition_tree(c.oid)))
     and exists (select from pg_catalog.pg_trigger g
       where g.tgconstraint = f.oid and g.tgrelid = f.confrelid and g.tgenabled <> 'D'))`;

/** SQL over `pg_class c`: whether the table has no replica identity, and publications exist. */
const MAY_LACK_REPLICA_IDENTITY =
  `(c.relkind = 'r' and (c.relreplident = 'n' or c.relreplident in ('d', 'i') and not exists (
      select from pg_catalog.pg_index x where x.indrelid = c.oid and x.indisvalid
        and case c.relreplident when 'd' then x.indisprimary else x.indisreplident end))
    and exists (select from pg_catalog.pg_publication))`;

/** Returns whether a publication sends the changes that a load makes. The view is slow to plan. */
async function isPublished(
  { key, target: { schema, name } }: TableDeclaration,
  warehouse: Pick<Session, "query">,
): Promise<boolean> {
  const [row] = await warehouse.query(
    `select exists (
       select from pg_catalog.pg_publication p
         join pg_catalog.pg_publication_tables t on t.pubname = p.pubname
       where (p.pubdelete${key ? " or p.pubupdate" : ""})
         and t.schemaname = ${literal(schema)} and t.tablename = ${
      literal(name)
    }) as found`,
  );
  return row!.found;
}
