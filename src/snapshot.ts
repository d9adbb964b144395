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
import { HAS_ROW_IDS, HASH_PROBE } from "./fingerprint_sql.ts";
import {
  incompatibility,
  roundingWarning,
  type Table,
  type TableName,
} from "./tables.ts";

/** Where a source table was in its history when the snapshot was taken. */
export interface SourceMark {
  /** Rows ever deleted from it, by the server's statistics, which lag behind. */
  readonly deletions: string;
  /** 64-bit id of the oldest transaction that was not over. */
  readonly xid: string;
}

/** A snapshot of the source, held open until it is disposed of. */
export interface Snapshot extends AsyncDisposable {
  /** When it was taken, UTC, as `2025-08-26T21:19:33.123456`. */
  readonly takenAt: string;
  /** Value of {@linkcode HASH_PROBE} on the source. */
  readonly hashProbe: string;
  readonly encoding: string;
  /** Per table whose server tells it, what the next load can begin its search with. */
  readonly marks: ReadonlyMap<TableName, SourceMark>;
  /** Tables whose rows can be found again by their ctid. */
  readonly withRowIds: ReadonlySet<TableName>;
  /** Per table, warnings about its source, or why it cannot be loaded. */
  readonly tables: ReadonlyMap<TableName, readonly string[] | ServiceError>;
  /**
   * A session that reads the table as the snapshot has it. The caller begins to
   * close it; the snapshot waits for the end of that when it is disposed of.
   *
   * @throws {ServiceError} `snapshot_lost` when the source no longer has the
   * snapshot, or the table can no longer be read in it.
   */
  readonly openReader: (table: Table) => Promise<Session>;
}

/** A source table that may be read. */
interface Readable extends Table {
  /** LOCK does not take materialized views and foreign tables, and asks more rights for views. */
  readonly isLockable: boolean;
  /** A plain heap, whose rows can be found again by their ctid. */
  readonly hasRowIds: boolean;
}

/** Times that the snapshot is taken anew because DDL came between it and its readers. */
const MOST_SNAPSHOTS = 5;

/**
 * Opens the snapshot and checks the source tables' shapes in it.
 *
 * The tables are locked (ACCESS SHARE, as any SELECT does) before the snapshot
 * is taken. Without that, a TRUNCATE or a rewriting ALTER that commits between
 * the snapshot and the first read would make the table look empty, since
 * neither respects older snapshots. For the same reason each table's reader is
 * opened along with the snapshot: one that came later would queue behind DDL
 * that itself waits for the snapshot's lock.
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
  const deletions = new Map<TableName, string>();
  for (let round = 1;; round++) {
    const sessions: Session[] = [];
    try {
      const holder = await Session.open(config.olist, connection);
      sessions.push(holder);
      const pending = tables.filter((table) =>
        !(found.get(table.name) instanceof ServiceError)
      );
      const readable = await findReadable(holder, pending, found, deletions);
      await beginLocked(config, holder, readable, found);
      const [taken] = await holder.query<
        { id: string; takenat: string; probe: string; xid: string }
      >(`select pg_export_snapshot() as id, ${HASH_PROBE} as probe,
           pg_snapshot_xmin(pg_current_snapshot())::text as xid,
           to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US') as takenat`);
      const open = (table: Readable) =>
        openReader(config, connection, table, taken!.id);
      const readers = new Map<TableName, Session>();
      const opened = await Promise.allSettled(readable.map(async (table) => {
        const reader = await open(table);
        sessions.push(reader);
        readers.set(table.name, reader);
      }));
      for (const outcome of opened) {
        if (outcome.status === "rejected") throw outcome.reason;
      }
      await holder.learnBackend();
      for (const [name, shape] of await checkShapes(holder, readable)) {
        found.set(name, shape);
      }
      return {
        takenAt: taken!.takenat,
        hashProbe: taken!.probe,
        encoding: holder.serverEncoding,
        marks: new Map(
          Array.from(
            deletions,
            ([name, count]) => [name, { deletions: count, xid: taken!.xid }],
          ),
        ),
        withRowIds: new Set(
          readable.filter((t) => t.hasRowIds).map((t) => t.name),
        ),
        tables: found,
        async openReader(table) {
          const ready = readers.get(table.name);
          readers.delete(table.name);
          if (ready && !ready.failure) return ready;
          const reader = await open(
            readable.find((r) => r.name === table.name)!,
          );
          sessions.push(reader);
          return reader;
        },
        async [Symbol.asyncDispose]() {
          await Promise.all(sessions.map((session) => session.close()));
        },
      };
    } catch (error) {
      for (const session of sessions) session.destroy();
      const isWorthAnother = error instanceof LockRefused ||
        error instanceof ServiceError && error.code === "snapshot_lost";
      if (!isWorthAnother || round === MOST_SNAPSHOTS) throw error;
    }
  }
}

/** One table could not be locked, which ended the transaction; the table is marked as failed. */
class LockRefused extends Error {}

async function openReader(
  config: Config,
  connection: ConnectionOptions,
  table: Readable,
  snapshotId: string,
): Promise<Session> {
  const session = await Session.open(config.olist, connection);
  try {
    await session.begin(
      {
        mode: "repeatable read read only",
        timezone: config.loadTimezone,
        lockTimeoutSeconds: config.lockTimeoutSeconds,
      },
      [
        // Waiting here would be for DDL that waits for the snapshot: neither would end.
        ...(table.isLockable
          ? [
            `lock table ${qualified(table.source)} in access share mode nowait`,
          ]
          : []),
        `set transaction snapshot ${literal(snapshotId)}`,
      ].join(";\n"),
    );
    return session;
  } catch (error) {
    session.destroy();
    if (
      error instanceof ServiceError && LOST_SNAPSHOT.has(error.sqlstate ?? "")
    ) {
      throw new ServiceError(
        "snapshot_lost",
        `Cannot load ${table.name}: the source's snapshot is gone or overtaken by DDL (${error.message})`,
        { cause: error, table: table.name, sqlstate: error.sqlstate! },
      );
    }
    throw error;
  }
}

/**
 * SQLSTATEs that say that a snapshot can no longer be read from: 22023 invalid
 * or unknown identifier, 55000 its transaction is over, 42704 no such file,
 * 55P03 DDL is waiting for the table, 42P01 the table was dropped.
 */
const LOST_SNAPSHOT = new Set(["22023", "55000", "42704", "55P03", "42P01"]);

/** The tables that exist and may be read; the others go to `found` with the reason. */
async function findReadable(
  session: Session,
  tables: readonly Table[],
  found: Map<TableName, readonly string[] | ServiceError>,
  deletions: Map<TableName, string>,
): Promise<Readable[]> {
  const rows = await session.query(
    `select n.nspname as schema, c.relname as name, c.relkind as kind,
       has_schema_privilege(n.oid, 'USAGE') and has_table_privilege(c.oid, 'SELECT') as readable, ${HAS_ROW_IDS} as rowids,
       case when ${HAS_ROW_IDS} then pg_stat_get_tuples_deleted(c.oid)::text end as deletions
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
    if (row.deletions) deletions.set(table.name, row.deletions);
    return [{
      ...table,
      isLockable: row.kind === "r" || row.kind === "p",
      hasRowIds: row.rowids,
    }];
  });
}

/** Begins the transaction with all tables locked, and its snapshot not yet taken. */
async function beginLocked(
  config: Config,
  session: Session,
  tables: readonly Readable[],
  found: Map<TableName, readonly string[] | ServiceError>,
): Promise<void> {
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
      const isLocked = error.sqlstate === "55P03";
      found.set(
        table.name,
        new ServiceError(
          isLocked ? "source_locked" : error.code,
          `Cannot load ${table.name}: ${
            isLocked
              ? `${schema}.${name} is locked by another session in the source for more than ${config.lockTimeoutSeconds} s`
              : error.message
          }`,
          { table: table.name, cause: error, sqlstate: error.sqlstate },
        ),
      );
      throw new LockRefused();
    }
  }
}

/** Checks every table's columns as the snapshot sees them. */
async function checkShapes(
  session: Session,
  tables: readonly Readable[],
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
      table.isLockable,
      columns.filter((c) =>
        c.schema === table.source.schema && c.name === table.source.name
      ),
    ),
  ]);
}

function checkShape(
  table: Table,
  isLockable: boolean,
  columns: readonly Row[],
): readonly string[] | ServiceError {
  const { schema, name } = table.source;
  const warnings: string[] = isLockable ? [] : [
    `${schema}.${name} is no table, and what is under it cannot be locked: a TRUNCATE or a rewrite there during a load goes unseen`,
  ];
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
