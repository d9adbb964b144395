/**
 * Retries, for transient causes only.
 *
 * @module
 */
import type { Logger } from "@logtape/logtape";
import { retry, RetryError } from "@std/async/retry";
import type { Config } from "../config/config.ts";
import { asServiceError } from "../errors.ts";
import type { AppContext } from "../context.ts";

/** Configuration, log and signal of retries. */
interface RetryContext {
  readonly service: { readonly config: Config };
  readonly log: Logger;
  /** Prevents further attempts when aborted. */
  readonly signal?: AbortSignal | undefined;
}

/** Retries transient failures with growing delays. Throws the last cause. */
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
        // Only the whole run can take another snapshot.
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

/** The minimum number of attempts at closing a run. */
const MIN_ATTEMPTS = 3;

/** Retries work that must also happen after an abort. */
export function insistently<T>(
  { service, log }: Pick<RetryContext, "service" | "log">,
  work: () => Promise<T>,
): Promise<T> {
  const { retryAttempts } = service.config;
  return withRetries(
    { service, log },
    work,
    Math.max(MIN_ATTEMPTS, retryAttempts),
  );
}

/** Returns the context of {@linkcode withRetries} before a run exists. */
export function retriesOf(
  service: AppContext,
  signal: AbortSignal | undefined,
) {
  return { service, log: service.log, ...(signal ? { signal } : {}) };
}
