/**
 * The story of a load:
 *
 * ```
 * trigger → lock → open run → snapshot ─┬─ table: compare → apply → verify → commit ─┐
 *                                       └─ table: compare → apply → verify → commit ─┴→ event → answer
 * ```
 *
 * Read from top to bottom. `prepare.ts` loads and verifies a table, and
 * `commit.ts` commits it. The story of one table is in `sync_table.ts`.
 *
 * @module
 */
import { loadFromOneSnapshot } from "./commit.ts";
import { asServiceError, ServiceError } from "../errors.ts";
import {
  failedEntry,
  failedEvent,
  type LoadEvent,
  timestampOf,
  type Trigger,
} from "../runs/event.ts";
import { migrate } from "../runs/schema.ts";
import type { Progress } from "../sync/progress.ts";
import { publisherNames } from "../delivery/deliverer.ts";
import { registerPublishers } from "../delivery/outbox.ts";
import { drainSpool, spoolFailure } from "../runs/spool.ts";
import { retry } from "./retry.ts";
import type { RunContext } from "./run_context.ts";
import {
  claimRun,
  enqueueRun,
  eventOf,
  forgetTableLoads,
  interruptDeadRuns,
  requeueRun,
  type Run,
  type RunOptions,
  type Ticket,
  withdrawRun,
} from "../runs/queue.ts";
import { type AppContext, connectionOf } from "../context.ts";
import { isLock, type Lock, waitForTurn } from "../runs/lock.ts";

/** Listeners and limits of one request for a load. */
export interface LoadHooks {
  /** Aborts the load; the reason should be a {@linkcode ServiceError}. */
  readonly signal?: AbortSignal;
  readonly onProgress?: (runId: string, progress: Progress) => void;
  /** What was asked for, to spool a failure that the queue does not take. */
  readonly request?: Omit<Run, "id"> | undefined;
  /** Called while the lock is held and before the run begins: the last moment to join it. */
  readonly beforeStart?: () => Promise<void>;
  /** Called when the run has begun, so that no later request may join it. */
  readonly onStart?: (run: Run) => void;
}

/**
 * Queues a load, waits for the lock, and runs it.
 *
 * @returns the run's event, also when the run failed.
 * @throws {ServiceError} when no run was created: `busy`, no connection, no privilege.
 */
export async function load(
  service: AppContext,
  trigger: Trigger,
  options: RunOptions,
  hooks: LoadHooks = {},
): Promise<LoadEvent> {
  const { config, warehouse } = service;
  let ticket: Ticket;
  try {
    // A second request joins the first one, so a retry does no harm.
    ticket = await retry(config, async () => {
      await migrate(warehouse, connectionOf(config, "migrate", hooks.signal));
      return await enqueueRun(
        warehouse,
        trigger,
        options,
        config.lockTimeoutSeconds,
        service.workerId,
      );
    }, { log: service.log, signal: hooks.signal });
  } catch (error) {
    // Whatever the reason, the warehouse has no record of the request.
    if (!hooks.signal?.aborted) {
      await announceUnrecorded(
        service,
        { ...options, id: crypto.randomUUID(), trigger },
        error,
      );
    }
    throw error;
  }
  const request = { ...options, trigger };
  return await driveRun(service, ticket, { ...hooks, request });
}

/** Waits until a queued run has finished, running it here if this process gets the lock. Returns its event. */
export async function driveRun(
  service: AppContext,
  ticket: Ticket,
  hooks: LoadHooks = {},
): Promise<LoadEvent> {
  const event = await runInTurn(service, ticket, hooks);
  // After the lock is released: a slow receiver must not hold it.
  service.deliver();
  return event;
}

async function runInTurn(
  service: AppContext,
  ticket: Ticket,
  hooks: LoadHooks,
): Promise<LoadEvent> {
  const { warehouse, log, workerId } = service;
  await using locks = new AsyncDisposableStack();
  let turn: { run: Run; lock: Lock } | LoadEvent;
  try {
    turn = await takeTurn(service, ticket, hooks, locks);
  } catch (error) {
    try {
      const event = await withdrawRun(
        warehouse,
        ticket.runId,
        workerId,
        asServiceError(error),
      );
      if (event) service.deliver();
    } catch (reason) {
      log.warn("Run {run_id} stays queued: {reason}", {
        run_id: ticket.runId,
        reason: asServiceError(reason).message,
      });
      if (hooks.request && !ticket.isCertain) {
        const run = { ...hooks.request, id: ticket.runId };
        await announceUnrecorded(service, run, error);
      }
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
 * Waits for the lock, updates the history, and claims the run. Returns the event
 * when another process has finished the run.
 */
async function takeTurn(
  service: AppContext,
  ticket: Ticket,
  hooks: LoadHooks,
  locks: AsyncDisposableStack,
): Promise<{ run: Run; lock: Lock } | LoadEvent> {
  const { config, warehouse, log, workerId } = service;
  const retries = { log, signal: hooks.signal };
  const askedAt = performance.now();
  const turn = await retry(config, async () => {
    const turn = await waitForTurn(service, ticket, askedAt, hooks.signal);
    if (!isLock(turn)) return turn;
    try {
      // A new publisher must be known before further events exist.
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
  }, retries);
  if (!isLock(turn)) return turn;
  const lock = locks.use(turn);
  await hooks.beforeStart?.();
  hooks.signal?.throwIfAborted();
  const run = await retry(
    config,
    () => claimRun(warehouse, ticket.runId, workerId),
    retries,
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
    // Stopped before the run began: other callers may still wait for it.
    await requeueRun(warehouse, run.id, workerId);
    throw hooks.signal.reason;
  }
  return { run, lock };
}

/** Runs a claimed run to its event. */
async function executeRun(
  service: AppContext,
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
    const mayRestart = round < config.retryAttempts;
    const end = await loadFromOneSnapshot(context, mayRestart);
    if (end.state === "restart") {
      log.warn("Starting over with a new snapshot: {reason}", {
        reason: end.reason,
      });
      await forgetTableLoads(service.warehouse, run.id);
      continue;
    }
    logEnd(context, end.event);
    return end.event;
  }
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

/** Spools a failure that the warehouse did not record. The next load records it there. */
export async function announceUnrecorded(
  service: AppContext,
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
      runner: service.workerId,
    });
  } catch (reason) {
    service.log.error("Cannot record the failure of run {run_id}: {reason}", {
      run_id: run.id,
      reason: asServiceError(reason).line,
    });
  }
}
