/**
 * The story of a load:
 *
 * ```
 * trigger → lock → open run → snapshot ─┬─ table: compare → apply → verify ─┐
 *                                       └─ table: compare → apply → verify ─┴→ commit → event → answer
 * ```
 *
 * Read from top to bottom; what one table goes through is in `table_load.ts`.
 *
 * @module
 */
import type { Logger } from "@logtape/logtape";
import { pooledMap } from "@std/async/pool";
import { retry, RetryError } from "@std/async/retry";
import type { Config } from "./config.ts";
import {
  APPLICATION_NAME,
  type ConnectionOptions,
  identifier,
  literal,
  type Pool,
  Session,
} from "./db.ts";
import { asServiceError, type ErrorCode, ServiceError } from "./errors.ts";
import {
  type FailedEntry,
  failedEntry,
  failedEvent,
  failureLine,
  integrityCheck,
  loadedEntry,
  loadedEvent,
  type LoadEvent,
  timestampOf,
  type Trigger,
} from "./events.ts";
import { migrate } from "./migrate.ts";
import {
  claimRun,
  closeRun,
  committedTables,
  confirmRun,
  databaseTime,
  endBackend,
  enqueueRun,
  eventOf,
  interruptDeadRuns,
  lastLoads,
  recordTableLoad,
  requeueRun,
  type Run,
  type RunEnd,
  type RunOptions,
  type Ticket,
  withdrawRun,
} from "./runs.ts";
import { publisherNames } from "./publish/deliverer.ts";
import { registerPublishers } from "./publish/deliveries.ts";
import { drainSpool, spoolFailure } from "./publish/spool.ts";
import type { Progress } from "./progress.ts";
import { openSnapshot, type Snapshot } from "./snapshot.ts";
import {
  loadTable,
  type TableResult,
  warehouseTransaction,
} from "./table_load.ts";
import { type Table, tablesNamed, TARGET_SCHEMA } from "./tables.ts";
import {
  acquireLock,
  isLock,
  type Lock,
  LOCK_APPLICATION_NAME,
  waitForTurn,
} from "./trigger.ts";

/** What a load works with; made once by the process. */
export interface Service {
  readonly config: Config;
  /** The warehouse, for everything that is not a load. */
  readonly warehouse: Pool;
  readonly log: Logger;
  /** Names this process in the history. */
  readonly runner: string;
  /** Begins to hand finished events to files and endpoints; must not wait or throw. */
  readonly deliver: () => void;
}

/** Listeners and limits of one request for a load. */
export interface LoadHooks {
  /** Aborts the load; the reason should be a {@linkcode ServiceError}. */
  readonly signal?: AbortSignal;
  readonly onProgress?: (runId: string, progress: Progress) => void;
  /** Called while the lock is held and before the run begins: the last moment to join it. */
  readonly beforeStart?: () => Promise<void>;
  /** Called when the run has begun, so that no later request may join it. */
  readonly onStart?: (run: Run) => void;
}

/**
 * Asks for a load, waits for its turn, and runs it.
 *
 * @returns the run's event, also when the run failed.
 * @throws {ServiceError} when no run came to be: `busy`, no connection, no permission.
 */
export async function load(
  service: Service,
  trigger: Trigger,
  options: RunOptions,
  hooks: LoadHooks = {},
): Promise<LoadEvent> {
  const { config, warehouse } = service;
  let ticket: Ticket;
  try {
    // Queueing twice is queueing once: the second request joins the first.
    ticket = await withRetries(retriesOf(service, hooks.signal), async () => {
      await migrate(warehouse, connectionOf(config, "migrate", hooks.signal));
      return await enqueueRun(
        warehouse,
        trigger,
        options,
        config.lockTimeoutSeconds,
      );
    });
  } catch (error) {
    // Any other failure is one of a request that never became a run.
    if (asServiceError(error).kind.exit === 69) {
      await announceUnrecorded(
        service,
        { ...options, id: crypto.randomUUID(), trigger },
        error,
      );
    }
    throw error;
  }
  return await driveRun(service, ticket, hooks);
}

/** Sees to it that a queued run is run, by this process or by another one, and returns its event. */
export async function driveRun(
  service: Service,
  ticket: Ticket,
  hooks: LoadHooks = {},
): Promise<LoadEvent> {
  const event = await runInTurn(service, ticket, hooks);
  // Only now: whoever is slow to take the event must not hold the lock.
  service.deliver();
  return event;
}

async function runInTurn(
  service: Service,
  ticket: Ticket,
  hooks: LoadHooks,
): Promise<LoadEvent> {
  const { warehouse, log } = service;
  await using locks = new AsyncDisposableStack();
  let turn: { run: Run; lock: Lock } | LoadEvent;
  try {
    turn = await takeTurn(service, ticket, hooks, locks);
  } catch (error) {
    try {
      const event = await withdrawRun(warehouse, ticket, asServiceError(error));
      if (event) service.deliver();
    } catch (reason) {
      log.warn("Run {run_id} stays queued: {reason}", {
        run_id: ticket.runId,
        reason: asServiceError(reason).message,
      });
    }
    throw error;
  }
  if (!("run" in turn)) return turn;
  const { run, lock } = turn;
  hooks.onStart?.(run);
  try {
    return await executeRun(service, run, lock, locks, hooks);
  } catch (error) {
    await announceUnrecorded(service, run, error);
    throw error;
  }
}

/**
 * Waits for the lock, brings the history up to date under it, and claims the
 * run; or returns the event of a run that another process has finished.
 */
async function takeTurn(
  service: Service,
  ticket: Ticket,
  hooks: LoadHooks,
  locks: AsyncDisposableStack,
): Promise<{ run: Run; lock: Lock } | LoadEvent> {
  const { config, warehouse, log, runner } = service;
  const retries = retriesOf(service, hooks.signal);
  const turn = await withRetries(retries, async () => {
    const turn = await waitForTurn(config, warehouse, ticket, hooks.signal);
    if (!isLock(turn)) return turn;
    try {
      // Before there are events that a new publisher has to be told of.
      await registerPublishers(warehouse, publisherNames(config));
      await drainSpool(warehouse, config.eventSpoolFile, log);
      for (const id of await interruptDeadRuns(warehouse)) {
        log.warn("Run {run_id} was found dead and is now interrupted", {
          run_id: id,
        });
      }
      return turn;
    } catch (error) {
      await turn[Symbol.asyncDispose]();
      throw error;
    }
  });
  if (!isLock(turn)) return turn;
  const lock = locks.use(turn);
  await hooks.beforeStart?.();
  hooks.signal?.throwIfAborted();
  const run = await withRetries(
    retries,
    () => claimRun(warehouse, ticket.runId, runner),
  );
  if (!run) {
    const event = await eventOf(warehouse, ticket.runId);
    if (event) return event;
    throw new ServiceError(
      "run_lost",
      `Run ${ticket.runId} is no longer in the history`,
    );
  }
  if (hooks.signal?.aborted) {
    // Asked to stop in between: the run has not begun, and others may still want it.
    await requeueRun(warehouse, run.id, runner);
    throw hooks.signal.reason;
  }
  return { run, lock };
}

/** Keeps a failure that the warehouse did not take, for the next load to put on record there. */
export async function announceUnrecorded(
  service: Service,
  run: Run,
  cause: unknown,
): Promise<void> {
  const error = asServiceError(cause);
  const entries = run.tables.map((table) => failedEntry(table, error, 1));
  const event = failedEvent(
    {
      runId: run.id,
      trigger: run.trigger,
      timestamp: timestampOf(new Date()),
      sourceSnapshotAt: null,
    },
    error.line,
    entries,
  );
  try {
    await spoolFailure(service.config.eventSpoolFile, {
      run,
      event,
      code: error.code,
    });
  } catch (reason) {
    service.log.error("The failure of run {run_id} is on no record: {reason}", {
      run_id: run.id,
      reason: asServiceError(reason).line,
    });
  }
}

/** Runs a claimed run to its event. */
async function executeRun(
  service: Service,
  run: Run,
  lock: Lock,
  locks: AsyncDisposableStack,
  hooks: LoadHooks,
): Promise<LoadEvent> {
  const { config } = service;
  const log = service.log.with({ run_id: run.id });
  const context: RunContext = {
    service,
    run,
    log,
    lock,
    locks,
    renewal: undefined,
    signal: hooks.signal,
    onProgress: (progress) => hooks.onProgress?.(run.id, progress),
  };
  log.info("Run {run_id} begins: {tables}, asked for by {trigger}", {
    tables: run.tables.join(", "),
    trigger: run.trigger,
  });
  for (let round = 1;; round++) {
    const units = await prepareFromOneSnapshot(context);
    if (round < config.retryAttempts && units.outcomes.some(hasLostSnapshot)) {
      // Two snapshots must never be mixed, so what is prepared is given up too.
      log.warn("The source's snapshot was lost: starting over with a new one");
      for (const unit of units.outcomes) unit.session?.destroy();
      await units.release();
      continue;
    }
    const event = await commitUnits(context, units);
    logEnd(context, event);
    return event;
  }
}

interface RunContext {
  readonly service: Service;
  readonly run: Run;
  readonly log: Logger;
  /** The lock that is held, the next one after a loss; all of them are in `locks`. */
  lock: Lock;
  readonly locks: AsyncDisposableStack;
  /** The lock is being taken again. */
  renewal: Promise<void> | undefined;
  /** Aborted when the load is to stop. */
  readonly signal: AbortSignal | undefined;
  readonly onProgress: (progress: Progress) => void;
}

/** How the run connects to the source, where the lock means nothing. */
function sourceConnection({ service, run, signal }: RunContext) {
  return connectionOf(service.config, run.id, signal);
}

/** How the run connects to the warehouse: not for longer than the lock is held. */
function warehouseConnection({ service, run, lock, signal }: RunContext) {
  const both = signal ? AbortSignal.any([lock.signal, signal]) : lock.signal;
  return connectionOf(service.config, run.id, both);
}

/**
 * Takes the lock again when its connection was lost. Nobody else can have
 * loaded in between and this run still be running: whoever takes the lock
 * closes the runs that they find.
 *
 * @throws {ServiceError} `run_lost` when somebody did, `busy` when somebody loads.
 */
async function keepLock(context: RunContext): Promise<void> {
  const { service: { config, warehouse, runner }, run, signal } = context;
  if (!context.lock.signal.aborted) return;
  context.renewal ??= (async () => {
    const { lockTimeoutSeconds } = config;
    await endBackend(warehouse, context.lock.pid, LOCK_APPLICATION_NAME);
    const lock = await acquireLock(config, lockTimeoutSeconds, signal);
    context.locks.use(lock);
    if (!await claimRun(warehouse, run.id, runner)) {
      throw new ServiceError(
        "run_lost",
        `Run ${run.id} was closed by another process`,
      );
    }
    context.lock = lock;
  })().finally(() => context.renewal = undefined);
  await context.renewal;
}

/** Tables that become visible together, in one warehouse transaction. */
interface Unit {
  readonly tables: readonly Table[];
  /** Loaded and verified, not yet visible; `session` has the transaction open. */
  readonly results: readonly TableResult[];
  readonly session: Session | undefined;
  /** Why the tables are not loaded. */
  readonly failures: readonly FailedEntry[];
  readonly attempts: number;
}

interface PreparedUnits {
  readonly outcomes: readonly Unit[];
  readonly snapshotAt: string | null;
  /** Prepares a unit again from the same snapshot, with the attempts that are left. */
  readonly again: (unit: Unit) => Promise<Unit>;
  readonly release: () => Promise<void>;
}

/** Opens the snapshot and brings every unit to the point where only its commit is missing. */
async function prepareFromOneSnapshot(
  context: RunContext,
): Promise<PreparedUnits> {
  const { config } = context.service;
  const tables = tablesNamed(context.run.tables);
  const groups = context.run.atomic ? [tables] : tables.map((table) => [table]);
  let snapshot: Snapshot;
  let attempts = 0;
  try {
    snapshot = await withRetries(context, () => {
      attempts++;
      return openSnapshot(config, sourceConnection(context), tables);
    });
  } catch (error) {
    const outcomes = groups.map((group) => failedUnit(group, error, attempts));
    const again = (unit: Unit) => Promise.resolve(unit);
    return { outcomes, snapshotAt: null, again, release: async () => {} };
  }
  const prepare = (group: readonly Table[], before = 0) =>
    prepareUnit(context, snapshot, group, before);
  return {
    // Results arrive in the order of the groups; a unit never rejects.
    outcomes: await Array.fromAsync(
      pooledMap(config.maxParallelTasks, groups, (group) => prepare(group)),
    ),
    snapshotAt: snapshot.takenAt,
    again: (unit) => prepare(unit.tables, unit.attempts),
    release: async () => await snapshot[Symbol.asyncDispose](),
  };
}

/** Loads and verifies a unit's tables in one transaction, which stays open. */
async function prepareUnit(
  context: RunContext,
  snapshot: Snapshot,
  tables: readonly Table[],
  attemptsBefore: number,
): Promise<Unit> {
  const { service: { config, warehouse }, run, onProgress } = context;
  let attempts = attemptsBefore;
  let lost: Session | undefined;
  const attempt = async (): Promise<Unit> => {
    attempts++;
    await keepLock(context);
    const connection = warehouseConnection(context);
    // Or its backend would keep the table locked until the server misses us.
    if (lost) {
      await endBackend(warehouse, lost.pid, connection.applicationName);
    }
    await ensureTargetSchema(warehouse);
    const session = await Session.open(config.dwh, connection);
    lost = session;
    try {
      await session.begin(warehouseTransaction(config));
      const known = await lastLoads(warehouse, run.tables);
      const results: TableResult[] = [];
      for (const table of tables) {
        const result = await loadTable(
          {
            config,
            connection,
            snapshot,
            onProgress,
            mode: run.mode,
            recreate: run.recreate,
            lastLoads: known,
          },
          table,
          session,
        );
        await recordTableLoad(
          session,
          run.id,
          loadedEntry(result, attempts),
          integrityCheck(result),
          result.phases,
          snapshot.writes.get(table.name),
        );
        results.push(result);
        onProgress({
          table: table.name,
          phase: "wait",
          rows: result.targetCount,
          bytes: result.bytesCopied,
          totalRows: result.targetCount,
        });
      }
      return { tables, results, session, failures: [], attempts };
    } catch (error) {
      // Never a ROLLBACK: the server does that by itself when the connection goes.
      session.destroy();
      throw error;
    }
  };
  try {
    return await withRetries(
      context,
      attempt,
      config.retryAttempts - attemptsBefore,
    );
  } catch (error) {
    return failedUnit(tables, error, attempts);
  }
}

function failedUnit(
  tables: readonly Table[],
  cause: unknown,
  attempts: number,
): Unit {
  const error = asServiceError(cause);
  const failures = tables.map((table) => {
    const isCause = !error.table || error.table === table.name;
    const own = isCause ? error : new ServiceError(
      "rolled_back",
      `Cannot load ${table.name}: it was rolled back with ${error.table}`,
    );
    return failedEntry(table.name, named(own, table), attempts);
  });
  return { tables, results: [], session: undefined, failures, attempts };
}

/** The error with the table in its message, as every failure of a table has it. */
function named(error: ServiceError, table: Table): ServiceError {
  if (error.table || error.message.startsWith("Cannot load")) return error;
  return new ServiceError(
    error.code,
    `Cannot load ${table.name}: ${error.message}`,
    {
      table: table.name,
      cause: error,
      remedy: error.remedy,
    },
  );
}

function hasLostSnapshot(unit: Unit): boolean {
  return unit.failures.some((failure) => failure.code === "snapshot_lost");
}

/**
 * Commits the prepared units back to back; the last of these transactions also
 * closes the run and writes its event, so that neither exists without the other.
 */
async function commitUnits(
  context: RunContext,
  units: PreparedUnits,
): Promise<LoadEvent> {
  const outcomes = [...units.outcomes];
  try {
    let last = outcomes.findLastIndex((unit) => unit.session);
    for (const [index, prepared] of outcomes.entries()) {
      if (!prepared.session) continue;
      let unit = prepared;
      while (unit.session) {
        const isLast = index === last;
        outcomes[index] = unit;
        try {
          const now = await confirmRun(unit.session, context.run.id);
          const end = isLast
            ? runEnd(context, units.snapshotAt, outcomes, now)
            : undefined;
          if (end) await closeRun(unit.session, context.run.id, "running", end);
          await unit.session.commit();
          await unit.session.close();
          if (end) return end.event;
          break;
        } catch (error) {
          unit.session.destroy();
          const settled = await settleCommit(context, unit);
          if (settled.event) return settled.event;
          if (settled.isCommitted) break;
          const failed = failedUnit(unit.tables, error, unit.attempts);
          const mayTryAgain = asServiceError(error).kind.transient &&
            unit.attempts < context.service.config.retryAttempts &&
            !context.signal?.aborted;
          unit = mayTryAgain ? await units.again(unit) : failed;
          outcomes[index] = unit;
        }
      }
      if (index === last) last = -1;
    }
    return await closeWithoutTables(context, units.snapshotAt, outcomes);
  } finally {
    // What is not committed by now never will be.
    for (const unit of outcomes) unit.session?.destroy();
    await units.release();
  }
}

/** Settles a commit whose outcome is unknown: what it would have written is there or not. */
async function settleCommit(
  context: RunContext,
  unit: Unit,
): Promise<{ isCommitted: boolean; event: LoadEvent | undefined }> {
  const { service: { warehouse }, run } = context;
  return await insistently(context, async () => {
    // The backend may still be committing: after this it is certainly over.
    await endBackend(
      warehouse,
      unit.session!.pid,
      `${APPLICATION_NAME}/${run.id}`,
    );
    const committed = await committedTables(warehouse, run.id);
    return {
      isCommitted: unit.tables.every(({ name }) => committed.includes(name)),
      event: await eventOf(warehouse, run.id),
    };
  });
}

/** Closes a run of which no transaction is left that could do it: its tables failed, or their commits did. */
async function closeWithoutTables(
  context: RunContext,
  snapshotAt: string | null,
  outcomes: readonly Unit[],
): Promise<LoadEvent> {
  const { service: { warehouse }, run } = context;
  return await insistently(context, async () => {
    const end = runEnd(
      context,
      snapshotAt,
      outcomes,
      await databaseTime(warehouse),
    );
    try {
      await closeRun(warehouse, run.id, "running", end);
      return end.event;
    } catch (error) {
      const event = await eventOf(warehouse, run.id);
      if (event) return event;
      throw error;
    }
  });
}

/** Attempts at what must be done whatever RETRY_ATTEMPTS is: the run must be closed. */
const LEAST_INSISTENCE = 3;

/** Tries what has to be done after an abort as well. */
function insistently<T>(
  { service, log }: RunContext,
  work: () => Promise<T>,
): Promise<T> {
  const { retryAttempts } = service.config;
  return withRetries(
    { service, log },
    work,
    Math.max(LEAST_INSISTENCE, retryAttempts),
  );
}

/** What {@linkcode withRetries} needs before there is a run. */
function retriesOf(service: Service, signal: AbortSignal | undefined) {
  return { service, log: service.log, ...(signal ? { signal } : {}) };
}

/** The run's end and its event, from what became of its units. */
function runEnd(
  { run }: RunContext,
  sourceSnapshotAt: string | null,
  outcomes: readonly Unit[],
  timestamp: string,
): RunEnd {
  const subject = {
    runId: run.id,
    trigger: run.trigger,
    timestamp,
    sourceSnapshotAt,
  };
  const failed = outcomes.flatMap((unit) => unit.failures);
  const loaded = outcomes.flatMap((unit) =>
    unit.results.map((result) => loadedEntry(result, unit.attempts))
  );
  if (failed.length === 0) {
    const checks = outcomes.flatMap((unit) => unit.results.map(integrityCheck));
    return {
      state: "succeeded",
      event: loadedEvent(subject, loaded, checks),
      code: null,
      failed,
      sourceSnapshotAt,
    };
  }
  const entries = outcomes.flatMap((unit) => [
    ...unit.results.map((result) => loadedEntry(result, unit.attempts)),
    ...unit.failures,
  ]);
  const code = codeOf(failed);
  return {
    state: code === "terminated" ? "interrupted" : "failed",
    event: failedEvent(subject, failureLine(entries), entries),
    code,
    failed,
    sourceSnapshotAt,
  };
}

/** The code of the run: the first table's that failed by itself. */
function codeOf(failed: readonly FailedEntry[]): ErrorCode {
  return (failed.find((f) => f.code !== "rolled_back") ?? failed[0]!).code;
}

function logEnd({ log }: RunContext, event: LoadEvent): void {
  if (event.status === "failure") {
    log.error("Run {run_id} failed: {error}", { error: event.error });
  } else {
    for (const entry of event.results.results) {
      log.info(
        "{table}: {records_loaded} rows, {mode} (+{rows_inserted} -{rows_deleted}) in {duration} s",
        { ...entry },
      );
      for (const warning of entry.warnings) {
        log.warn("{table}: {warning}", { table: entry.table, warning });
      }
    }
  }
}

/** Tries again for transient causes only, with growing delays; the cause is what is thrown in the end. */
export async function withRetries<T>(
  context: Pick<RunContext, "log"> & {
    service: { config: Config };
    signal?: AbortSignal | undefined;
  },
  work: () => Promise<T>,
  attempts = context.service.config.retryAttempts,
): Promise<T> {
  const { config } = context.service;
  try {
    return await retry(work, {
      maxAttempts: Math.max(1, attempts),
      minTimeout: config.retryDelaySeconds * 1000,
      maxTimeout: Math.max(1, 3_600_000, config.retryDelaySeconds * 1000),
      multiplier: 2,
      jitter: 0.25,
      ...(context.signal ? { signal: context.signal } : {}),
      isRetriable(error: unknown) {
        // Another snapshot is for the whole run to take, not for one of its tables.
        const { kind, code, message } = asServiceError(error);
        const isRetriable = kind.transient && code !== "snapshot_lost" &&
          !context.signal?.aborted;
        if (isRetriable) {
          context.log.warn("A transient failure: {message}", { message });
        }
        return isRetriable;
      },
    });
  } catch (error) {
    throw error instanceof RetryError ? error.cause : error;
  }
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

/** How the sessions of a run, or of something else by its name, connect. */
export function connectionOf(
  config: Config,
  name: string,
  signal?: AbortSignal,
): ConnectionOptions {
  return {
    applicationName: `${APPLICATION_NAME}/${name}`,
    connectTimeoutSeconds: config.connectTimeoutSeconds,
    stallTimeoutSeconds: config.stallTimeoutSeconds,
    ...(signal ? { signal } : {}),
  };
}
