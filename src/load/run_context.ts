/** A running run: its context, and its lock. */
import type { Progress } from "../sync/progress.ts";
import { confirmRun } from "../runs/record.ts";
import { endBackend } from "../postgres/backends.ts";
import type { Run } from "../runs/run.ts";
import { type AppContext, connectionOf } from "../context.ts";
import { acquireLock, type Lock } from "../runs/lock.ts";

/** The context of a running run. Its log has the id of the run. */
export interface RunContext extends AppContext {
  readonly run: Run;
  /** The held lock, or the next one after a loss. All of them are in `locks`. */
  lock: Lock;
  readonly locks: AsyncDisposableStack;
  /** Resolves when the lock is taken again. Set only until then. */
  renewal: Promise<void> | undefined;
  /** W3C Trace Context of the run, where it is traced. */
  readonly traceparent: string | undefined;
  /** Aborts when the load must stop. */
  readonly signal: AbortSignal;
  readonly onProgress: (progress: Progress) => void;
}

/** Returns the options of warehouse connections, which end with the lock. */
export function warehouseConnection(
  { config, run, lock, signal }: RunContext,
) {
  const both = AbortSignal.any([lock.signal, signal]);
  const connection = connectionOf(config, run.id, both);
  return { ...connection, holder: lock.holder };
}

/**
 * Takes the lock again after its connection was lost. If another process had loaded in
 * between, it would have closed this run.
 *
 * @throws {ServiceError} `run_lost` when another process closed it, `busy` while one
 * loads.
 */
export async function keepLock(context: RunContext): Promise<void> {
  const { config, warehouse, run, signal } = context;
  if (!context.lock.signal.aborted) return;
  context.renewal ??= (async () => {
    const { lockTimeoutSeconds } = config;
    const { pid, applicationName } = context.lock;
    await endBackend(warehouse, pid, applicationName);
    const lock = await acquireLock(context, lockTimeoutSeconds, signal);
    context.locks.use(lock);
    await confirmRun(warehouse, run.id);
    context.lock = lock;
  })().finally(() => context.renewal = undefined);
  await context.renewal;
}
