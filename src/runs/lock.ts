/**
 * One load at a time, across processes and hosts: the service's lock.
 *
 * @module
 */
import type { Config } from "../config/config.ts";
import { APPLICATION_NAME } from "../identity.ts";
import { findLockHolders, formatHolder } from "../postgres/lock_holders.ts";
import type { Pool } from "../postgres/pool.ts";
import type { ServerHolder } from "../postgres/server_identity.ts";
import { Session } from "../postgres/session.ts";
import { qualified } from "../postgres/sql.ts";
import { ServiceError } from "../errors.ts";
import type { LoadEvent } from "./event.ts";
import { progressOf, type Ticket } from "./queue.ts";
import type { AppContext } from "../context.ts";

/** The empty table that a load locks. Only a role with a right to it can. */
const LOCK_TABLE = {
  schema: "marketing_data_service",
  name: "load_lock",
} as const;

/** Name of the session that holds the lock or waits for it. */
export const LOCK_APPLICATION_NAME = `${APPLICATION_NAME}/lock`;

/** The service's lock. It ends with the process, or when it is disposed. */
export interface Lock extends AsyncDisposable {
  /** Aborts with a {@linkcode ServiceError} when the lock is lost. */
  readonly signal: AbortSignal;
  /** Process id of the backend that holds it. */
  readonly pid: number;
  /** The server that holds it. All connections of a run must use this server. */
  readonly holder: ServerHolder;
}

/**
 * Waits for the service's lock.
 *
 * It is held by an open transaction on a connection of its own, so that it
 * dies with the process and works behind a transaction pooler.
 *
 * While it is held, the pool's statements run on the lock's server only.
 *
 * @param waitSeconds how long to wait; 0 tries once.
 * @param signal ends the wait. A lock that is held stays, so that no other process
 * closes a run that is being stopped.
 * @throws {ServiceError} `busy` when another load holds it for longer.
 */
export async function acquireLock(
  { config, warehouse }: { config: Config; warehouse: Pool },
  waitSeconds: number,
  signal?: AbortSignal,
): Promise<Lock> {
  const wait = new AbortController();
  const stop = () => wait.abort(signal!.reason);
  signal?.throwIfAborted();
  signal?.addEventListener("abort", stop);
  using _ = {
    [Symbol.dispose]: () => signal?.removeEventListener("abort", stop),
  };
  const session = await Session.open(config.dwh, {
    applicationName: LOCK_APPLICATION_NAME,
    connectTimeoutSeconds: config.connectTimeoutSeconds,
    stallTimeoutSeconds: config.stallTimeoutSeconds,
    signal: wait.signal,
  });
  try {
    await lockLoads(session, waitSeconds);
    const holder: ServerHolder = {
      server: session.server,
      giveUp: (reason) => session.destroy(reason),
    };
    const stay = warehouse.stayWith(holder);
    const lost = new AbortController();
    session.signal.addEventListener("abort", () => {
      const cause = session.signal.reason;
      stay[Symbol.dispose]();
      lost.abort(
        new ServiceError(
          "lock_lost",
          `The service's lock was lost: ${cause.message}`,
          { cause },
        ),
      );
    });
    return {
      signal: lost.signal,
      pid: session.pid,
      holder,
      async [Symbol.asyncDispose]() {
        stay[Symbol.dispose]();
        await session.close();
      },
    };
  } catch (error) {
    session.destroy();
    if (error instanceof ServiceError && error.sqlstate === "55P03") {
      throw await busyError(warehouse, waitSeconds, error);
    }
    throw error;
  }
}

/** Seconds that one transaction waits for the lock. */
const SLICE_SECONDS = 2;

/**
 * Waits for the lock in short transactions. A session that waits may hold a
 * snapshot. CREATE INDEX CONCURRENTLY on a target would wait for it, while the
 * running load waits for the index.
 */
async function lockLoads(session: Session, waitSeconds: number): Promise<void> {
  const deadline = performance.now() + waitSeconds * 1000;
  while (true) {
    const seconds = Math.max((deadline - performance.now()) / 1000, 0.001);
    try {
      await session.begin(
        {
          mode: "read committed",
          lockTimeoutSeconds: Math.min(seconds, SLICE_SECONDS),
        },
        `lock table ${qualified(LOCK_TABLE)} in exclusive mode`,
      );
      return;
    } catch (error) {
      const isHeld = error instanceof ServiceError &&
        error.sqlstate === "55P03";
      if (!isHeld || seconds <= SLICE_SECONDS) throw error;
      await session.query("rollback");
    }
  }
}

/** Returns whether it is the lock, and not the event of the run. */
export function isLock(turn: Lock | LoadEvent): turn is Lock {
  return Symbol.asyncDispose in turn;
}

/** Milliseconds between two polls of a run that waits for the lock. */
const POLL_MILLISECONDS = 500;

/** Seconds of one wait for the lock without a limit. */
const LONG_WAIT_SECONDS = 3600;

/**
 * Waits for the lock, or until another process has finished the run, and then
 * returns its event. Requests are shared across processes.
 *
 * The timeout counts until the run begins in any process. It is that of this
 * process's callers, even if others wait longer for the same run. `askedAt` is
 * when they started to wait, in milliseconds of `performance.now()`.
 *
 * @throws {ServiceError} `busy` when the run does not begin in time.
 */
export async function waitForTurn(
  { config, warehouse, workerId }: AppContext,
  ticket: Ticket,
  askedAt: number,
  signal?: AbortSignal,
): Promise<Lock | LoadEvent> {
  const finished = new AbortController();
  let event: LoadEvent | undefined;
  let isOver = false;
  let hasNoLimit = ticket.isCertain;
  const waitedSeconds = (performance.now() - askedAt) / 1000;
  let limitSeconds = Math.max(0, config.lockTimeoutSeconds - waitedSeconds);
  const look = async () => {
    try {
      const run = await progressOf(warehouse, ticket.runId, workerId);
      if (isOver) return;
      if (run?.event) {
        event = run.event;
        finished.abort(new ServiceError("run_lost", "The run is finished"));
      } else if (run?.state === "running") hasNoLimit = true;
    } catch {
      // The wait for the lock reports a lost connection.
    }
    if (!isOver) timer = setTimeout(look, POLL_MILLISECONDS);
  };
  let timer = setTimeout(look, POLL_MILLISECONDS);
  try {
    while (true) {
      try {
        return await acquireLock(
          { config, warehouse },
          hasNoLimit ? LONG_WAIT_SECONDS : limitSeconds,
          AbortSignal.any([finished.signal, ...(signal ? [signal] : [])]),
        );
      } catch (error) {
        if (event) return event;
        const isBusy = error instanceof ServiceError && error.code === "busy";
        if (!isBusy) throw error;
        const run = await progressOf(warehouse, ticket.runId, workerId);
        if (run?.event) return run.event;
        hasNoLimit ||= run?.state === "running";
        // Other callers of this process may wait longer.
        limitSeconds = Math.min(
          run?.secondsLeft ?? 0,
          config.lockTimeoutSeconds,
        );
        if (!hasNoLimit && limitSeconds === 0) {
          throw await busyError(warehouse, config.lockTimeoutSeconds, error);
        }
      }
    }
  } finally {
    // A running poll would set the timer again.
    isOver = true;
    clearTimeout(timer);
  }
}

/** Returns the failure of a wait for the lock. It names who holds the lock. */
export async function busyError(
  warehouse: Pool,
  waitSeconds: number,
  cause?: unknown,
): Promise<ServiceError> {
  const holders = await findLockHolders(warehouse, LOCK_TABLE).catch(() => []);
  const [holder] = holders;
  return new ServiceError(
    "busy",
    `Cannot start a load within ${waitSeconds} s: ${
      holder === undefined
        ? "the lock of the loads was not free"
        : holder.application === LOCK_APPLICATION_NAME
        ? `another load is running in ${formatHolder(holder)}`
        : `${formatHolder(holder)} holds the lock of the loads`
    }`,
    { cause },
  );
}
