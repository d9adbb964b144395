/**
 * The warehouse table: found, checked, locked, made, put in place.
 *
 * @module
 */
import type { Pool } from "../postgres/pool.ts";
import type { Session } from "../postgres/session.ts";
import { identifier, literal, qualified } from "../postgres/sql.ts";
import { ServiceError } from "../errors.ts";
import { HAS_ROW_IDS, HASH_PROBE } from "../diff/queries.ts";
import { type Table, TARGET_SCHEMA } from "../tables/declaration.ts";

/** The warehouse table that rows are written into. */
export interface Target {
  /** Quoted, schema-qualified. */
  readonly relation: string;
  readonly oid: number;
  /** Made in this transaction, so empty and seen by nobody. */
  readonly isNew: boolean;
  readonly hashProbe: string;
  readonly hasRowIds: boolean;
  /** Nothing acts on its rows but what is done to them: no trigger, no rule. */
  readonly isPlain: boolean;
}

/** What the warehouse has in the target's place. */
export interface FoundTarget {
  readonly exists: boolean;
  readonly oid: number | null;
  readonly kind: string;
  readonly columns: readonly { readonly name: string; readonly type: string }[];
  readonly hashProbe: string;
  readonly hasRowIds: boolean;
  readonly hasTriggers: boolean;
  /** Tables that inherit from it, quoted, schema-qualified; a partitioned table's own parts are none. */
  readonly children: readonly string[];
  /** Foreign tables among a partitioned table's parts, likewise. */
  readonly foreignParts: readonly string[];
}

/** Looks the target up. */
export async function findTarget(
  table: Table,
  warehouse: Session,
): Promise<FoundTarget> {
  const rows = await warehouse.query(
    `select c.oid, c.relkind as kind, a.attname as name, format_type(a.atttypid, a.atttypmod) as type,
       ${HASH_PROBE} as probe, ${HAS_ROW_IDS} as rowids, c.relhastriggers as triggers,
       (select pg_catalog.json_agg(pg_catalog.format('%I.%I', cn.nspname, child.relname) order by child.oid)
        from pg_catalog.pg_inherits i join pg_catalog.pg_class child on child.oid = i.inhrelid
          join pg_catalog.pg_namespace cn on cn.oid = child.relnamespace
        where i.inhparent = c.oid and c.relkind = 'r') as children,
       (select pg_catalog.json_agg(pg_catalog.format('%I.%I', pn.nspname, part.relname) order by part.oid)
        from pg_catalog.pg_partition_tree(c.oid) p join pg_catalog.pg_class part on part.oid = p.relid
          join pg_catalog.pg_namespace pn on pn.oid = part.relnamespace
        where c.relkind = 'p' and part.relkind = 'f') as foreign_parts
     from (select 1) one
       left join pg_catalog.pg_namespace n on n.nspname = ${
      literal(table.target.schema)
    }
       left join pg_catalog.pg_class c on c.relnamespace = n.oid and c.relname = ${
      literal(table.target.name)
    } and c.relkind in ('r', 'p', 'v', 'm', 'f')
       left join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
     order by a.attnum`,
  );
  const [first] = rows;
  return {
    exists: Boolean(first?.kind),
    oid: first?.oid ?? null,
    kind: first?.kind ?? "",
    columns: rows.filter((row) => row.name).map(({ name, type }) => ({
      name,
      type,
    })),
    hashProbe: first?.probe,
    hasRowIds: first?.rowids ?? false,
    hasTriggers: first?.triggers ?? false,
    children: first?.children ?? [],
    foreignParts: first?.foreign_parts ?? [],
  };
}

/**
 * Makes sure that the target exists and takes the lock that holds off writers
 * and DDL, but no reader. To recreate it, a table beside it is made.
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
    if (found.exists) checkKind(table, found);
    checkChildren(table, found);
    const name = recreate
      ? `${table.target.name}__recreate`
      : table.target.name;
    const fresh = qualified({ schema: table.target.schema, name });
    await warehouse.query(createTableSql(table, fresh));
    return {
      relation: fresh,
      oid: await oidOf(warehouse, fresh) ?? 0,
      isNew: true,
      hashProbe: found.hashProbe,
      hasRowIds: false,
      isPlain: true,
    };
  }
  checkTarget(table, found);
  // And once more under the lock: what was found before may have changed.
  await warehouse.query(`lock table ${relation} in share row exclusive mode`);
  const { oid } = found;
  found = await findTarget(table, warehouse);
  if (!oid || found.oid !== oid) throw exchanged(table);
  checkTarget(table, found);
  const { hashProbe, hasRowIds, hasTriggers } = found;
  const isPlain = hasRowIds && !hasTriggers;
  return { relation, oid, isNew: false, hashProbe, hasRowIds, isPlain };
}

/**
 * Makes sure that the name still leads to the table that was locked: no lock on
 * a table holds off who renames its schema.
 *
 * @throws {ServiceError} `target_dropped`.
 */
export async function confirmTarget(
  table: Table,
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

function exchanged({ name: table, target }: Table): ServiceError {
  return new ServiceError(
    "target_dropped",
    `another table was put in the place of ${target.schema}.${target.name} during the load`,
    { table },
  );
}

/** DDL of a target table; also what `schema print` shows. */
export function createTableSql(
  table: Table,
  relation = qualified(table.target),
): string {
  const columns = table.columns.map((c) => `  ${identifier(c.name)} ${c.type}`);
  return `create table ${relation} (\n${columns.join(",\n")}\n)`;
}

/** @throws {ServiceError} `target_incompatible`, naming the column; `target_inherited`, naming the tables. */
export function checkTarget(table: Table, found: FoundTarget): void {
  const { schema, name } = table.target;
  const fail = (what: string) => {
    throw new ServiceError(
      "target_incompatible",
      what,
      { table: table.name },
    );
  };
  checkKind(table, found);
  checkChildren(table, found);
  if (found.foreignParts.length > 0) {
    fail(
      `${schema}.${name} in the warehouse has foreign tables among its parts, which another server commits by itself: ${
        found.foreignParts.join(", ")
      }`,
    );
  }
  for (const column of table.columns) {
    const present = found.columns.find((c) => c.name === column.name);
    if (!present) {
      fail(
        `column "${column.name}" is missing in ${schema}.${name} of the warehouse`,
      );
    } else if (present.type !== column.type) {
      fail(
        `column "${column.name}" of ${schema}.${name} in the warehouse is ${present.type}, not ${column.type}`,
      );
    }
  }
  const extra = found.columns.find((c) =>
    !table.columns.some((t) => t.name === c.name)
  );
  if (extra) {
    fail(
      `${schema}.${name} in the warehouse has a column "${extra.name}" that the source table does not feed`,
    );
  }
}

function checkKind(table: Table, { kind }: FoundTarget): void {
  if (kind === "r" || kind === "p") return;
  const { schema, name } = table.target;
  throw new ServiceError(
    "target_incompatible",
    `${schema}.${name} in the warehouse is not a table`,
    {
      table: table.name,
      remedy: "Drop or rename it: the next load makes the table.",
    },
  );
}

function checkChildren(table: Table, { children }: FoundTarget): void {
  if (children.length === 0) return;
  const { schema, name } = table.target;
  throw new ServiceError(
    "target_inherited",
    `${children.join(", ")} ${
      children.length === 1 ? "inherits" : "inherit"
    } from ${schema}.${name} in the warehouse, whose rows a load would delete as well`,
    {
      table: table.name,
      remedy: `Detach first: ${
        children.map((child) =>
          `ALTER TABLE ${child} NO INHERIT ${schema}.${name};`
        ).join(" ")
      }`,
    },
  );
}

/** Exchanges the old table for the one that was loaded beside it. Only here is a reader made to wait. */
export async function putInPlace(
  table: Table,
  warehouse: Session,
  target: Target,
): Promise<void> {
  await warehouse.query(
    `drop table if exists ${qualified(table.target)};
     alter table ${target.relation} rename to ${identifier(table.target.name)}`,
  );
}

/**
 * Makes the schema of the targets. Apart from the load's transaction: two
 * tables that both made it would wait for each other's commit.
 */
export async function ensureTargetSchema(warehouse: Pool): Promise<void> {
  const [row] = await warehouse.query(
    `select to_regnamespace(${
      literal(identifier(TARGET_SCHEMA))
    }) is not null as exists`,
  );
  if (row!.exists) return;
  try {
    await warehouse.query(
      `create schema if not exists ${identifier(TARGET_SCHEMA)}`,
    );
  } catch (error) {
    // 23505: another session made it in the same moment.
    if (error instanceof ServiceError && error.sqlstate === "23505") return;
    throw error;
  }
}
