/**
 * The snapshot of the source, which every table of a run is read from.
 *
 * @module
 */
import type { Config } from "../config/config.ts";
import { GONE } from "../postgres/errors.ts";
import { holderClause } from "../postgres/lock_holders.ts";
import { type ConnectionOptions, Session } from "../postgres/session.ts";
import { ERRORS, hasCode, ServiceError } from "../errors.ts";
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
import { Readers } from "./readers.ts";
import { isLost, snapshotLost } from "./table_errors.ts";
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
  /** See {@linkcode Readers.open}. Disposing the snapshot waits until the reader is closed. */
  readonly openReader: (table: TableDeclaration) => Promise<Session>;
  /** See {@linkcode Readers.abandon}. */
  readonly abandon: (table: TableDeclaration) => void;
  /** See {@linkcode Readers.release}. */
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
    const holder = await Session.open(config.olist, connection);
    const readers = new Readers(config, connection, holder);
    const pending = tables.filter((table) =>
      !(found.get(table.name) instanceof ServiceError)
    );
    try {
      // The readers log in while the catalog is read.
      readers.logInAhead(pending.length);
      const checked = await lockAndCheck(
        config,
        holder,
        pending,
        found,
        isLastAttempt,
      );
      return await takeSnapshot(
        { config, connection, holder, readers, found },
        checked,
      );
    } catch (cause) {
      const error = explainAt(holder, cause);
      holder.destroy();
      readers.destroy();
      const isWorthAnother = error instanceof LockRefused ||
        hasCode(error, "snapshot_lost");
      if (!isWorthAnother || round === MAX_SNAPSHOTS) throw error;
    }
  }
}

/** The locked tables, and the relations that they read. */
interface Checked {
  /** Tables that can be loaded, the largest first. */
  readonly readable: readonly SourceTable[];
  readonly reads: readonly SourceRelation[];
  readonly columns: Awaited<ReturnType<typeof findColumns>>;
}

/**
 * Begins the transaction of the snapshot, locks the tables and checks their columns.
 * Puts the result of each table into `found`.
 *
 * @throws {LockRefused} when a table cannot be locked.
 * @throws {ServiceError} when the source cannot be read.
 */
async function lockAndCheck(
  config: Config,
  holder: Session,
  tables: readonly TableDeclaration[],
  found: SourceChecks,
  isLastAttempt: boolean,
): Promise<Checked> {
  const existing = await holder.begin({
    mode: "read committed read only",
    lockTimeoutSeconds: config.lockTimeoutSeconds,
  }, existingSql(tables));
  const present = readableOf(existing, holder, tables, found);
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
  return {
    readable: readable.toSorted((a, b) => b.pages - a.pages),
    reads,
    columns,
  };
}

/** The sessions of a snapshot, and the results of its checks. */
interface Opening {
  readonly config: Config;
  readonly connection: ConnectionOptions;
  readonly holder: Session;
  readonly readers: Readers;
  readonly found: SourceChecks;
}

/** Takes the snapshot of the locked tables, and opens its first readers. */
async function takeSnapshot(
  { config, connection, holder, readers, found }: Opening,
  { readable, reads, columns }: Checked,
): Promise<Snapshot> {
  const [taken] = await holder.query<
    { id: string; takenat: string; probe: string; xmin: string; xmax: string }
  >(`select pg_export_snapshot() as id, ${HASH_PROBE} as probe, ${HORIZON},
       to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US') as takenat`);
  // A standby exports a snapshot without its running transactions where one of them
  // has many subtransactions. So rows can appear later than its horizon says.
  const facts = holder.isStandby
    ? new Map()
    : await sourceFacts(holder, provable(config, readable, columns, found));
  await readers.openFirst(readable, taken!.id);
  const named = (of: (read: SourceRelation) => boolean) =>
    new Set(reads.filter((r) => r.isSource && of(r)).map((r) => r.table));
  const others: Session[] = [];
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
    explain: (error) => explainAt(holder, error),
    tables: found,
    bySize: readable.map(({ name }) => name),
    openReader: ({ name }) =>
      readers.open(readable.find((table) => table.name === name)!),
    abandon: ({ name }) => readers.abandon(name),
    release: (reader) => readers.release(reader),
    async confirm(table) {
      try {
        await confirmDependencies(holder, table, reads);
      } catch (error) {
        if (!isLost(error)) throw error;
        // The readers hold their own locks.
        const other = await Session.open(holder.config, connection);
        others.push(other);
        await confirmDependencies(other, table, reads);
      }
    },
    async [Symbol.asyncDispose]() {
      await Promise.all([
        readers.close(),
        ...[holder, ...others].map((session) => session.close()),
      ]);
    },
  };
}

/** Returns the tables whose row versions a proof can compare, and that are worth it. */
function provable(
  { loadTimezone }: Config,
  readable: readonly SourceTable[],
  sizes: Checked["columns"],
  found: SourceChecks,
): Parameters<typeof sourceFacts>[1] {
  return readable.flatMap(({ name, oid }) => {
    const { table, dependsOn } = found.get(name) as ResolvedTable;
    const isFixed = dependsOn === "nothing" ||
      dependsOn === "time zone" && loadTimezone === "UTC";
    const columns = table.columns.map((c) => c.from ?? c.name);
    const { bytes } = sizes.find((row) => row.oid === oid)!;
    return isFixed && bytes >= MIN_PROOF_BYTES ? [{ name, oid, columns }] : [];
  });
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

/**
 * Returns the error with a standby's settings as remedy where its recovery may be
 * the cause. Nothing else rolls a read-only transaction back on a standby. A lost
 * connection can have other causes.
 */
function explainAt({ isStandby, config }: Session, error: unknown): unknown {
  if (!isStandby || !(error instanceof ServiceError)) return error;
  const { code, server, sqlstate } = error;
  const isRollback = server === config.label && sqlstate?.startsWith("40");
  const isLoss = server === config.label && code === "connection_lost";
  if (!isRollback && !isLoss && code !== "snapshot_lost") return error;
  return error.with({
    code: isRollback ? "snapshot_lost" : code,
    remedy: isLoss
      ? `${ERRORS[code].remedy} ${RECOVERY_CONFLICT_REMEDY}`
      : RECOVERY_CONFLICT_REMEDY,
  });
}
