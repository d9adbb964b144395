/**
 * One load at a time, across processes and hosts: the service's lock.
 *
 * @module
 */
import type { Config } from "./config.ts";
import { APPLICATION_NAME, Session } from "./db.ts";
import { ServiceError } from "./errors.ts";

/** Key of the advisory lock that a load holds. */
const SERVICE_LOCK = 5_714_290;

/** The service's lock. Gone with the process, or when disposed of. */
export interface Lock extends AsyncDisposable {
  /** Aborts with a {@linkcode ServiceError} when the lock is lost. */
  readonly signal: AbortSignal;
}

/**
 * Waits for the service's lock.
 *
 * It is held by an open transaction on a connection of its own, so that it
 * dies with the process and works behind a transaction pooler.
 *
 * @param waitSeconds how long to wait; 0 tries once.
 * @throws {ServiceError} `busy` when another load holds it for longer.
 */
export async function acquireLock(
  config: Config,
  waitSeconds: number,
  signal?: AbortSignal,
): Promise<Lock> {
  const session = await Session.open(config.dwh, {
    applicationName: `${APPLICATION_NAME}/lock`,
    connectTimeoutSeconds: config.connectTimeoutSeconds,
    stallTimeoutSeconds: config.stallTimeoutSeconds,
    ...(signal ? { signal } : {}),
  });
  try {
    const [row] = await session.begin<{ locked: boolean }>(
      {
        mode: "read committed",
        lockTimeoutSeconds: Math.max(waitSeconds, 0.001),
      },
      waitSeconds > 0
        ? `select pg_advisory_xact_lock(${SERVICE_LOCK}), true as locked`
        : `select pg_try_advisory_xact_lock(${SERVICE_LOCK}) as locked`,
    );
    if (!row!.locked) throw busy(waitSeconds);
    const lost = new AbortController();
    session.signal.addEventListener("abort", () => {
      const cause = session.signal.reason;
      lost.abort(
        // An abort that was asked for is not a loss.
        cause instanceof ServiceError && cause.code === "terminated"
          ? cause
          : new ServiceError(
            "lock_lost",
            `The service's lock was lost: ${cause.message}`,
            { cause },
          ),
      );
    });
    return {
      signal: lost.signal,
      [Symbol.asyncDispose]: () => session.close(),
    };
  } catch (error) {
    session.destroy();
    if (error instanceof ServiceError && error.sqlstate === "55P03") {
      throw busy(waitSeconds, error);
    }
    throw error;
  }
}

function busy(waitSeconds: number, cause?: unknown): ServiceError {
  return new ServiceError(
    "busy",
    `Another load is running, and was not done within ${waitSeconds} s`,
    { cause },
  );
}
