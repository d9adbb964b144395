/**
 * The worker of a process takes the lock when there is something to run, runs
 * it, and releases the lock. Its callers wait here for the end of their runs.
 *
 * @module
 */
import { AsyncLocalStorage } from "node:async_hooks";
import type { Logger } from "@logtape/logtape";
import type { AppContext } from "../context.ts";
import { asServiceError, ServiceError } from "../errors.ts";
import {
  formatQuantity,
  formatSeconds,
  formatTables,
  MAX_NAMES,
} from "../format.ts";
import { describeChange, describeTally, tallyOf } from "../runs/describe.ts";
import type { LoadEvent } from "../runs/event.ts";
import { acquireLock, findBusyError, type Lock } from "../runs/lock.ts";
import {
  claimRun,
  hasUnattendedRuns,
  progressOf,
  renewWaits,
  requeueRun,
  withdrawRun,
} from "../runs/queue.ts";
import { closeAbandonedRuns } from "../runs/dead_runs.ts";
import { forgetTableLoads } from "../runs/record.ts";
import type { QueuedRun, Run } from "../runs/run.ts";
import type { RunObserver } from "../runs/run_observer.ts";
import { drainSpool, spoolUnrecorded } from "../runs/spool.ts";
import { loadFromOneSnapshot } from "./commit.ts";
import { retry } from "./retry.ts";
import type { RunContext } from "./run_context.ts";

/** Milliseconds between two queries for runs that another process may run, and two checks of deadlines. */
const POLL_MILLISECONDS = 500;

/** Ends a wait for the lock. */
const NOTHING_LEFT = new ServiceError("run_lost", "Nothing is left to run");

interface WorkerOptions {
  readonly observer: RunObserver;
  /** Lets no further run start. The reason is a {@linkcode ServiceError}. */
  readonly stop: AbortSignal;
  /** Ends the running run. The reason is a {@linkcode ServiceError}. */
  readonly abort: AbortSignal;
  /** Tables whose unattended runs it runs, from every process. */
  readonly unattendedTables: readonly string[];
}

/** A caller of this process that waits for a run. */
interface Wait {
  readonly run: QueuedRun;
  readonly end: PromiseWithResolvers<LoadEvent>;
  /** Runs work in the trace of the caller. */
  readonly inTrace: ReturnType<typeof AsyncLocalStorage.snapshot>;
  /** Moment of `performance.now()` at which it is refused. */
  readonly lateAt: number;
}

/**
 * Runs queued runs, one after the other. It runs those that its callers wait for, and
 * the unattended ones of its `unattendedTables`. It never runs a run that only callers of
 * other processes wait for. So a stop never ends such a run.
 */
export class Worker {
  readonly #context: AppContext;
  readonly #options: WorkerOptions;
  /** Runs work outside of the trace of any caller. */
  readonly #inOwnTrace = AsyncLocalStorage.snapshot();
  readonly #waits = new Set<Wait>();
  #poll: ReturnType<typeof setInterval> | undefined;
  #isPolling = false;
  /** The wait for the lock, which ends when nothing is left to run. */
  #lockWait: AbortController | undefined;
  /** Whether the lock is held and the run has not started yet. */
  #isStarting = false;
  #running: Run | undefined;
  #isAwake = false;
  #work: Promise<void> | undefined;

  constructor(context: AppContext, options: WorkerOptions) {
    this.#context = context;
    this.#options = options;
    options.stop.addEventListener("abort", () => this.#refuseAfterStop());
  }

  get isRunning(): boolean {
    return this.#running !== undefined;
  }

  /** Ids of the runs that callers of this process wait for. */
  get awaited(): string[] {
    return [...new Set([...this.#waits].map(({ run }) => run.id))];
  }

  /** Settles when nothing is left to run, or after a stop when the running run has ended. */
  get finished(): Promise<void> {
    return this.#work ?? Promise.resolve();
  }

  /** Makes the worker look for something to run. */
  wake(): void {
    this.#isAwake = true;
    this.#work ??= this.#workUntilIdle();
  }

  /**
   * Waits for the end of a run, whichever process runs it. A caller that stops
   * waiting does not cancel the run for the others.
   *
   * @returns the run's event, also when the run failed.
   * @throws {ServiceError} `busy` when another load still runs at the deadline, the
   * reason of the stop, or the reason why this process cannot run it.
   */
  async wait(run: QueuedRun): Promise<LoadEvent> {
    const { lockTimeoutSeconds } = this.#context.config;
    const end = Promise.withResolvers<LoadEvent>();
    const seconds = run.deadline === null ? Infinity : lockTimeoutSeconds;
    const lateAt = performance.now() + seconds * 1000;
    const inTrace = AsyncLocalStorage.snapshot();
    this.#waits.add({ run, end, lateAt, inTrace });
    this.#poll ??= setInterval(async () => {
      if (this.#isPolling) return;
      this.#isPolling = true;
      // The wait for the lock reports a lost connection.
      await this.#look().catch(() => {});
      this.#isPolling = false;
    }, POLL_MILLISECONDS);
    this.wake();
    this.#refuseAfterStop();
    return await end.promise;
  }

  /** Ends the waits for runs that another process has ended, and refuses callers that are late. */
  async #look(): Promise<void> {
    const { config: { lockTimeoutSeconds }, warehouse } = this.#context;
    const ids = this.awaited.filter((id) => id !== this.#running?.id);
    if (ids.length === 0) return;
    const runs = await progressOf(warehouse, ids);
    for (const id of ids) {
      const { event, state } = runs.get(id) ?? {};
      if (event) this.#end(id, ({ end }) => end.resolve(event));
      if (state) continue;
      const reason = `Run ${id} is no longer in the history`;
      const error = new ServiceError("run_lost", reason);
      this.#end(id, ({ end }) => end.reject(error));
    }
    const isLate = ({ run: { id }, lateAt }: Wait) =>
      lateAt < performance.now() && id !== this.#running?.id &&
      runs.get(id)?.state === "queued";
    const late = [...this.#waits].filter(isLate);
    if (late.length === 0) return;
    const isIdle = this.#running === undefined;
    const busy = await findBusyError(this.#context, lockTimeoutSeconds, isIdle);
    // The holder may be this process, which is about to start one of them.
    if (!busy || this.#isStarting) {
      return await renewWaits(warehouse, late.map(({ run }) => run.id));
    }
    await this.#refuse([...this.#waits].filter(isLate), busy);
  }

  /** Ends all waits for a run. */
  #end(runId: string, settle: (wait: Wait) => void): void {
    for (const wait of this.#waits) {
      if (wait.run.id !== runId) continue;
      this.#forget(wait);
      settle(wait);
    }
  }

  #forget(wait: Wait): void {
    this.#waits.delete(wait);
    if (this.#waits.size > 0) return;
    clearInterval(this.#poll);
    this.#poll = undefined;
    this.#lockWait?.abort(NOTHING_LEFT);
  }

  /** Fails waits for runs that have not started, and withdraws those that no other caller waits for. */
  async #refuse(waits: readonly Wait[], cause: unknown): Promise<void> {
    for (const wait of waits) this.#forget(wait);
    // The newest wait for a run has the latest deadline.
    const runs = new Map(waits.map(({ run }) => [run.id, run]));
    for (const run of runs.values()) {
      if (!this.awaited.includes(run.id)) await this.#withdraw(run, cause);
    }
    for (const { end } of waits) end.reject(cause);
  }

  /** Fails the waits for all runs but the running one. */
  async #refuseOthers(cause: unknown): Promise<void> {
    const others = [...this.#waits]
      .filter(({ run }) => run.id !== this.#running?.id);
    await this.#refuse(others, cause);
  }

  /** After a stop while a run is running. One that is about to start goes back to the queue first. */
  #refuseAfterStop(): void {
    const { stop } = this.#options;
    if (stop.aborted && this.#running) void this.#refuseOthers(stop.reason);
  }

  async #withdraw(run: QueuedRun, cause: unknown): Promise<void> {
    if (run.deadline === null) return;
    const { config, warehouse, log, workerId, deliver } = this.#context;
    const error = asServiceError(cause);
    try {
      if (await withdrawRun(warehouse, run, workerId, error, config)) deliver();
    } catch (reason) {
      log.warn("Run {run_id} stays queued: {reason}", {
        run_id: run.id,
        reason: asServiceError(reason).message,
      });
      await spoolUnrecorded(this.#context, run, cause);
    }
  }

  async #workUntilIdle(): Promise<void> {
    while (this.#isAwake || this.#waits.size > 0) {
      this.#isAwake = false;
      try {
        await this.#takeTurn();
      } catch (error) {
        if (this.#waits.size === 0 && !this.#options.stop.aborted) {
          this.#context.log.warn("Cannot run queued runs: {error}", {
            error: asServiceError(error).line,
          });
        }
        await this.#refuseOthers(error);
      }
    }
    this.#work = undefined;
  }

  /** Runs one run, so that other processes get the lock between two runs. */
  async #takeTurn(): Promise<void> {
    const { observer, stop, unattendedTables } = this.#options;
    const { warehouse, log, deliver } = this.#context;
    stop.throwIfAborted();
    const hasWork = this.#waits.size > 0 ||
      unattendedTables.length > 0 &&
        await hasUnattendedRuns(warehouse, unattendedTables);
    if (!hasWork) return;
    try {
      const event = await this.#runNext();
      // After the lock is released: a slow receiver must not hold it.
      if (event) {
        observer.runEnded?.(event);
        this.#end(event.run_id, ({ end }) => end.resolve(event));
      } else deliver();
    } catch (error) {
      const run = this.#running;
      if (!run) throw error;
      await spoolUnrecorded(this.#context, run, error);
      // Callers that wait for the run report the failure.
      if (!this.awaited.includes(run.id)) {
        log.error(
          "Run {run_id} failed, and the warehouse did not record it: {error}",
          { run_id: run.id, error: asServiceError(error).line },
        );
      }
      this.#end(run.id, ({ end }) => end.reject(error));
      deliver();
    } finally {
      this.#running = undefined;
      this.#isStarting = false;
    }
    this.#isAwake ||= unattendedTables.length > 0;
  }

  /** Takes the lock, claims the oldest run that this process may run, and runs it. */
  async #runNext(): Promise<LoadEvent | undefined> {
    const { config, warehouse, log, workerId, deliver } = this.#context;
    const { stop, unattendedTables } = this.#options;
    await using locks = new AsyncDisposableStack();
    const lock = await this.#takeLock();
    if (!lock) return undefined;
    locks.use(lock);
    const run = await retry(
      config,
      () => claimRun(warehouse, workerId, this.awaited, unattendedTables),
      { log, signal: stop },
    );
    if (!run) {
      await this.#look().catch(() => {});
      return undefined;
    }
    if (stop.aborted) {
      // Stopped before the run started: other callers may still wait for it.
      await requeueRun(warehouse, run.id, workerId);
      throw stop.reason;
    }
    this.#isStarting = false;
    this.#running = run;
    // A caller of another run may have started this loop.
    const caller = [...this.#waits].find((wait) => wait.run.id === run.id);
    const inTrace = caller?.inTrace ?? this.#inOwnTrace;
    const event = await inTrace(() => this.#execute(run, lock, locks));
    // Begins while the lock is released.
    locks.defer(deliver);
    return event;
  }

  /** Waits for the lock, and updates the history. Returns undefined when nothing is left to run. */
  async #takeLock(): Promise<Lock | undefined> {
    const { config, warehouse, log } = this.#context;
    const { stop } = this.#options;
    const wait = this.#lockWait = new AbortController();
    const signal = AbortSignal.any([stop, wait.signal]);
    try {
      return await retry(config, async () => {
        const lock = await acquireLock(this.#context, Infinity, signal);
        this.#isStarting = true;
        try {
          await this.#context.registerPublishers();
          await drainSpool(warehouse, config.eventSpoolFile, log);
          const states = "queued and running";
          await closeAbandonedRuns(
            warehouse,
            log,
            states,
            config,
            this.awaited,
          );
          return lock;
        } catch (error) {
          await lock[Symbol.asyncDispose]();
          throw error;
        }
      }, { log, signal });
    } catch (error) {
      if (wait.signal.aborted && !stop.aborted) return undefined;
      throw error;
    }
  }

  /** Runs a claimed run to its event. */
  async #execute(
    run: Run,
    lock: Lock,
    locks: AsyncDisposableStack,
  ): Promise<LoadEvent> {
    const { config, warehouse } = this.#context;
    const { observer, abort } = this.#options;
    const log = this.#context.log.with({ run_id: run.id });
    observer.runStarted?.(run);
    const context: RunContext = {
      ...this.#context,
      run,
      log,
      lock,
      locks,
      renewal: undefined,
      signal: abort,
      traceparent: observer.traceparent?.(run.id),
      onProgress: (progress) => observer.progress?.(run.id, progress),
    };
    const work = async () => {
      log.info("Run {run_id} begins: {tables}, requested by {trigger}", {
        tables: formatTables(run.tables),
        trigger: run.trigger,
      });
      for (let round = 1;; round++) {
        const end = await loadFromOneSnapshot(
          context,
          round < config.retryAttempts,
        );
        if (end.state === "closed") {
          logEnd(log, end.event);
          return end.event;
        }
        log.warn("Starting over with a new snapshot: {reason}", {
          reason: end.reason,
        });
        await forgetTableLoads(warehouse, run.id);
      }
    };
    return await (observer.within?.(run.id, work) ?? work());
  }
}

function logEnd(log: Logger, event: LoadEvent): void {
  if (event.status === "failure") {
    log.error("Run {run_id} failed: {error}", { error: event.error });
    return;
  }
  const { results } = event.results;
  const isLong = results.length > MAX_NAMES;
  if (isLong) {
    const outcome = describeTally(tallyOf(results));
    log.info("Run {run_id} succeeded: {outcome}", { outcome });
  }
  for (const entry of results) {
    log[isLong ? "debug" : "info"](
      "{table}: {outcome}",
      {
        outcome: `${formatQuantity(entry.records_loaded, "row")}, ${
          describeChange(entry)
        } in ${formatSeconds(entry.duration)}`,
        ...entry,
      },
    );
    for (const warning of entry.warnings) {
      log.warn("{table}: {warning}", { table: entry.table, warning });
    }
  }
}
