/**
 * A run that is under way: what it works with, and the lock that it needs.
 *
 * @module
 */
import type { Logger } from "@logtape/logtape";
import { ServiceError } from "../errors.ts";
import type { Progress } from "../sync/progress.ts";
import { claimRun, endBackend, type Run } from "../runs/queue.ts";
import { type AppContext, connectionOf } from "../context.ts";
import { acquireLock, type Lock, LOCK_APPLICATION_NAME } from "../runs/lock.ts";

/** A run that is under way. */
export interface RunContext {
  readonly service: AppContext;
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
export function sourceConnection({ service, run, signal }: RunContext) {
  return connectionOf(service.config, run.id, signal);
}

/** How the run connects to the warehouse: not for longer than the lock is held. */
export function warehouseConnection(
  { service, run, lock, signal }: RunContext,
) {
  const both = signal ? AbortSignal.any([lock.signal, signal]) : lock.signal;
  const connection = connectionOf(service.config, run.id, both);
  return { ...connection, holder: lock.holder };
}

/**
 * Takes the lock again when its connection was lost. Nobody else can have
 * loaded in between and this run still be running: whoever takes the lock
 * closes the runs that they find.
 *
 * @throws {ServiceError} `run_lost` when somebody did, `busy` when somebody loads.
 */
export async function keepLock(context: RunContext): Promise<void> {
  const { service: { config, warehouse, workerId }, run, signal } = context;
  if (!context.lock.signal.aborted) return;
  context.renewal ??= (async () => {
    const { lockTimeoutSeconds } = config;
    await endBackend(warehouse, context.lock.pid, LOCK_APPLICATION_NAME);
    const lock = await acquireLock(
      { config, warehouse },
      lockTimeoutSeconds,
      signal,
    );
    context.locks.use(lock);
    if (!await claimRun(warehouse, run.id, workerId)) {
      throw new ServiceError(
        "run_lost",
        `Run ${run.id} was closed by another process`,
      );
    }
    context.lock = lock;
  })().finally(() => context.renewal = undefined);
  await context.renewal;
}
