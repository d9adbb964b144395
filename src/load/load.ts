/**
 * The story of a load:
 *
 * ```
 * trigger → enqueue → lock → claim → snapshot ─┬─ table: compare → apply → verify → check → commit ─┐
 *                                              └─ table: compare → apply → verify → check → commit ─┴→ event → answer
 * ```
 *
 * `worker.ts` takes the lock, claims the run and runs it. `prepare.ts` loads and
 * verifies a table, and `commit.ts` commits it. The story of one table is in
 * `sync_table.ts`.
 *
 * @module
 */
import { type AppContext, connectionOf } from "../context.ts";
import type { LoadEvent, Trigger } from "../runs/event.ts";
import { enqueueRun, enqueueTick } from "../runs/queue.ts";
import type { QueuedRun, Run, RunOptions } from "../runs/run.ts";
import type { RunObserver } from "../runs/run_observer.ts";
import { migrate } from "../runs/schema.ts";
import { spoolUnrecorded } from "../runs/spool.ts";
import { retry } from "./retry.ts";
import { Worker } from "./worker.ts";

/** Watches one load, and stops it. */
export interface LoadOptions extends RunObserver {
  /** Ends the load. The reason should be a {@linkcode ServiceError}. */
  readonly signal?: AbortSignal;
}

/**
 * Queues a load, and works until it has ended. The load starts after this call.
 *
 * @returns the run's event, also when the run failed.
 * @throws {ServiceError} when the run did not start: `busy`, no connection, no privilege.
 */
export async function load(
  context: AppContext,
  trigger: Trigger,
  options: RunOptions,
  observer: LoadOptions = {},
): Promise<LoadEvent> {
  const { signal = new AbortController().signal } = observer;
  const { lockTimeoutSeconds } = context.config;
  const request = { ...options, trigger };
  const run = await enqueue(context, request, lockTimeoutSeconds, signal);
  const worker = new Worker(context, {
    observer,
    stop: signal,
    abort: signal,
    unattendedTables: [],
  });
  try {
    return await worker.wait(run);
  } finally {
    await worker.finished;
  }
}

/**
 * Queues a run, or joins the one with equal options that is queued already.
 *
 * @param waitSeconds the caller's maximum wait for its start. With null, the run is
 * unattended: it starts even if this process ends.
 */
export async function enqueue(
  context: AppContext,
  request: Omit<Run, "id">,
  waitSeconds: number | null,
  signal?: AbortSignal,
): Promise<QueuedRun> {
  const { warehouse, workerId } = context;
  return await queue(
    context,
    request,
    (run) => enqueueRun(warehouse, run, waitSeconds, workerId),
    signal,
  );
}

/** Queues the unattended run of a schedule's tick. */
export async function enqueueScheduled(
  context: AppContext,
  options: RunOptions,
  tick: Date,
): Promise<"queued" | "running" | "taken"> {
  return await queue(
    context,
    { ...options, trigger: "schedule" },
    (run) => enqueueTick(context.warehouse, run, tick),
  );
}

/** Queues a run, with retries. A request that cannot be queued is spooled. */
async function queue<T>(
  context: AppContext,
  request: Omit<Run, "id">,
  statement: (run: Run) => Promise<T>,
  signal?: AbortSignal,
): Promise<T> {
  const { config, warehouse, log } = context;
  // The answer to an attempt may be lost. With one ID, a request is one run.
  const run = { ...request, id: crypto.randomUUID() };
  try {
    return await retry(config, async () => {
      await migrate(warehouse, connectionOf(config, "migrate", signal));
      return await statement(run);
    }, { log, signal });
  } catch (error) {
    if (!signal?.aborted) await spoolUnrecorded(context, run, error);
    throw error;
  }
}
