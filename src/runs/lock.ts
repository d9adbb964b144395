/**
 * The service's lock, which allows one load at a time across processes and hosts.
 *
 * @module
 */
import type { AppContext } from "../context.ts";
import { APPLICATION_NAME } from "../identity.ts";
import { findLockHolders, formatHolder } from "../postgres/lock_holders.ts";
import { beginLocked } from "../postgres/locked_transaction.ts";
import type { ServerHolder } from "../postgres/server_identity.ts";
import { Session } from "../postgres/session.ts";
import { qualified } from "../postgres/sql.ts";
import { hasSqlstate, ServiceError } from "../errors.ts";

/** The empty table that a load locks. That needs a privilege on the table. */
const LOCK_TABLE = {
  schema: "marketing_data_service",
  name: "load_lock",
} as const;

/** Beginning of the `application_name` of a session that holds the lock or waits for it. */
const LOCK_APPLICATION_NAME = `${APPLICATION_NAME}/lock`;

/** Returns the name of that session of a process. PostgreSQL cuts names after 63 bytes. */
function lockName(workerId: string): string {
  return `${LOCK_APPLICATION_NAME} ${workerId.slice(-12)}`;
}

/** The service's lock. It ends with the process, or when it is disposed. */
export interface Lock extends AsyncDisposable {
  /** Aborts with a {@linkcode ServiceError} when the lock is lost. */
  readonly signal: AbortSignal;
  /** Process id of the backend that holds the lock. */
  readonly pid: number;
  readonly applicationName: string;
  /** The server that holds the lock. All connections of a run must use this server. */
  readonly holder: ServerHolder;
}

/**
 * Waits for the service's lock.
 *
 * An open transaction on a separate connection holds it. So it ends with the process,
 * and works behind a transaction pooler.
 *
 * While it is held, the pool's statements run on the lock's server only.
 *
 * @param waitSeconds maximum wait. 0 tries once, and Infinity waits for the signal.
 * @param signal ends the wait. A lock that is held stays, so that no other process
 * closes a run that is being stopped.
 * @throws {ServiceError} `busy` when another load holds it for longer.
 */
export async function acquireLock(
  { config, warehouse, workerId }: AppContext,
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
  const applicationName = lockName(workerId);
  const session = await Session.open(config.dwh, {
    ...config,
    applicationName,
    signal: wait.signal,
  });
  try {
    await beginLocked(
      session,
      { mode: "read committed", lockTimeoutSeconds: config.lockTimeoutSeconds },
      [`lock table ${qualified(LOCK_TABLE)} in exclusive mode`],
      waitSeconds,
    );
    const holder: ServerHolder = {
      server: session.server,
      config: session.config,
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
      applicationName,
      holder,
      async [Symbol.asyncDispose]() {
        stay[Symbol.dispose]();
        await session.close();
      },
    };
  } catch (error) {
    session.destroy();
    if (hasSqlstate(error, "55P03")) {
      throw await findBusyError({ warehouse, workerId }, waitSeconds, false) ??
        busyError(waitSeconds);
    }
    throw error;
  }
}

/**
 * Returns the failure of a wait for the lock. It names the holder of the lock. Returns
 * `undefined` when the wait is about to end. Then no session holds the lock, or this
 * process has just taken it.
 *
 * @param isWaiting whether this process waits for the lock.
 */
export async function findBusyError(
  { warehouse, workerId }: Pick<AppContext, "warehouse" | "workerId">,
  waitSeconds: number,
  isWaiting: boolean,
): Promise<ServiceError | undefined> {
  const holders = await findLockHolders(warehouse, LOCK_TABLE)
    .catch(() => undefined);
  // A role may have no right to see locks.
  if (!holders) return busyError(waitSeconds);
  const [holder] = holders;
  const isOwn = holder?.application === lockName(workerId);
  if (!holder || isWaiting && isOwn) return undefined;
  const name = formatHolder(holder);
  return busyError(
    waitSeconds,
    holder.application.startsWith(LOCK_APPLICATION_NAME)
      ? `another load is running in ${name}`
      : `${name} holds the lock of the loads`,
  );
}

function busyError(
  waitSeconds: number,
  reason = "the lock of the loads was not free",
): ServiceError {
  return new ServiceError(
    "busy",
    `Cannot start a load within ${waitSeconds} s: ${reason}`,
  );
}
