/**
 * The snapshot of the source, which every table of a run is read from.
 *
 * @module
 */
import type { Config } from "../config/config.ts";
import { GONE, mayLackConnections } from "../postgres/errors.ts";
import { holderClause } from "../postgres/lock_holders.ts";
import { type ConnectionOptions, Session } from "../postgres/session.ts";
import { openWhenFree, SpareSessions } from "../postgres/spare_sessions.ts";
import { literal, setLockTimeout } from "../postgres/sql.ts";
import { ERRORS, hasCode, hasSqlstate, ServiceError } from "../errors.ts";
import { RECOVERY_CONFLICT_REMEDY } from "../postgres/meanings.ts";
import { HASH_PROBE, randomSeed } from "../diff/row_hash.ts";
import {
  existingSql,
  findColumns,
  findDependencies,
  isLockable,
  lockSql,
  readableOf,
  type ResolvedTable,
  resolveTables,
  type SourceChecks,
  type SourceRelation,
  type SourceTable,
  unsupportedReason,
} from "./source_tables.ts";
import {
  formatRelation,
  type Table,
  type TableDeclaration,
} from "../tables/declaration.ts";
import {
  HORIZON,
  type Horizon,
  horizonOf,
  MIN_PROOF_BYTES,
  sourceFacts,
} from "./verified_state.ts";

/** The state of a source table when the snapshot was taken. */
export interface SourceWatermark {
  /** Number of rows ever inserted, updated and deleted, by the server's statistics. They lag behind. */
  readonly changes: string;
  /** Number of rows ever updated and deleted. */
  readonly removals?: string;
}

/** A snapshot of the source. Disposing closes it. */
export interface Snapshot extends AsyncDisposable {
  /** Time of the snapshot in UTC, such as `2025-08-26T21:19:33.123456`. */
  readonly takenAt: string;
  /** Value of {@linkcode HASH_PROBE} on the source. */
  readonly hashProbe: string;
  readonly encoding: string;
  /** Seed of the row hashes. */
  readonly seed: bigint;
  /** The transactions that may run in it. */
  readonly horizon: Horizon;
  /** Facts of the tables whose row versions a proof can compare. */
  readonly facts: ReadonlyMap<string, string>;
  /** Watermarks. The next load expects a difference where one has changed. */
  readonly marks: ReadonlyMap<string, SourceWatermark>;
  /** Tables whose rows keep their ctid. */
  readonly withStableCtid: ReadonlySet<string>;
  /** Tables other than views: each read returns the same rows. */
  readonly repeatable: ReadonlySet<string>;
  /** Returns the error with the remedy for a standby, where its recovery may be the cause. */
  readonly explain: (error: unknown) => unknown;
  /** Names of the readable tables, the largest first. */
  readonly bySize: readonly string[];
  /** Each table with its columns, or the reason why it cannot be loaded. */
  readonly tables: ReadonlyMap<string, ResolvedTable | ServiceError>;
  /**
   * Returns a session that reads the table in the snapshot. The caller releases it,
   * or starts to close it. Disposing the snapshot waits until it is closed.
   *
   * @throws {ServiceError} `snapshot_lost` when the snapshot has ended, or the table cannot
   * be read in it.
   */
  readonly openReader: (table: TableDeclaration) => Promise<Session>;
  /**
   * Closes the reader of a table that is not loaded. Another table may wait for its
   * connection.
   */
  readonly abandon: (table: TableDeclaration) => void;
  /** Takes a reader back after it has read a table, for another table or to be closed. */
  readonly release: (reader: Session) => void;
  /**
   * Checks, after the table was read, that the relations that were read are the
   * locked ones. A locked table does not keep others from renaming its schema or
   * attaching a partition.
   *
   * @throws {ServiceError} `snapshot_lost`.
   */
  readonly confirm: (table: TableDeclaration) => Promise<void>;
}

/** The maximum number of snapshots, when DDL commits between a snapshot and its readers. */
const MAX_SNAPSHOTS = 5;

/**
 * Opens the snapshot and checks the columns of the source tables.
 *
 * The tables, and the relations under views, are locked before the snapshot is taken
 * (ACCESS SHARE, as for any SELECT). Otherwise a TRUNCATE, a rewriting ALTER or a
 * REFRESH MATERIALIZED VIEW could commit between the snapshot and the first read. The
 * table would then look empty or newer. None of them respects older snapshots. The
 * transaction is READ COMMITTED: in any other, the first lock on a view would also
 * take the snapshot. It exports the snapshot of one statement, which stays valid until
 * the transaction ends.
 *
 * The readers of the largest tables are opened with the snapshot, as many as are
 * loaded at the same time. A later reader fails where DDL waits for the snapshot's
 * lock, and the load then starts over. So connections do not grow with the number of
 * tables. Where no connection is free, a reader is opened after another one has ended.
 *
 * @param isLastAttempt whether a busy lock fails only its table, and not the attempt.
 * @throws {ServiceError} when the source cannot be reached or read. A failure of one
 * table is in `tables`.
 */
export async function openSnapshot(
  config: Config,
  connection: ConnectionOptions,
  tables: readonly TableDeclaration[],
  isLastAttempt = true,
): Promise<Snapshot> {
  const found: SourceChecks = new Map();
  for (let round = 1;; round++) {
    const sessions: Session[] = [];
    const spare = new SpareSessions();
    let isStandby = false;
    const explain = (error: unknown) =>
      isStandby ? asRecoveryConflict(error, config) : error;
    try {
      const holder = await Session.open(config.olist, connection);
      sessions.push(holder);
      const pending = tables.filter((table) =>
        !(found.get(table.name) instanceof ServiceError)
      );
      // The readers log in while the catalog is read.
      spare.open(
        Math.min(pending.length, config.maxParallelTasks),
        () => Session.open(holder.config, connection),
      );
      const existing = await holder.begin({
        mode: "read committed read only",
        lockTimeoutSeconds: config.lockTimeoutSeconds,
      }, existingSql(pending));
      isStandby = holder.isStandby;
      const present = readableOf(existing, holder, pending, found);
      await lockAll(config, holder, present, found, isLastAttempt);
      const [reads, columns] = await Promise.all([
        findDependencies(holder, present),
        findColumns(holder, present.filter(({ kind }) => kind !== "f")),
      ]);
      const supported = withoutUnsupported(present, reads, found);
      const resolved = await resolveTables(holder, supported, columns);
      for (const [name, table] of resolved) found.set(name, table);
      const readable = supported.filter(({ name }) =>
        !(found.get(name) instanceof ServiceError)
      );
      const [taken] = await holder.query<
        {
          id: string;
          takenat: string;
          probe: string;
          xmin: string;
          xmax: string;
        }
      >(`select pg_export_snapshot() as id, ${HASH_PROBE} as probe, ${HORIZON},
           to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US') as takenat`);
      // A standby exports a snapshot without its running transactions where one of them
      // has many subtransactions. So rows can appear later than its horizon says.
      const facts = isStandby ? new Map() : await sourceFacts(
        holder,
        readable.flatMap(({ name, oid }) => {
          const { table, dependsOn } = found.get(name) as ResolvedTable;
          const isFixed = dependsOn === "nothing" ||
            dependsOn === "time zone" && config.loadTimezone === "UTC";
          const names = table.columns.map((c) => c.from ?? c.name);
          const { bytes } = columns.find((row) => row.oid === oid)!;
          return isFixed && bytes >= MIN_PROOF_BYTES
            ? [{ name, oid, columns: names }]
            : [];
        }),
      );
      const open = async (table: SourceTable) =>
        await beginReading(
          config,
          await spare.take() ?? await Session.open(holder.config, connection),
          table,
          holder,
          taken!.id,
        );
      const readers = new Map<string, Session>();
      const idleReaders: Session[] = [];
      /** Whether no connection was free. Each reader then ends with its table. */
      let isShort = false;
      // Before DDL can wait for a table. The first ones are loaded at once.
      const first = largestFirst(readable).slice(0, config.maxParallelTasks);
      const openFirst = async (table: SourceTable) => {
        const reader = await open(table);
        sessions.push(reader);
        readers.set(table.name, reader);
        return reader;
      };
      const opened = await Promise.allSettled(first.map(openFirst));
      // Those of tables that cannot be read.
      const unused = spare.close();
      // A reader whose connection is not free can follow when another one has ended.
      for (const outcome of opened) {
        const canFollow = outcome.status === "fulfilled" ||
          mayLackConnections(outcome.reason);
        if (!canFollow) throw outcome.reason;
      }
      // Readers that log in at the same moment can all be refused, although one could stay.
      if (first.length > 0 && readers.size === 0) {
        await openWhenFree(() => openFirst(first[0]!), () => []);
      }
      const named = (of: (read: SourceRelation) => boolean) =>
        new Set(reads.filter((r) => r.isSource && of(r)).map((r) => r.table));
      return {
        takenAt: taken!.takenat,
        hashProbe: taken!.probe,
        encoding: holder.serverEncoding,
        seed: randomSeed(),
        horizon: horizonOf(taken!),
        facts,
        marks: new Map(
          reads.filter((r) => r.isSource && r.hasStableCtid).map((
            { table, changes, removals },
          ) => [table, { changes, removals }]),
        ),
        withStableCtid: named((read) => read.hasStableCtid),
        repeatable: named((read) => read.kind !== "v"),
        explain,
        tables: found,
        bySize: largestFirst(readable).map(({ name }) => name),
        async openReader({ name }) {
          const ready = readers.get(name);
          readers.delete(name);
          if (ready && !ready.failure) return ready;
          const table = readable.find((r) => r.name === name)!;
          const idle = idleReaders.pop();
          if (idle && isLockable(table.kind)) {
            await moveReader(config, idle, table, holder);
            return idle;
          }
          // Otherwise there would be one connection more.
          if (idle) void idle.close();
          const reader = await openWhenFree(
            () =>
              open(table).catch((error) => {
                isShort ||= mayLackConnections(error);
                // This one waits for their connections.
                if (isShort) {
                  for (const r of idleReaders.splice(0)) void r.close();
                }
                throw error;
              }),
            () => sessions.filter((session) => session !== holder),
          );
          sessions.push(reader);
          return reader;
        },
        abandon({ name }) {
          void readers.get(name)?.close();
          readers.delete(name);
        },
        release(reader) {
          const isNeeded = readable.length > first.length && !isShort;
          if (isNeeded && !reader.failure) idleReaders.push(reader);
          else void reader.close();
        },
        async confirm(table) {
          try {
            await confirmDependencies(holder, table, reads);
          } catch (error) {
            if (!isLost(error)) throw error;
            // The readers hold their own locks.
            const other = await Session.open(holder.config, connection);
            sessions.push(other);
            await confirmDependencies(other, table, reads);
          }
        },
        async [Symbol.asyncDispose]() {
          await Promise.all([
            unused,
            ...sessions.map((session) => session.close()),
          ]);
        },
      };
    } catch (cause) {
      const error = explain(cause);
      for (const session of sessions) session.destroy();
      void spare.close();
      const isWorthAnother = error instanceof LockRefused ||
        hasCode(error, "snapshot_lost");
      if (!isWorthAnother || round === MAX_SNAPSHOTS) throw error;
    }
  }
}

function largestFirst(tables: readonly SourceTable[]): SourceTable[] {
  return tables.toSorted((a, b) => b.pages - a.pages);
}

/**
 * Returns the tables with their columns. Reads the source only for tables whose
 * columns are not declared.
 *
 * @throws {ServiceError} when one of them cannot be loaded.
 */
export async function describeTables(
  config: Config,
  connection: ConnectionOptions,
  tables: readonly TableDeclaration[],
): Promise<readonly Table[]> {
  const undeclared = tables.filter(({ columns }) => !columns);
  await using snapshot = undeclared.length > 0
    ? await openSnapshot(config, connection, undeclared)
    : undefined;
  return tables.map(({ columns, ...table }) =>
    columns ? { ...table, columns } : resolvedIn(snapshot!, table).table
  );
}

/**
 * Returns the table with its columns, and warnings about its source.
 *
 * @throws {ServiceError} when it cannot be loaded.
 */
export function resolvedIn(
  snapshot: Snapshot,
  { name }: Pick<TableDeclaration, "name">,
): ResolvedTable {
  const resolved = snapshot.tables.get(name)!;
  if (resolved instanceof ServiceError) throw resolved;
  return resolved;
}

/** The minimum lock timeout in seconds. 0 would disable it. */
const AT_ONCE_SECONDS = 0.001;

/** Thrown when a table cannot be locked and is marked as failed. The transaction has ended. */
class LockRefused extends Error {}

/** Locks all tables in the open transaction. */
async function lockAll(
  config: Config,
  session: Session,
  tables: readonly SourceTable[],
  found: SourceChecks,
  isLastAttempt: boolean,
): Promise<void> {
  const [first, others] = [true, false].map((isFirst) =>
    tables.filter(({ kind }) => isLockable(kind) === isFirst)
  );
  // All in one round trip.
  const locks = first!.map((table) => session.query(lockSql(table)));
  for (const lock of locks) lock.catch(() => {});
  for (const [index, table] of [...first!, ...others!].entries()) {
    // A foreign table is refused later. Planning its query could contact another server.
    if (table.kind === "f") continue;
    try {
      // Planning a view can call its functions.
      await (locks[index] ??
        session.withOwnSearchPath(() => session.query(lockSql(table))));
    } catch (error) {
      if (
        !(error instanceof ServiceError) || !error.sqlstate || session.failure
      ) throw error;
      // It existed a moment ago. Another snapshot shows whether it still does.
      if (GONE.includes(error.sqlstate)) {
        throw snapshotLost(table, error.message, error);
      }
      const failure = error.sqlstate === "55P03"
        ? await lockedError(config, session, table, error)
        : error.of(table.name);
      if (failure.kind.transient && !isLastAttempt) throw failure;
      found.set(table.name, failure);
      throw new LockRefused();
    }
  }
}

async function lockedError(
  { lockTimeoutSeconds }: Config,
  session: Session,
  table: SourceTable,
  cause: ServiceError,
): Promise<ServiceError> {
  const { name, kind, source } = table;
  const what = `${formatRelation(source)}${
    kind === "v" ? " or a relation under it" : ""
  }`;
  let holder = "";
  try {
    await session.query("rollback");
    await session.begin({
      mode: "read committed read only",
      lockTimeoutSeconds,
    });
    const reads = await findDependencies(session, [table]);
    holder = await holderClause(session, { oids: reads.map(({ oid }) => oid) });
  } catch {
    // The lock is the failure to report.
  }
  return new ServiceError(
    "source_locked",
    `another session in the source locks ${what} for more than ${lockTimeoutSeconds} s${holder}`,
    { table: name, cause, sqlstate: cause.sqlstate },
  );
}

/** Returns the tables that can be loaded. Puts the others into `found` with the reason. */
function withoutUnsupported(
  tables: readonly SourceTable[],
  reads: readonly SourceRelation[],
  found: SourceChecks,
): SourceTable[] {
  return tables.filter((table) => {
    const ours = reads.filter((read) => read.table === table.name);
    if (!ours.some((read) => read.isSource && read.oid === table.oid)) {
      const name = formatRelation(table.source);
      throw snapshotLost(table, `${name} was replaced`);
    }
    const reason = unsupportedReason(table, ours);
    if (reason) found.set(table.name, reason);
    return !reason;
  });
}

/** @throws {ServiceError} `snapshot_lost` when the table now reads other relations. */
async function confirmDependencies(
  session: Session,
  table: TableDeclaration,
  before: readonly SourceRelation[],
): Promise<void> {
  const oids = (reads: readonly SourceRelation[]) =>
    reads.filter((read) => read.table === table.name)
      .map((read) => read.oid).sort().join();
  if (oids(await findDependencies(session, [table])) === oids(before)) return;
  const name = formatRelation(table.source);
  throw snapshotLost(
    table,
    `a relation that ${name} reads was replaced during the load`,
  );
}

/** Lets a new session read a table in the snapshot. */
async function beginReading(
  config: Config,
  session: Session,
  table: SourceTable,
  holder: Session,
  snapshotId: string,
): Promise<Session> {
  const lock = lockSql(table);
  const adopt = `set transaction snapshot ${literal(snapshotId)}`;
  const isLockedFirst = isLockable(table.kind);
  try {
    await session.begin(
      {
        mode: "repeatable read read only",
        timezone: config.loadTimezone,
        // Waiting would deadlock with DDL that waits for the snapshot.
        lockTimeoutSeconds: AT_ONCE_SECONDS,
        hasOwnSearchPath: !isLockedFirst,
      },
      [
        ...(isLockedFirst ? [lock, adopt] : [adopt, lock]),
        setLockTimeout(config.lockTimeoutSeconds),
      ].join(";\n"),
    );
    // The snapshot still exists after the lock, so no DDL committed before it.
    if (!isLockedFirst) {
      await holder.query("select 1").catch((error) => {
        throw isLost(error) ? snapshotLost(table, error.message, error) : error;
      });
    }
    return session;
  } catch (error) {
    session.destroy();
    throw hasSqlstate(error, ...LOST_SNAPSHOT)
      ? snapshotLost(table, error.message, error)
      : error;
  }
}

/**
 * Lets a reader of the snapshot read another table, which the holder has locked.
 *
 * @throws {ServiceError} `snapshot_lost` when DDL waits for the table, or the
 * holder's lock may have been lost.
 */
async function moveReader(
  config: Config,
  reader: Session,
  table: SourceTable,
  holder: Session,
): Promise<void> {
  try {
    await reader.query(
      [
        setLockTimeout(AT_ONCE_SECONDS),
        lockSql(table),
        setLockTimeout(config.lockTimeoutSeconds),
      ].join(";\n"),
    );
    await holder.query("select 1");
  } catch (error) {
    reader.destroy();
    throw isLost(error) || hasSqlstate(error, ...LOST_SNAPSHOT)
      ? snapshotLost(table, error.message, error)
      : error;
  }
}

/**
 * Returns the error with the standby's settings as remedy where recovery may be
 * its cause. Nothing else rolls a read-only transaction back on a standby. A lost
 * connection can have other causes.
 */
function asRecoveryConflict(error: unknown, { olist }: Config): unknown {
  if (!(error instanceof ServiceError)) return error;
  const { code, server, sqlstate } = error;
  const isRollback = server === olist.label && sqlstate?.startsWith("40");
  const isLoss = server === olist.label && code === "connection_lost";
  if (!isRollback && !isLoss && code !== "snapshot_lost") return error;
  return error.with({
    code: isRollback ? "snapshot_lost" : code,
    remedy: isLoss
      ? `${ERRORS[code].remedy} ${RECOVERY_CONFLICT_REMEDY}`
      : RECOVERY_CONFLICT_REMEDY,
  });
}

/** Returns whether the session is lost or unreachable. */
function isLost(error: unknown): error is ServiceError {
  return hasCode(error, "connection_lost", "stalled");
}

function snapshotLost(
  { name: table }: TableDeclaration,
  reason: string,
  cause?: ServiceError,
): ServiceError {
  return new ServiceError(
    "snapshot_lost",
    `the source's snapshot ended, or DDL changed the table (${reason})`,
    { table, cause, sqlstate: cause?.sqlstate },
  );
}

/**
 * SQLSTATEs of a snapshot that can no longer be read, and of a missing table. 22023
 * is an unknown identifier, 55000 an ended transaction, and 42704 a missing file.
 * 55P03 is DDL that waits for the table.
 */
const LOST_SNAPSHOT = ["22023", "55000", "42704", "55P03", ...GONE];
