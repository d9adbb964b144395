/**
 * Requests for loads within one process. Callers with equal requests share a run,
 * also across triggers.
 */
import { delay } from "@std/async/delay";
import type { Config } from "../config/config.ts";
import type { AppContext } from "../context.ts";
import { asServiceError, ServiceError } from "../errors.ts";
import { enqueue, enqueueScheduled } from "../load/load.ts";
import { Worker } from "../load/worker.ts";
import type { LoadEvent, Trigger } from "../runs/event.ts";
import { closeAbandonedRuns } from "../runs/dead_runs.ts";
import type { RunOptions } from "../runs/run.ts";
import { combineObservers, type RunObserver } from "../runs/run_observer.ts";
import { namesOf } from "../tables/declaration.ts";
import { startTimeout } from "../timeout.ts";

/** Milliseconds between two polls of the queue. */
const POLL_MILLISECONDS = 3000;

/** Accepts requests, shares runs among them, and runs unattended runs. */
export class Dispatcher {
  readonly #context: AppContext;
  readonly #worker: Worker;
  readonly #stop = new AbortController();
  readonly #abort = new AbortController();
  /** Requests that share the next statement to the queue, by options. */
  readonly #next = new Map<string, Promise<unknown>>();
  /** The statement that runs, by options. */
  readonly #sent = new Map<string, Promise<unknown>>();
  /** Work that {@linkcode drain} waits for. */
  readonly #open = new Set<Promise<unknown>>();

  constructor(context: AppContext, observers: readonly RunObserver[] = []) {
    this.#context = context;
    this.#worker = new Worker(context, {
      observer: combineObservers(observers, context.log),
      stop: this.#stop.signal,
      abort: this.#abort.signal,
      unattendedTables: namesOf(context.config.tables),
    });
  }

  /** Whether new requests are refused. */
  get isDraining(): boolean {
    return this.#stop.signal.aborted;
  }

  /** Whether a run of this process is running. */
  get isLoading(): boolean {
    return this.#worker.isRunning;
  }

  /**
   * Runs a load that starts after this call. Callers with equal requests share it
   * until it starts.
   *
   * @throws {ServiceError} when the run did not start: `busy`, `draining`, no connection.
   */
  async load(trigger: Trigger, options: RunOptions): Promise<LoadEvent> {
    const { lockTimeoutSeconds } = this.#context.config;
    const { end } = await this.#share(["load", options], async () => {
      const request = { ...options, trigger };
      const run = await enqueue(this.#context, request, lockTimeoutSeconds);
      return { end: this.#keepOpen(this.#worker.wait(run)) };
    });
    return await end;
  }

  /** Queues an unattended run, which starts even if this process ends. Returns its id. */
  async submit(
    trigger: Trigger,
    options = defaultOptions(this.#context.config),
  ): Promise<string> {
    const request = { ...options, trigger };
    const run = await this.#share(
      ["submit", options],
      () => enqueue(this.#context, request, null),
    );
    this.#worker.wake();
    return run.id;
  }

  /**
   * Queues a run for a tick of the schedule.
   *
   * @returns `running` when another run is running, or `taken` when another process
   * has this tick.
   */
  async tick(tick: Date): Promise<"queued" | "running" | "taken"> {
    const options = defaultOptions(this.#context.config);
    const outcome = await this.#share(
      ["tick", tick],
      () => enqueueScheduled(this.#context, options, tick),
    );
    if (outcome === "queued") this.#worker.wake();
    return outcome;
  }

  /**
   * Watches the queue until the signal. Runs unattended runs, also those of an ended
   * process, and closes abandoned ones.
   */
  async resume(signal: AbortSignal): Promise<void> {
    const { config, warehouse, log, deliver } = this.#context;
    while (!signal.aborted && !this.isDraining) {
      try {
        const closed = await closeAbandonedRuns(
          warehouse,
          log,
          "queued",
          config,
          this.#worker.awaited,
        );
        if (closed.length > 0) deliver();
        this.#worker.wake();
      } catch (error) {
        log.debug("Cannot query the queue: {error}", {
          error: asServiceError(error).message,
        });
      }
      await delay(POLL_MILLISECONDS, { signal }).catch(() => {});
    }
  }

  /**
   * Refuses new requests and those whose run has not started. Waits for the running
   * run, and aborts it after `graceSeconds`.
   */
  async drain(graceSeconds: number): Promise<void> {
    this.#stop.abort(
      new ServiceError(
        "draining",
        "The service is shutting down and accepts no more loads",
      ),
    );
    using _ = startTimeout(graceSeconds, () =>
      this.#abort.abort(
        new ServiceError(
          "terminated",
          `The load was ended: the service was stopped and SHUTDOWN_GRACE (${graceSeconds} s) is over`,
        ),
      ));
    while (this.#open.size > 0) await Promise.allSettled(this.#open);
    await this.#worker.finished;
  }

  /**
   * Sends a statement to the queue. Only the warehouse knows whether a run is still
   * queued, so every request asks it. Requests during one statement share the next
   * one.
   */
  #share<T>(request: readonly unknown[], send: () => Promise<T>): Promise<T> {
    if (this.isDraining) return Promise.reject(this.#stop.signal.reason);
    const key = JSON.stringify(request);
    const shared = this.#next.get(key);
    if (shared) return shared as Promise<T>;
    const sent = Promise.resolve(this.#sent.get(key));
    const next = this.#keepOpen(sent.then(() => {
      this.#next.delete(key);
      const sent = send();
      const over = sent.then(() => {}, () => {}).then(() => {
        if (this.#sent.get(key) === over) this.#sent.delete(key);
      });
      this.#sent.set(key, over);
      return sent;
    }));
    this.#next.set(key, next);
    return next;
  }

  #keepOpen<T>(work: Promise<T>): Promise<T> {
    this.#open.add(work);
    work.catch(() => {}).finally(() => this.#open.delete(work));
    return work;
  }
}

/** Returns the options of a load by the configuration. */
export function defaultOptions(config: Config): RunOptions {
  return {
    tables: namesOf(config.tables),
    mode: config.loadMode,
    atomic: config.loadAtomic,
    recreate: false,
    allowShrink: false,
  };
}
