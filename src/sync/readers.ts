/**
 * Sessions that read the source's tables in one snapshot.
 *
 * @module
 */
import type { Config } from "../config/config.ts";
import { GONE, mayLackConnections } from "../postgres/errors.ts";
import { type ConnectionOptions, Session } from "../postgres/session.ts";
import { openWhenFree, SpareSessions } from "../postgres/spare_sessions.ts";
import { literal, setLockTimeout } from "../postgres/sql.ts";
import { hasSqlstate } from "../errors.ts";
import { isLockable, lockSql, type SourceTable } from "./source_tables.ts";
import { isLost, snapshotLost } from "./table_errors.ts";

/**
 * The readers of a snapshot, which one session holds.
 *
 * The readers of the largest tables are opened with the snapshot, as many as are
 * loaded at the same time. A later reader fails where DDL waits for the holder's
 * lock, and the load then starts over. So connections do not grow with the number of
 * tables. Where no connection is free, a reader is opened after another one has ended.
 */
export class Readers {
  readonly #config: Config;
  readonly #connection: ConnectionOptions;
  readonly #holder: Session;
  readonly #spare = new SpareSessions();
  /** All readers so far. */
  readonly #opened: Session[] = [];
  /** Open readers of tables that have not been loaded, by table. */
  readonly #ready = new Map<string, Session>();
  readonly #idle: Session[] = [];
  #snapshotId = "";
  /** Whether there are more tables than readers. */
  #hasMore = false;
  /** Whether no connection was free. Each reader then ends with its table. */
  #isShort = false;
  #unused = Promise.resolve();

  /** @param holder the session that locks the tables and exports the snapshot. */
  constructor(config: Config, connection: ConnectionOptions, holder: Session) {
    this.#config = config;
    this.#connection = connection;
    this.#holder = holder;
  }

  /** Opens sessions for the readers of so many tables, without waiting for them. */
  logInAhead(tables: number): void {
    this.#spare.open(
      Math.min(tables, this.#config.maxParallelTasks),
      () => this.#connect(),
    );
  }

  /**
   * Opens the readers of the tables that are loaded first, before DDL can wait for
   * these tables.
   *
   * @param tables all tables of the load, in its order.
   * @throws {ServiceError} `snapshot_lost`, or the failure of a connection.
   */
  async openFirst(
    tables: readonly SourceTable[],
    snapshotId: string,
  ): Promise<void> {
    this.#snapshotId = snapshotId;
    const first = tables.slice(0, this.#config.maxParallelTasks);
    this.#hasMore = tables.length > first.length;
    const open = async (table: SourceTable) => {
      const reader = await this.#begin(table);
      this.#opened.push(reader);
      this.#ready.set(table.name, reader);
      return reader;
    };
    const outcomes = await Promise.allSettled(first.map(open));
    // Those of tables that cannot be read.
    this.#unused = this.#spare.close();
    // A reader whose connection is not free can follow when another one has ended.
    for (const outcome of outcomes) {
      const canFollow = outcome.status === "fulfilled" ||
        mayLackConnections(outcome.reason);
      if (!canFollow) throw outcome.reason;
    }
    // Readers that log in at the same moment can all be refused, although one could stay.
    if (first.length > 0 && this.#ready.size === 0) {
      await openWhenFree(() => open(first[0]!), () => []);
    }
  }

  /**
   * Returns a session that reads the table. The caller releases it, or starts to
   * close it.
   *
   * @throws {ServiceError} `snapshot_lost` when the snapshot has ended, or the table cannot
   * be read in it.
   */
  async open(table: SourceTable): Promise<Session> {
    const ready = this.#ready.get(table.name);
    this.#ready.delete(table.name);
    if (ready && !ready.failure) return ready;
    const idle = this.#idle.pop();
    if (idle && isLockable(table.kind)) {
      await moveReader(this.#config, idle, table, this.#holder);
      return idle;
    }
    // Otherwise there would be one connection more.
    if (idle) void idle.close();
    const reader = await openWhenFree(
      () =>
        this.#begin(table).catch((error) => {
          this.#isShort ||= mayLackConnections(error);
          // This one waits for their connections.
          if (this.#isShort) {
            for (const other of this.#idle.splice(0)) void other.close();
          }
          throw error;
        }),
      () => this.#opened,
    );
    this.#opened.push(reader);
    return reader;
  }

  /**
   * Closes the reader of a table that is not loaded. Another table may wait for its
   * connection.
   */
  abandon(table: string): void {
    void this.#ready.get(table)?.close();
    this.#ready.delete(table);
  }

  /** Takes a reader back after it has read a table, for another table or to be closed. */
  release(reader: Session): void {
    const isNeeded = this.#hasMore && !this.#isShort;
    if (isNeeded && !reader.failure) this.#idle.push(reader);
    else void reader.close();
  }

  /** Waits until all readers are closed. */
  async close(): Promise<void> {
    await Promise.all([
      this.#unused,
      ...this.#opened.map((reader) => reader.close()),
    ]);
  }

  /** Closes all connections at once. */
  destroy(): void {
    for (const reader of this.#opened) reader.destroy();
    void this.#spare.close();
  }

  #connect(): Promise<Session> {
    return Session.open(this.#holder.config, this.#connection);
  }

  async #begin(table: SourceTable): Promise<Session> {
    return await beginReading(
      this.#config,
      await this.#spare.take() ?? await this.#connect(),
      table,
      this.#holder,
      this.#snapshotId,
    );
  }
}

/** The minimum lock timeout in seconds. 0 would disable it. */
const AT_ONCE_SECONDS = 0.001;

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
 * SQLSTATEs of a snapshot that can no longer be read, and of a missing table. 22023
 * is an unknown identifier, 55000 an ended transaction, and 42704 a missing file.
 * 55P03 is DDL that waits for the table.
 */
const LOST_SNAPSHOT = ["22023", "55000", "42704", "55P03", ...GONE];
