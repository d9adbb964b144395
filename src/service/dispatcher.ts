/**
 * Requests for loads within one process. Callers with equal requests share a run,
 * whatever their trigger is.
 *
 * @module
 */
import { delay } from "@std/async/delay";
import { asServiceError, ServiceError } from "../errors.ts";
import type { LoadEvent, Trigger } from "../runs/event.ts";
import { unattendedRuns } from "../runs/history.ts";
import { announceUnrecorded, driveRun } from "../load/load.ts";
import { combineObservers, type RunObserver } from "../runs/run_observer.ts";
import { type AppContext, connectionOf } from "../context.ts";
import { busyError } from "../runs/lock.ts";
import { retry } from "../load/retry.ts";
import { migrate } from "../runs/schema.ts";
import {
  enqueueRun,
  enqueueTick,
  interruptDeadRuns,
  progressOf,
  type Run,
  type RunOptions,
  type Ticket,
} from "../runs/queue.ts";

/** Milliseconds without a further request before a run begins. */
const QUIET_MILLISECONDS = 25;

/** The maximum milliseconds before it begins, while requests arrive. */
const GATHER_MILLISECONDS = 500;

/** Milliseconds between two polls of the queue. */
const RESUME_MILLISECONDS = 3000;

/** A run that this process drives. */
interface Driver {
  readonly outcome: Promise<LoadEvent>;
  readonly controller: AbortController;
  hasBegun: boolean;
}

/** Accepts requests, shares runs among them, and runs those that wait in the warehouse. */
export class Dispatcher {
  readonly #service: AppContext;
  readonly #observer: Required<RunObserver>;
  /** Requests that share the next statement to the queue, by options. */
  readonly #gathering = new Map<string, Promise<Ticket>>();
  /** The running statement, by options. */
  readonly #queueing = new Map<string, Promise<unknown>>();
  readonly #drivers = new Map<string, Driver>();
  #askedAt = 0;
  #draining: ServiceError | undefined;

  constructor(service: AppContext, observers: readonly RunObserver[] = []) {
    this.#service = service;
    this.#observer = combineObservers(observers, service.log);
  }

  /** Whether new requests are refused. */
  get isDraining(): boolean {
    return this.#draining !== undefined;
  }

  /** Whether a run of this process is running. */
  get isLoading(): boolean {
    return [...this.#drivers.values()].some((driver) => driver.hasBegun);
  }

  /**
   * Runs a load that begins after this call. Callers with equal requests share it
   * until it begins.
   *
   * @throws {ServiceError} when no run was created: `busy`, `draining`, no connection.
   */
  async load(trigger: Trigger, options: RunOptions): Promise<LoadEvent> {
    const { lockTimeoutSeconds } = this.#service.config;
    const ticket = await this.#enqueue(trigger, options, lockTimeoutSeconds);
    const driver = this.#drive(ticket, { ...options, trigger });
    const late = Promise.withResolvers<never>();
    const timer = setTimeout(async () => {
      // Other callers may wait longer. A run that has begun elsewhere is waited for.
      const { warehouse, workerId } = this.#service;
      const run = await progressOf(warehouse, ticket.runId, workerId)
        .catch(() => undefined);
      if (!driver.hasBegun && run?.state === "queued") {
        late.reject(await busyError(warehouse, lockTimeoutSeconds));
      }
    }, lockTimeoutSeconds * 1000 + 250);
    try {
      return await Promise.race([driver.outcome, late.promise]);
    } finally {
      clearTimeout(timer);
    }
  }

  /** Queues a run that happens in any case, even if this process ends. Returns its id. */
  async submit(trigger: Trigger, options: RunOptions): Promise<string> {
    const ticket = await this.#enqueue(trigger, options, Infinity);
    this.#drive(ticket);
    return ticket.runId;
  }

  /**
   * Runs a load for a tick of the schedule.
   *
   * @returns its id, or `running` when another run is running, or `taken` when
   * another process has this tick.
   */
  async tick(
    options: RunOptions,
    tick: Date,
  ): Promise<{ runId: string } | "running" | "taken"> {
    if (this.#draining) throw this.#draining;
    const ticket = await this.#queue(
      { ...options, trigger: "schedule" },
      () => enqueueTick(this.#service.warehouse, options, tick),
    );
    if (typeof ticket === "string") return ticket;
    this.#drive(ticket);
    return { runId: ticket.runId };
  }

  /**
   * Watches the queue until the signal. Runs the runs that happen in any case, such
   * as those of an ended process, and closes abandoned ones.
   */
  async resume(signal: AbortSignal): Promise<void> {
    const { warehouse, log } = this.#service;
    while (!signal.aborted && !this.#draining) {
      try {
        await this.#migrate();
        const tickets = await unattendedRuns(warehouse);
        for (const ticket of this.#draining ? [] : tickets) this.#drive(ticket);
        const closed = await interruptDeadRuns(warehouse, "queued");
        for (const id of closed) {
          log.warn(
            "Run {run_id} was left in the queue and is now interrupted",
            {
              run_id: id,
            },
          );
        }
        if (closed.length > 0) this.#service.deliver();
      } catch (error) {
        log.debug("Cannot look after the queue: {error}", {
          error: asServiceError(error).message,
        });
      }
      await delay(RESUME_MILLISECONDS, { signal }).catch(() => {});
    }
  }

  /**
   * Refuses new requests and those whose run has not begun. Waits for the running
   * run, and aborts it after `graceSeconds`.
   */
  async drain(graceSeconds: number): Promise<void> {
    this.#draining = new ServiceError(
      "draining",
      "The service is shutting down and takes no more loads",
    );
    for (const driver of this.#drivers.values()) {
      if (!driver.hasBegun) driver.controller.abort(this.#draining);
    }
    const timer = setTimeout(() => {
      const reason = new ServiceError(
        "terminated",
        `The load was ended: the service was stopped and SHUTDOWN_GRACE (${graceSeconds} s) is over`,
      );
      for (const driver of this.#drivers.values()) {
        driver.controller.abort(reason);
      }
    }, graceSeconds * 1000);
    await Promise.allSettled(
      [...this.#drivers.values()].map((driver) => driver.outcome),
    );
    clearTimeout(timer);
  }

  /**
   * Queues a run, or joins a queued one. Only the warehouse knows whether it is
   * still queued, so every request asks it. Requests during one question share the
   * next one.
   */
  #enqueue(
    trigger: Trigger,
    options: RunOptions,
    waitSeconds: number,
  ): Promise<Ticket> {
    if (this.#draining) return Promise.reject(this.#draining);
    this.#askedAt = performance.now();
    const key = JSON.stringify([options, waitSeconds]);
    const gathering = this.#gathering.get(key);
    if (gathering) return gathering;
    const { warehouse, workerId } = this.#service;
    const next = Promise.resolve(this.#queueing.get(key)).then(() => {
      this.#gathering.delete(key);
      const ticket = this.#queue(
        { ...options, trigger },
        () => enqueueRun(warehouse, trigger, options, waitSeconds, workerId),
      );
      const settled = ticket.then(() => {}, () => {}).then(() => {
        if (this.#queueing.get(key) === settled) this.#queueing.delete(key);
      });
      this.#queueing.set(key, settled);
      return ticket;
    });
    this.#gathering.set(key, next);
    return next;
  }

  /** Queues a run, with retries. A request that cannot be queued is spooled. */
  async #queue<T>(
    request: Omit<Run, "id">,
    enqueue: () => Promise<T>,
  ): Promise<T> {
    const service = this.#service;
    try {
      return await retry(service.config, async () => {
        await this.#migrate();
        return await enqueue();
      }, service);
    } catch (error) {
      const run = { ...request, id: crypto.randomUUID() };
      await announceUnrecorded(service, run, error);
      throw error;
    }
  }

  async #migrate(): Promise<void> {
    const { config, warehouse } = this.#service;
    await migrate(warehouse, connectionOf(config, "migrate"));
  }

  /** Returns the only driver of a run in this process. It waits for the lock for all callers. */
  #drive(ticket: Ticket, request?: Omit<Run, "id">): Driver {
    const known = this.#drivers.get(ticket.runId);
    if (known) return known;
    const controller = new AbortController();
    if (this.#draining) controller.abort(this.#draining);
    const driver: Driver = {
      controller,
      hasBegun: false,
      outcome: driveRun(this.#service, ticket, {
        request,
        signal: controller.signal,
        beforeStart: () => this.#gather(),
        onStart: (run) => {
          driver.hasBegun = true;
          this.#observer.runStarted(run);
        },
        onProgress: this.#observer.progress,
      }).then((event) => {
        if (driver.hasBegun) this.#observer.runEnded(event);
        return event;
      }).finally(() => this.#drivers.delete(ticket.runId)),
    };
    this.#drivers.set(ticket.runId, driver);
    driver.outcome.catch((error) => {
      this.#service.log.warn("Run {run_id} did not begin: {error}", {
        run_id: ticket.runId,
        error: asServiceError(error).line,
      });
    });
    return driver;
  }

  /** Lets simultaneous callers join the run before it begins. */
  async #gather(): Promise<void> {
    const end = performance.now() + GATHER_MILLISECONDS;
    while (performance.now() < end) {
      const quiet = performance.now() - this.#askedAt;
      const isAsking = this.#gathering.size + this.#queueing.size > 0;
      if (quiet >= QUIET_MILLISECONDS && !isAsking) return;
      await delay(Math.max(5, QUIET_MILLISECONDS - quiet));
    }
  }
}
