/**
 * The one view of the source that all tables of a run are read from.
 *
 * @module
 */
import type { Config } from "../config/config.ts";
import { GONE } from "../postgres/errors.ts";
import { type ConnectionOptions, Session } from "../postgres/session.ts";
import { literal } from "../postgres/sql.ts";
import { ERRORS, ServiceError } from "../errors.ts";
import { RECOVERY_CONFLICT_REMEDY } from "../postgres/errors.ts";
import { HASH_PROBE, randomSeed } from "../diff/queries.ts";
import {
  checkColumns,
  findDependencies,
  findReadable,
  isLockable,
  lockSql,
  type SourceChecks,
  type SourceRelation,
  type SourceTable,
  unsupportedReason,
} from "./source_tables.ts";
import type { Table, TableName } from "../tables/declaration.ts";

/** Where a source table was in its history when the snapshot was taken. */
export interface SourceWatermark {
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
  /** Seed of the row hashes that are compared under it. */
  readonly seed: bigint;
  /** Per table whose server tells it, what the next load can begin its search with. */
  readonly marks: ReadonlyMap<TableName, SourceWatermark>;
  /** Tables whose rows can be found again by their ctid. */
  readonly withStableCtid: ReadonlySet<TableName>;
  /** Tables that the snapshot gives the same rows of each time: no view computes them. */
  readonly repeatable: ReadonlySet<TableName>;
  /** The error with its cause where recovery of a standby is that. Any other is returned as it is. */
  readonly explain: (error: unknown) => unknown;
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
  /**
   * To be called when the table has been read: sees to it that what was read is
   * what was locked. A schema can be renamed and a partition attached although
   * the tables are locked.
   *
   * @throws {ServiceError} `snapshot_lost`.
   */
  readonly confirm: (table: Table) => Promise<void>;
}

/** Times that the snapshot is taken anew because DDL came between it and its readers. */
const MAX_SNAPSHOTS = 5;

/**
 * Opens the snapshot and checks the source tables' shapes.
 *
 * The tables and all that is under them are locked (ACCESS SHARE, as any SELECT
 * does) before the snapshot is taken. Without that, a TRUNCATE, a rewriting ALTER
 * or a REFRESH MATERIALIZED VIEW that commits between the snapshot and the first
 * read would make the table look empty or newer, since none of them respects
 * older snapshots. So the transaction is READ COMMITTED: in another one the
 * first lock on a view would take the snapshot as well. What it exports is the
 * snapshot of that one statement, which stays valid until the transaction ends.
 *
 * Each table's reader is opened along with the snapshot: one that came later
 * would queue behind DDL that itself waits for the snapshot's lock.
 *
 * @param isLastAttempt whether a lock that is not free fails its table alone,
 * rather than the attempt.
 * @throws {ServiceError} when the source cannot be reached or read at all. What
 * is wrong with one table is in `tables`.
 */
export async function openSnapshot(
  config: Config,
  connection: ConnectionOptions,
  tables: readonly Table[],
  isLastAttempt = true,
): Promise<Snapshot> {
  const found: SourceChecks = new Map();
  for (let round = 1;; round++) {
    const sessions: Session[] = [];
    let isStandby = false;
    const explain = (error: unknown) =>
      isStandby ? asRecoveryConflict(error, config) : error;
    try {
      const holder = await Session.open(config.olist, connection);
      sessions.push(holder);
      const pending = tables.filter((table) =>
        !(found.get(table.name) instanceof ServiceError)
      );
      const [server] = await holder.begin<{ standby: boolean }>({
        mode: "read committed read only",
        lockTimeoutSeconds: config.lockTimeoutSeconds,
      }, "select pg_catalog.pg_is_in_recovery() as standby");
      isStandby = server!.standby;
      const present = await findReadable(holder, pending, found);
      await lockAll(config, holder, present, found, isLastAttempt);
      const reads = await findDependencies(holder, present);
      const readable = withoutUnsupported(present, reads, found);
      const [taken] = await holder.query<
        { id: string; takenat: string; probe: string; xid: string }
      >(`select pg_export_snapshot() as id, ${HASH_PROBE} as probe,
           pg_snapshot_xmin(pg_current_snapshot())::text as xid,
           to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US') as takenat`);
      const open = (table: SourceTable) =>
        openReader(config, connection, table, holder, taken!.id);
      const readers = new Map<TableName, Session>();
      const opened = await Promise.allSettled(readable.map(async (table) => {
        const reader = await open(table);
        sessions.push(reader);
        readers.set(table.name, reader);
      }));
      for (const outcome of opened) {
        if (outcome.status === "rejected") throw outcome.reason;
      }
      for (const [name, shape] of await checkColumns(holder, readable)) {
        found.set(name, shape);
      }
      const named = (of: (read: SourceRelation) => boolean) =>
        new Set(reads.filter((r) => r.isSource && of(r)).map((r) => r.table));
      return {
        takenAt: taken!.takenat,
        hashProbe: taken!.probe,
        encoding: holder.serverEncoding,
        seed: randomSeed(),
        marks: new Map(
          reads.filter((r) => r.isSource && r.hasStableCtid).map((
            { table, deletions },
          ) => [table, { deletions, xid: taken!.xid }]),
        ),
        withStableCtid: named((read) => read.hasStableCtid),
        repeatable: named((read) => read.kind !== "v"),
        explain,
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
        async confirm(table) {
          try {
            await confirmDependencies(holder, table, reads);
          } catch (error) {
            if (!isLost(error)) throw error;
            // The readers' own locks have outlived it.
            const other = await Session.open(config.olist, connection);
            sessions.push(other);
            await confirmDependencies(other, table, reads);
          }
        },
        async [Symbol.asyncDispose]() {
          await Promise.all(sessions.map((session) => session.close()));
        },
      };
    } catch (cause) {
      const error = explain(cause);
      for (const session of sessions) session.destroy();
      const isWorthAnother = error instanceof LockRefused ||
        error instanceof ServiceError && error.code === "snapshot_lost";
      if (!isWorthAnother || round === MAX_SNAPSHOTS) throw error;
    }
  }
}

/** The least time to wait for a lock; 0 would be no limit. */
const AT_ONCE_SECONDS = 0.001;

/** One table could not be locked, which ended the transaction; the table is marked as failed. */
class LockRefused extends Error {}

/** Locks all tables, in the transaction that is open. */
async function lockAll(
  config: Config,
  session: Session,
  tables: readonly SourceTable[],
  found: SourceChecks,
  isLastAttempt: boolean,
): Promise<void> {
  for (const table of tables) {
    // It will be refused, and only to plan its query may ask another server.
    if (table.kind === "f") continue;
    try {
      const lock = () => session.query(lockSql(table));
      // To plan a view may call its functions.
      await (isLockable(table.kind) ? lock() : session.withOwnSearchPath(lock));
    } catch (error) {
      if (
        !(error instanceof ServiceError) || !error.sqlstate || session.failure
      ) throw error;
      // It was there a moment ago: whether it still is, is for another look to say.
      if (GONE.has(error.sqlstate)) {
        throw snapshotLost(table, error.message, error);
      }
      const failure = lockFailure(config, table, error);
      if (failure.kind.transient && !isLastAttempt) throw failure;
      found.set(table.name, failure);
      throw new LockRefused();
    }
  }
}

function lockFailure(
  { lockTimeoutSeconds }: Config,
  { name: table, kind, source }: SourceTable,
  error: ServiceError,
): ServiceError {
  const name = `${source.schema}.${source.name}`;
  if (error.sqlstate !== "55P03") return error.of(table);
  const what = kind === "v" ? `${name} or what is under it` : name;
  return new ServiceError(
    "source_locked",
    `${what} is locked by another session in the source for more than ${lockTimeoutSeconds} s`,
    { table, cause: error, sqlstate: error.sqlstate },
  );
}

/** The tables that can be loaded; the others go to `found` with the reason. */
function withoutUnsupported(
  tables: readonly SourceTable[],
  reads: readonly SourceRelation[],
  found: SourceChecks,
): SourceTable[] {
  return tables.filter((table) => {
    const ours = reads.filter((read) => read.table === table.name);
    if (!ours.some((read) => read.isSource && read.oid === table.oid)) {
      const { schema, name } = table.source;
      throw snapshotLost(table, `${schema}.${name} was exchanged`);
    }
    const reason = unsupportedReason(table, ours);
    if (reason) found.set(table.name, reason);
    return !reason;
  });
}

/** @throws {ServiceError} `snapshot_lost` when other relations are read by now than were before. */
async function confirmDependencies(
  session: Session,
  table: Table,
  before: readonly SourceRelation[],
): Promise<void> {
  const oids = (reads: readonly SourceRelation[]) =>
    reads.filter((read) => read.table === table.name)
      .map((read) => read.oid).sort().join();
  if (oids(await findDependencies(session, [table])) === oids(before)) return;
  const { schema, name } = table.source;
  throw snapshotLost(
    table,
    `what is read as ${schema}.${name} was exchanged during the load`,
  );
}

async function openReader(
  config: Config,
  connection: ConnectionOptions,
  table: SourceTable,
  holder: Session,
  snapshotId: string,
): Promise<Session> {
  const session = await Session.open(config.olist, connection);
  const lock = lockSql(table);
  const adopt = `set transaction snapshot ${literal(snapshotId)}`;
  const isLockedFirst = isLockable(table.kind);
  try {
    await session.begin(
      {
        mode: "repeatable read read only",
        timezone: config.loadTimezone,
        // Waiting here would be for DDL that waits for the snapshot: neither would end.
        lockTimeoutSeconds: AT_ONCE_SECONDS,
        hasOwnSearchPath: !isLockedFirst,
      },
      [
        ...(isLockedFirst ? [lock, adopt] : [adopt, lock]),
        `set local lock_timeout = '${
          Math.round(config.lockTimeoutSeconds * 1000)
        }ms'`,
      ].join(";\n"),
    );
    // That the snapshot was there after the lock says that no DDL came before it.
    if (!isLockedFirst) {
      await holder.query("select 1").catch((error) => {
        throw isLost(error) ? snapshotLost(table, error.message, error) : error;
      });
    }
    return session;
  } catch (error) {
    session.destroy();
    if (
      error instanceof ServiceError && LOST_SNAPSHOT.has(error.sqlstate ?? "")
    ) throw snapshotLost(table, error.message, error);
    throw error;
  }
}

/**
 * The error of a standby whose recovery may be its cause. Nothing else rolls a
 * read-only transaction back there. A lost connection can have other causes.
 */
function asRecoveryConflict(error: unknown, { olist }: Config): unknown {
  if (!(error instanceof ServiceError)) return error;
  const { code, reason, server, sqlstate, table } = error;
  const isRollback = server === olist.label && sqlstate?.startsWith("40");
  const isLoss = server === olist.label && code === "connection_lost";
  if (!isRollback && !isLoss && code !== "snapshot_lost") return error;
  return new ServiceError(
    isRollback ? "snapshot_lost" : code,
    reason,
    {
      server,
      sqlstate,
      table,
      cause: error,
      remedy: isLoss
        ? `${ERRORS[code].remedy} ${RECOVERY_CONFLICT_REMEDY}`
        : RECOVERY_CONFLICT_REMEDY,
    },
  );
}

/** Whether the session is gone or out of reach; its server may have said so before its end was noticed. */
function isLost(error: unknown): error is ServiceError {
  return error instanceof ServiceError &&
    (error.code === "connection_lost" || error.code === "stalled");
}

function snapshotLost(
  { name: table }: Table,
  reason: string,
  cause?: ServiceError,
): ServiceError {
  return new ServiceError(
    "snapshot_lost",
    `the source's snapshot is gone or overtaken by DDL (${reason})`,
    { table, cause, sqlstate: cause?.sqlstate },
  );
}

/**
 * SQLSTATEs that say that a snapshot can no longer be read from: 22023 invalid
 * or unknown identifier, 55000 its transaction is over, 42704 no such file,
 * 55P03 DDL is waiting for the table; or that the table is gone.
 */
const LOST_SNAPSHOT = new Set(["22023", "55000", "42704", "55P03", ...GONE]);
