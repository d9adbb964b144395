/**
 * Second attempts: for transient causes only.
 *
 * @module
 */
import type { Logger } from "@logtape/logtape";
import { retry, RetryError } from "@std/async/retry";
import type { Config } from "../config/config.ts";
import { asServiceError } from "../errors.ts";
import type { AppContext } from "../context.ts";

/** What decides on further attempts, and hears of them. */
interface RetryContext {
  readonly service: { readonly config: Config };
  readonly log: Logger;
  /** No further attempt once it is aborted. */
  readonly signal?: AbortSignal | undefined;
}

/** Tries again for transient causes only, with growing delays; the cause is what is thrown in the end. */
export async function withRetries<T>(
  context: RetryContext,
  work: () => Promise<T>,
  attempts = context.service.config.retryAttempts,
): Promise<T> {
  const { config } = context.service;
  try {
    return await retry(work, {
      maxAttempts: Math.max(1, attempts),
      minTimeout: config.retryDelaySeconds * 1000,
      maxTimeout: Math.max(1, 3_600_000, config.retryDelaySeconds * 1000),
      multiplier: 2,
      jitter: 0.25,
      ...(context.signal ? { signal: context.signal } : {}),
      isRetriable(error: unknown) {
        // Another snapshot is for the whole run to take, not for one of its tables.
        const { kind, code, message } = asServiceError(error);
        const isRetriable = kind.transient && code !== "snapshot_lost" &&
          !context.signal?.aborted;
        if (isRetriable) {
          context.log.warn("A transient failure: {reason}", {
            reason: message,
          });
        }
        return isRetriable;
      },
    });
  } catch (error) {
    throw error instanceof RetryError ? error.cause : error;
  }
}

/** Attempts at what must be done whatever RETRY_ATTEMPTS is: the run must be closed. */
const LEAST_INSISTENCE = 3;

/** Tries what has to be done after an abort as well. */
export function insistently<T>(
  { service, log }: Pick<RetryContext, "service" | "log">,
  work: () => Promise<T>,
): Promise<T> {
  const { retryAttempts } = service.config;
  return withRetries(
    { service, log },
    work,
    Math.max(LEAST_INSISTENCE, retryAttempts),
  );
}

/** What {@linkcode withRetries} needs before there is a run. */
export function retriesOf(
  service: AppContext,
  signal: AbortSignal | undefined,
) {
  return { service, log: service.log, ...(signal ? { signal } : {}) };
}
