/**
 * The one view of the source that all tables of a run are read from.
 *
 * @module
 */
import type { Config } from "./config.ts";
import {
  type ConnectionOptions,
  literal,
  qualified,
  type Row,
  Session,
} from "./db.ts";
import { ServiceError } from "./errors.ts";
import { HASH_PROBE } from "./fingerprint.ts";
import {
  incompatibility,
  roundingWarning,
  type Table,
  type TableName,
} from "./tables.ts";

/** An exported snapshot of the source, held open until it is disposed of. */
export interface Snapshot extends AsyncDisposable {
  /** Name for `SET TRANSACTION SNAPSHOT`. */
  readonly id: string;
  /** When it was taken, UTC, as `2025-08-26T21:19:33.123456`. */
  readonly takenAt: string;
  /** Value of {@linkcode HASH_PROBE} on the source. */
  readonly hashProbe: string;
  readonly encoding: string;
  /** Per table, how many rows were ever written to it, by the server's statistics. */
  readonly writes: ReadonlyMap<TableName, string>;
  /** Per table, warnings about its source, or why it cannot be loaded. */
  readonly tables: ReadonlyMap<TableName, readonly string[] | ServiceError>;
}

/**
 * Opens the snapshot and checks the source tables' shapes in it.
 *
 * The tables are locked (ACCESS SHARE, as any SELECT does) before the snapshot
 * is taken. Without that, a TRUNCATE or a rewriting ALTER that commits between
 * the snapshot and the first read would make the table look empty, since
 * neither respects older snapshots.
 *
 * @throws {ServiceError} when the source cannot be reached or read at all. What
 * is wrong with one table is in `tables`.
 */
export async function openSnapshot(
  config: Config,
  connection: ConnectionOptions,
  tables: readonly Table[],
): Promise<Snapshot> {
  const found = new Map<TableName, readonly string[] | ServiceError>();
  const writes = new Map<TableName, string>();
  let pending = tables;
  while (true) {
    const session = await Session.open(config.olist, connection);
    try {
      const readable = await findReadable(session, pending, found, writes);
      const locked = await beginLocked(config, session, readable, found);
      if (!locked) {
        // A lock that was not free ended the transaction: go on without that table.
        pending = readable.filter((table) => !found.has(table.name));
        await session.close();
        continue;
      }
      const [taken] = await session.query<
        { id: string; takenat: string; probe: string }
      >(`select pg_export_snapshot() as id, ${HASH_PROBE} as probe,
           to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US') as takenat`);
      await session.learnBackend();
      for (const [name, shape] of await checkShapes(session, readable)) {
        found.set(name, shape);
      }
      return {
        id: taken!.id,
        takenAt: taken!.takenat,
        hashProbe: taken!.probe,
        encoding: session.serverEncoding,
        writes,
        tables: found,
        [Symbol.asyncDispose]: () => session.close(),
      };
    } catch (error) {
      session.destroy();
      throw error;
    }
  }
}

/**
 * Opens a reader on the snapshot.
 *
 * @throws {ServiceError} `snapshot_lost` when the source no longer has it.
 */
export async function openReader(
  config: Config,
  connection: ConnectionOptions,
  snapshot: Snapshot,
): Promise<Session> {
  const session = await Session.open(config.olist, connection);
  try {
    await session.begin({
      mode: "repeatable read read only",
      timezone: config.loadTimezone,
      lockTimeoutSeconds: config.lockTimeoutSeconds,
    }, `set transaction snapshot ${literal(snapshot.id)}`);
    return session;
  } catch (error) {
    session.destroy();
    // 22023 invalid or unknown identifier, 55000 the exporting transaction is gone, 42704 no such file.
    if (
      error instanceof ServiceError && error.sqlstate &&
      ["22023", "55000", "42704"].includes(error.sqlstate)
    ) {
      throw new ServiceError("snapshot_lost", "The source's snapshot is gone", {
        cause: error,
        sqlstate: error.sqlstate,
      });
    }
    throw error;
  }
}

/** The tables that exist and may be read; the others go to `found` with the reason. */
async function findReadable(
  session: Session,
  tables: readonly Table[],
  found: Map<TableName, readonly string[] | ServiceError>,
  writes: Map<TableName, string>,
): Promise<(Table & { isLockable: boolean })[]> {
  const rows = await session.query(
    `select n.nspname as schema, c.relname as name, c.relkind as kind,
       has_schema_privilege(n.oid, 'USAGE') and has_table_privilege(c.oid, 'SELECT') as readable,
       case when c.relkind = 'r' then (pg_stat_get_tuples_inserted(c.oid)
         + pg_stat_get_tuples_updated(c.oid) + pg_stat_get_tuples_deleted(c.oid))::text end as writes
     from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
     where c.relkind in ('r', 'p', 'v', 'm', 'f') and (n.nspname, c.relname) in (${
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
          `Cannot load ${table.name}: role "${session.config.user}" may not read ${schema}.${name} in the source`,
          {
            table: table.name,
            remedy:
              `Grant USAGE on schema ${schema} and SELECT on ${schema}.${name} to "${session.config.user}".`,
          },
        )
        : new ServiceError(
          "source_table_missing",
          `Cannot load ${table.name}: table ${schema}.${name} is missing in the source database "${session.config.database}"`,
          { table: table.name },
        );
      found.set(table.name, error);
      return [];
    }
    if (row.writes) writes.set(table.name, row.writes);
    // LOCK does not take materialized views and foreign tables, and asks more rights for views.
    return [{ ...table, isLockable: row.kind === "r" || row.kind === "p" }];
  });
}

/** Begins the transaction with all tables locked; false when one could not be, which `found` then tells. */
async function beginLocked(
  config: Config,
  session: Session,
  tables: readonly (Table & { isLockable: boolean })[],
  found: Map<TableName, readonly string[] | ServiceError>,
): Promise<boolean> {
  await session.begin({
    mode: "repeatable read read only",
    lockTimeoutSeconds: config.lockTimeoutSeconds,
    isBeforeSnapshot: true,
  });
  for (const table of tables) {
    if (!table.isLockable) continue;
    try {
      await session.query(
        `lock table ${qualified(table.source)} in access share mode`,
      );
    } catch (error) {
      if (
        !(error instanceof ServiceError) || !error.sqlstate || session.failure
      ) throw error;
      const { schema, name } = table.source;
      found.set(
        table.name,
        new ServiceError(
          error.sqlstate === "55P03" ? "source_locked" : error.code,
          error.sqlstate === "55P03"
            ? `Cannot load ${table.name}: ${schema}.${name} is locked by another session in the source for more than ${config.lockTimeoutSeconds} s`
            : `Cannot load ${table.name}: ${error.message}`,
          { table: table.name, cause: error, sqlstate: error.sqlstate },
        ),
      );
      return false;
    }
  }
  return true;
}

/** Checks every table's columns as the snapshot sees them. */
async function checkShapes(
  session: Session,
  tables: readonly Table[],
): Promise<[TableName, readonly string[] | ServiceError][]> {
  if (tables.length === 0) return [];
  const columns = await session.query(
    `select n.nspname as schema, c.relname as name, a.attname as column,
       format_type(a.atttypid, a.atttypmod) as type, t.typcategory as category
     from pg_catalog.pg_attribute a
       join pg_catalog.pg_class c on c.oid = a.attrelid
       join pg_catalog.pg_namespace n on n.oid = c.relnamespace
       join pg_catalog.pg_type t on t.oid = a.atttypid
     where a.attnum > 0 and not a.attisdropped and a.attrelid in (${
      tables.map(({ source }) => `${literal(qualified(source))}::regclass`)
    }) order by a.attnum`,
  );
  return tables.map((table) => [
    table.name,
    checkShape(
      table,
      columns.filter((c) =>
        c.schema === table.source.schema && c.name === table.source.name
      ),
    ),
  ]);
}

function checkShape(
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
        `Cannot load ${table.name}: column "${column.name}" is missing in ${schema}.${name}`,
        { table: table.name },
      );
    }
    const reason = incompatibility(column, found.type, found.category);
    if (reason) {
      return new ServiceError(
        "source_column_incompatible",
        `Cannot load ${table.name}: column "${column.name}" of ${schema}.${name} cannot be used: ${reason}`,
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
      `${schema}.${name} has columns that are not loaded: ${extra.join(", ")}`,
    );
  }
  return warnings;
}
