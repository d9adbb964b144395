/**
 * Locks, creates and replaces the warehouse table.
 *
 * @module
 */
import type { Pool } from "../postgres/pool.ts";
import type { Session } from "../postgres/session.ts";
import { identifier, literal, qualified } from "../postgres/sql.ts";
import { hasSqlstate, ServiceError } from "../errors.ts";
import { formatTypeName } from "../tables/column_types.ts";
import {
  formatRelation,
  type Table,
  type TableDeclaration,
} from "../tables/declaration.ts";
import {
  addNewColumns,
  checkMayAddColumns,
  withoutNewColumns,
} from "./new_columns.ts";
import { checkLayout, withWarehouseTypes } from "./warehouse_types.ts";
import {
  belongingsOf,
  checkReplaceable,
  notCarried,
  storageOf,
} from "./recreate.ts";
import { tableError } from "./table_errors.ts";
import {
  checkChildren,
  checkKept,
  checkKind,
  checkRowSecurity,
  checkTarget,
  checkWritable,
} from "./check_target.ts";
import { findTarget, type FoundTarget, type Target } from "./find_target.ts";

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
  checkMayAddColumns(table, found);
  const fitted = table.newColumns === "add"
    ? await addNewColumns(table, warehouse, found)
    : withoutNewColumns(table, found);
  if (fitted.hasAdded) found = await findTarget(table, warehouse, true);
  checkTarget(fitted.table, found);
  checkWritable(table, found, warehouse);
  const { table: written, warnings } = fitted;
  await checkLayout(written, warehouse, relation);
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
  const known = await checkCreatable(table, warehouse, found);
  // A random name: a fixed one could belong to others.
  const name = found.exists
    ? `recreate_${crypto.randomUUID().replaceAll("-", "")}`
    : table.target.name;
  const relation = qualified({ schema: table.target.schema, name });
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
 * without a loss. Returns the table with the names that its types have in the warehouse.
 *
 * @throws {ServiceError} `target_incompatible`, `target_inherited`,
 * `target_in_use`, `permission_denied`.
 */
export async function checkCreatable(
  table: Table,
  warehouse: Session,
  found: FoundTarget,
): Promise<Table> {
  if (found.exists) {
    checkKind(table, found);
    checkChildren(table, found);
    await checkReplaceable(table, warehouse, found.oid!);
    checkKept(table, found);
    checkRowSecurity(table, found);
  }
  if (!found.mayCreate || !found.mayUseSchema) {
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
  const known = await withWarehouseTypes(table, warehouse);
  await checkLayout(known, warehouse, undefined);
  return known;
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

/** Writes to the target, with the search path that functions called by it may need. */
export function writeTo<T>(
  warehouse: Session,
  { callsFunctions }: Pick<Target, "callsFunctions">,
  write: () => Promise<T>,
): Promise<T> {
  return callsFunctions ? warehouse.withOwnSearchPath(write) : write();
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
