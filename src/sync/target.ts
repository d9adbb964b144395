/**
 * Finds, checks, locks, creates and replaces the warehouse table.
 *
 * @module
 */
import type { Pool } from "../postgres/pool.ts";
import type { Session } from "../postgres/session.ts";
import { identifier, literal, qualified, type Row } from "../postgres/sql.ts";
import { hasSqlstate, ServiceError } from "../errors.ts";
import { HAS_STABLE_CTID } from "../diff/queries.ts";
import { HASH_PROBE } from "../diff/row_hash.ts";
import { rowSecurityRemedy } from "../postgres/meanings.ts";
import {
  formatTypeName,
  hasSameName,
  isBuiltIn,
  parseTypeName,
  type TypeName,
} from "../tables/column_types.ts";
import {
  BASE_TYPE,
  FIRST_VARIABLE_OID,
  formatName,
  formatRelation,
  type Table,
  type TableDeclaration,
} from "../tables/declaration.ts";
import { addNewColumns, withoutNewColumns } from "./new_columns.ts";
import { withWarehouseTypes } from "./warehouse_types.ts";
import {
  belongingsOf,
  checkReplaceable,
  notCarried,
  storageOf,
} from "./recreate.ts";
import { tableError } from "./table_errors.ts";

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
interface Reference {
  readonly name: string;
  /** Quoted, qualified name of the table that refers to the target. */
  readonly from: string;
  /** The columns that it refers to. */
  readonly columns: readonly string[];
  /** Whether a deletion changes the referring rows: CASCADE, SET NULL, SET DEFAULT. */
  readonly actsOnDelete: boolean;
  readonly actsOnUpdate: boolean;
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
       current_user as role, pg_catalog.has_schema_privilege(n.oid, 'USAGE') as may_use,
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
    mayUseSchema: found!.may_use ?? true,
    mayCreate: found!.may_create !== false,
    mayUseTemporary: found!.may_temporary,
    missingPrivileges: Object.entries(missing)
      .flatMap(([privilege, isMissing]) => isMissing ? [privilege] : []),
    hasRowSecurity: found!.row_security ?? false,
  };
}

/** Returns what only a target that is not plain can have. */
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

/** Returns SQL that blocks writers and DDL, but no reader. */
export function lockTargetSql({ target }: TableDeclaration): string {
  return `lock table ${qualified(target)} in share row exclusive mode`;
}

/**
 * Creates the target where it is missing, and takes the lock that blocks writers
 * and DDL, but no reader. To recreate it, creates a second table.
 *
 * @throws {ServiceError} `target_incompatible`, `target_inherited`, `target_dropped`.
 */
export async function lockTarget(
  table: Table,
  warehouse: Session,
  recreate: boolean,
): Promise<Target> {
  const relation = qualified(table.target);
  let found = await findTarget(table, warehouse);
  if (recreate || !found.exists) {
    return await createTarget(table, warehouse, found);
  }
  const { oid } = found;
  if (!found.isLocked) {
    checkTarget(withoutNewColumns(table, found).table, found);
    checkWritable(table, found, warehouse);
    // Check again under the lock: the table may have changed before.
    await warehouse.query(lockTargetSql(table));
    found = await findTarget(table, warehouse);
  }
  if (!oid || found.oid !== oid) throw exchanged(table);
  const fitted = table.newColumns === "add"
    ? await addNewColumns(table, warehouse, found)
    : withoutNewColumns(table, found);
  if (fitted.hasAdded) found = await findTarget(table, warehouse, true);
  checkTarget(fitted.table, found);
  checkWritable(table, found, warehouse);
  const { table: written, warnings } = fitted;
  return { ...found, relation, oid, isNew: false, table: written, warnings };
}

/**
 * Creates the target where it is missing, and returns whether it was.
 *
 * @throws {ServiceError} `target_incompatible` when something else has its name,
 * `permission_denied`.
 */
export async function ensureTarget(
  table: Table,
  warehouse: Session,
): Promise<boolean> {
  const found = await findTarget(table, warehouse);
  if (found.exists) checkKind(table, found);
  else await createTarget(table, warehouse, found);
  return !found.exists;
}

/** Creates the target, or the table that replaces it. */
async function createTarget(
  table: Table,
  warehouse: Session,
  found: FoundTarget,
): Promise<Target> {
  await checkCreatable(table, warehouse, found);
  // A random name: a fixed one could belong to others.
  const name = found.exists
    ? `recreate_${crypto.randomUUID().replaceAll("-", "")}`
    : table.target.name;
  const relation = qualified({ schema: table.target.schema, name });
  const known = await withWarehouseTypes(table, warehouse);
  await warehouse.query(createTableSql(known, relation));
  await checkOwner(table, warehouse, relation);
  if (found.exists) {
    for (const statement of await storageOf(warehouse, found.oid!, relation)) {
      await warehouse.query(statement);
    }
  }
  const created = { ...table, target: { ...table.target, name } };
  const target = await findTarget(created, warehouse, true);
  return {
    ...target,
    relation,
    oid: target.oid ?? 0,
    isNew: true,
    table,
    warnings: [],
  };
}

/**
 * Checks that the table can be created, and that an existing one can be replaced
 * without a loss.
 *
 * @throws {ServiceError} `target_incompatible`, `target_inherited`,
 * `target_in_use`, `permission_denied`.
 */
export async function checkCreatable(
  table: Table,
  warehouse: Session,
  found: FoundTarget,
): Promise<void> {
  if (found.exists) {
    checkKind(table, found);
    checkChildren(table, found);
    await checkReplaceable(table, warehouse, found.oid!);
  }
  if (found.mayCreate && found.mayUseSchema) return;
  const { schema } = table.target;
  throw tableError(
    table.name,
    "permission_denied",
    `role "${found.role}" has no privilege to create ${
      formatRelation(table.target)
    } in the warehouse`,
    `Run GRANT USAGE, CREATE ON SCHEMA ${identifier(schema)} TO ${
      identifier(found.role)
    };, or grant CREATE on database ${
      identifier(warehouse.config.database)
    } where the schema does not exist.`,
  );
}

/** Checks that the role still owns the new table. An event trigger can change the owner. */
async function checkOwner(
  table: TableDeclaration,
  warehouse: Session,
  relation: string,
): Promise<void> {
  const [row] = await warehouse.query(
    `select pg_catalog.pg_has_role(c.relowner, 'USAGE') as is_ours, current_user as role,
       pg_catalog.pg_get_userbyid(c.relowner) as owner
     from pg_catalog.pg_class c where c.oid = ${
      literal(relation)
    }::pg_catalog.regclass`,
  );
  if (row!.is_ours) return;
  throw tableError(
    table.name,
    "permission_denied",
    `the new table belongs to role "${
      row!.owner
    }" as soon as it is created, not to "${row!.role}"`,
    await eventTriggerRemedy(warehouse, row!.role) ??
      `Run GRANT ${identifier(row!.owner)} TO ${identifier(row!.role)};`,
  );
}

/** Returns the remedy for event triggers that change new objects, or `undefined` where there is none. */
export async function eventTriggerRemedy(
  warehouse: Pick<Session, "query">,
  role: string,
): Promise<string | undefined> {
  const [row] = await warehouse.query(
    `select pg_catalog.string_agg(pg_catalog.quote_ident(evtname), ', ' order by evtname) as names
     from pg_catalog.pg_event_trigger where evtevent = 'ddl_command_end' and evtenabled <> 'D'`,
  );
  return row!.names
    ? `Exempt role ${
      identifier(role)
    } in the event trigger that changes owners (${
      row!.names
    }), or grant it the new owner's role.`
    : undefined;
}

/**
 * Checks that the name still leads to the locked table. A locked table does not
 * keep others from renaming its schema.
 *
 * @throws {ServiceError} `target_dropped`.
 */
export async function confirmTarget(
  table: TableDeclaration,
  warehouse: Session,
  { relation, oid }: Target,
): Promise<void> {
  if (await oidOf(warehouse, relation) !== oid) throw exchanged(table);
}

async function oidOf(
  warehouse: Session,
  relation: string,
): Promise<number | null> {
  const [row] = await warehouse.query(
    `select to_regclass(${literal(relation)})::oid as oid`,
  );
  return row!.oid;
}

function exchanged({ name: table, target }: TableDeclaration): ServiceError {
  return tableError(
    table,
    "target_dropped",
    `another table replaced ${formatRelation(target)} during the load`,
  );
}

/** Returns whether a column that `format_type` prints so has the declared type. */
function hasType(printed: string, declared: TypeName): boolean {
  if (printed === formatTypeName(declared)) return true;
  if (isBuiltIn(declared)) return false;
  const present = parseTypeName(printed);
  return hasSameName(present, declared) &&
    present.isArray === declared.isArray &&
    present.modifiers === declared.modifiers;
}

/** Returns the DDL of a target table, as `schema print` shows it. */
export function createTableSql(
  table: Table,
  relation = qualified(table.target),
): string {
  const columns = table.columns.map((c) =>
    `  ${identifier(c.name)} ${formatTypeName(c.type)}`
  );
  return `create table ${relation} (\n${columns.join(",\n")}\n)`;
}

/**
 * Checks that the table can be compared: its kind, columns and policies.
 *
 * @throws {ServiceError} `target_incompatible`, naming the column;
 * `target_inherited`, naming the tables; `permission_denied`.
 */
export function checkTarget(table: Table, found: FoundTarget): void {
  const name = formatRelation(table.target);
  const fail = (what: string) => {
    throw tableError(table.name, "target_incompatible", what);
  };
  checkKind(table, found);
  checkChildren(table, found);
  if (found.foreignParts.length > 0) {
    fail(
      `${name} in the warehouse has foreign partitions, and another server commits those separately: ${
        found.foreignParts.join(", ")
      }`,
    );
  }
  for (const column of table.columns) {
    const present = found.columns.find((c) => c.name === column.name);
    if (!present) {
      fail(
        `column "${column.name}" is missing in ${name} of the warehouse`,
      );
    } else if (
      !hasType(present.type, column.type) &&
      !hasType(present.declared, column.type)
    ) {
      const { declared, type } = present;
      fail(
        `column "${column.name}" of ${name} in the warehouse is ${declared}${
          declared === type ? "" : ` (${type})`
        }, not ${formatTypeName(column.type)}`,
      );
    }
  }
  const extra = found.columns.find((c) =>
    !table.columns.some((t) => t.name === c.name)
  );
  if (extra) {
    fail(
      `${name} in the warehouse has a column "${extra.name}" that is missing in the source`,
    );
  }
  if (!found.mayUseSchema) {
    throw tableError(
      table.name,
      "permission_denied",
      `role "${found.role}" has no USAGE privilege on schema ${
        formatName(table.target.schema)
      } in the warehouse`,
      `Run GRANT USAGE ON SCHEMA ${identifier(table.target.schema)} TO ${
        identifier(found.role)
      };`,
    );
  }
  if (found.hasRowSecurity) {
    throw tableError(
      table.name,
      "permission_denied",
      `row-level security of ${name} in the warehouse applies to role "${found.role}"`,
      rowSecurityRemedy(identifier(found.role)),
    );
  }
}

/**
 * Checks that a load can write the table, so that it fails before it locks or
 * deletes anything.
 *
 * @throws {ServiceError} `target_incompatible`, `permission_denied`.
 */
export function checkWritable(
  table: TableDeclaration,
  found: FoundTarget,
  { config: { database } }: Pick<Session, "config">,
): void {
  const name = formatRelation(table.target);
  const generated = found.columns.find(({ isGenerated }) => isGenerated);
  if (generated) {
    const column = identifier(generated.name);
    throw tableError(
      table.name,
      "target_incompatible",
      `column ${column} of ${name} in the warehouse is generated, and a load writes every column`,
      `Run ALTER TABLE ${
        qualified(table.target)
      } ALTER COLUMN ${column} DROP EXPRESSION;, or run \`schema recreate\`, which replaces the table.`,
    );
  }
  if (found.obstructingRules.length > 0) {
    const rules = found.obstructingRules.join(", ");
    throw tableError(
      table.name,
      "target_incompatible",
      table.key
        ? `an update by key does not support rules, and ${name} in the warehouse has: ${rules}`
        : `a rule of ${name} in the warehouse runs in place of DELETE: ${rules}`,
      `Drop the rule, or use a trigger: DROP RULE … ON ${
        qualified(table.target)
      };`,
    );
  }
  if (table.key && !found.mayUseTemporary) {
    throw tableError(
      table.name,
      "permission_denied",
      `role "${found.role}" may not create temporary tables in the warehouse, which an update by key needs`,
      `Run GRANT TEMPORARY ON DATABASE ${identifier(database)} TO ${
        identifier(found.role)
      };`,
    );
  }
  if (found.missingPrivileges.length > 0) {
    throw tableError(
      table.name,
      "permission_denied",
      `role "${found.role}" lacks ${
        found.missingPrivileges.join(", ")
      } on ${name} in the warehouse`,
      `Run GRANT SELECT, INSERT, ${table.key ? "UPDATE, " : ""}DELETE ON ${
        qualified(table.target)
      } TO ${identifier(found.role)};`,
    );
  }
}

/**
 * Checks that rows can be deleted from the table.
 *
 * @throws {ServiceError} `target_incompatible`.
 */
export function checkDeletable(
  table: TableDeclaration,
  { lacksReplicaIdentity }: Pick<Target, "lacksReplicaIdentity">,
): void {
  if (!lacksReplicaIdentity) return;
  const name = formatRelation(table.target);
  throw tableError(
    table.name,
    "target_incompatible",
    `${name} in the warehouse is published and has no replica identity, so no row can be deleted or updated`,
    `Run ALTER TABLE ${
      qualified(table.target)
    } REPLICA IDENTITY FULL;, or give it a primary key.`,
  );
}

/**
 * Checks by {@linkcode checkReferences} that rows of the target can be replaced.
 *
 * @param condition SQL condition for the rows, or `undefined` for all.
 *
 * @throws {ServiceError} `target_incompatible`.
 */
export async function checkReplacing(
  warehouse: Session,
  target: Pick<Target, "table" | "relation" | "references">,
  condition: (() => string) | undefined,
): Promise<void> {
  if (target.references.length === 0) return;
  const [row] = await warehouse.scan(
    `select exists (select from ${target.relation}${
      condition ? ` where ${condition()}` : ""
    }) as found`,
  );
  if (row!.found) checkReferences(target);
}

/**
 * Checks that no foreign key changes other rows. It could do so because a row is deleted
 * and inserted again, or because an update moves a value to another row. Neither happens
 * where the key has exactly the columns that it refers to.
 *
 * @param isReplaced whether a row with the same key is deleted and inserted.
 * @throws {ServiceError} `target_incompatible`.
 */
export function checkReferences(
  { table, references }: Pick<Target, "table" | "references">,
  isReplaced = false,
): void {
  const { target, key } = table;
  const acting = references.find(({ columns, actsOnDelete, actsOnUpdate }) => {
    if (!key || isReplaced) return actsOnDelete;
    const isKey = columns.length === key.length &&
      columns.every((column) => key.includes(column));
    return !isKey && (actsOnDelete || actsOnUpdate);
  });
  if (!acting) return;
  throw tableError(
    table.name,
    "target_incompatible",
    `foreign key ${acting.name} of ${acting.from} changes rows that refer to a replaced row of ${
      formatRelation(target)
    }`,
    isReplaced
      ? "Make the unique constraint whose values the rows exchange DEFERRABLE."
      : keyRemedy(acting),
  );
}

function keyRemedy({ columns }: Reference): string {
  return `Declare the table in TABLES_FILE with \`key: [${
    columns.join(", ")
  }]\`, so that a load updates rows in place.`;
}

/**
 * Returns the error of a write, with a remedy that fits where a foreign key refers to
 * a deleted row.
 */
export function referenceError(
  error: unknown,
  { references, table }: Target,
): unknown {
  // 23503 and 23001: NO ACTION and RESTRICT.
  const reference = hasSqlstate(error, "23503", "23001") &&
    references.find(({ name }) => error.reason.includes(name));
  if (!reference) return error;
  return error.with({
    table: table.name,
    remedy: table.key
      ? `Delete the rows of ${reference.from} that refer to it. If they are loaded, too, set LOAD_ATOMIC=true and make the foreign key DEFERRABLE.`
      : keyRemedy(reference),
  });
}

/** Writes to the target, with the search path that functions called by it may need. */
export function writeTo<T>(
  warehouse: Session,
  { callsFunctions }: Pick<Target, "callsFunctions">,
  write: () => Promise<T>,
): Promise<T> {
  return callsFunctions ? warehouse.withOwnSearchPath(write) : write();
}

/** Kinds of objects by `pg_class.relkind`. */
const KIND_NAMES: Readonly<Record<string, string>> = {
  v: "a view",
  m: "a materialized view",
  f: "a foreign table",
  S: "a sequence",
  i: "an index",
  I: "an index",
  c: "a composite type",
  T: "a type",
};

function checkKind(table: TableDeclaration, { kind }: FoundTarget): void {
  if (kind === "r" || kind === "p") return;
  const name = formatRelation(table.target);
  throw tableError(
    table.name,
    "target_incompatible",
    `${name} in the warehouse is not a table but ${
      KIND_NAMES[kind] ?? "something else"
    }`,
    "Drop or rename it. The next load creates the table.",
  );
}

function checkChildren(
  table: TableDeclaration,
  { children }: FoundTarget,
): void {
  if (children.length === 0) return;
  const name = formatRelation(table.target);
  throw tableError(
    table.name,
    "target_inherited",
    `${children.join(", ")} ${
      children.length === 1 ? "inherits" : "inherit"
    } from ${name} in the warehouse, whose rows a load would delete as well`,
    `Detach first: ${
      children.map((child) => `ALTER TABLE ${child} NO INHERIT ${name};`).join(
        " ",
      )
    }`,
  );
}

/**
 * Replaces the old table by the loaded one, which gets the properties of the old one.
 * Readers wait only here. Returns the table under its own name. Adding its constraints
 * may have called functions of others.
 *
 * @throws {ServiceError} `target_in_use`, naming what cannot be carried over.
 */
export async function putInPlace(
  table: Table,
  warehouse: Session,
  target: Target,
): Promise<Target> {
  const relation = qualified(table.target);
  if (target.relation === relation) return target;
  try {
    await warehouse.query(`lock table ${relation} in access exclusive mode`);
  } catch (error) {
    if (!hasSqlstate(error, "55P03")) throw error;
    const name = formatRelation(table.target);
    throw new ServiceError(
      "target_locked",
      `${name} in the warehouse is used by another session, and a table in use cannot be recreated`,
      {
        table: table.name,
        sqlstate: error.sqlstate,
        cause: error,
        remedy:
          "Wait for the sessions that pg_locks shows on the table, or raise LOCK_TIMEOUT.",
      },
    );
  }
  const old = await oidOf(warehouse, relation);
  if (old === null) throw exchanged(table);
  await checkReplaceable(table, warehouse, old);
  const belongings = await belongingsOf(table, warehouse, old, target.oid);
  await warehouse.query(
    `drop table ${relation};
     alter table ${target.relation} rename to ${identifier(table.target.name)}`,
  );
  for (const { what, sql } of belongings) {
    try {
      await warehouse.query(sql);
      await warehouse.restoreSettings();
    } catch (error) {
      if (!(error instanceof ServiceError) || !error.sqlstate) throw error;
      throw notCarried(table, [`${what} (${error.reason})`], error);
    }
  }
  const { oid: _, ...placed } = await findTarget(table, warehouse, true);
  return { ...target, ...placed, relation };
}

/**
 * Creates schemas, outside of the load's transaction. Two transactions that both
 * create one would wait for each other.
 */
export async function createSchemas(
  warehouse: Pool,
  names: readonly string[],
): Promise<void> {
  for (const name of names) {
    try {
      await warehouse.query(`create schema if not exists ${identifier(name)}`);
    } catch (error) {
      // 23505: another session created it at the same time.
      if (hasSqlstate(error, "23505")) continue;
      throw error;
    }
  }
}

/** Returns the schemas of the targets, each once. */
export function targetSchemas(
  tables: readonly TableDeclaration[],
): readonly string[] {
  return [...new Set(tables.map(({ target }) => target.schema))];
}
