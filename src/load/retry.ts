/**
 * Retries, for transient causes only.
 *
 * @module
 */
import type { Logger } from "@logtape/logtape";
import { retry as retryWithDelays, RetryError } from "@std/async/retry";
import type { Config } from "../config/config.ts";
import { asServiceError } from "../errors.ts";

/** Number of attempts, and the first delay between them. */
type RetryPolicy = Pick<Config, "retryAttempts" | "retryDelaySeconds">;

interface RetryOptions {
  readonly log: Logger;
  /** Prevents further attempts when aborted. */
  readonly signal?: AbortSignal | undefined;
  /** The minimum number of attempts, also where the policy allows fewer. */
  readonly atLeast?: number;
  /** Whether to make further attempts after an abort. */
  readonly evenIfAborted?: boolean;
}

/** Retries transient failures with growing delays. Throws the last cause. */
export async function retry<T>(
  { retryAttempts, retryDelaySeconds }: RetryPolicy,
  work: () => Promise<T>,
  { log, atLeast = 1, evenIfAborted, ...options }: RetryOptions,
): Promise<T> {
  const signal = evenIfAborted ? undefined : options.signal;
  const maxAttempts = Math.max(atLeast, retryAttempts);
  let attempts = 0;
  try {
    return await retryWithDelays(work, {
      maxAttempts,
      minTimeout: retryDelaySeconds * 1000,
      // The maximum of RETRY_DELAY.
      maxTimeout: 3_600_000,
      multiplier: 2,
      jitter: 0.25,
      ...(signal ? { signal } : {}),
      isRetriable(error: unknown) {
        // Only the whole run can take another snapshot.
        const { kind, code, message } = asServiceError(error);
        const isRetriable = kind.transient && code !== "snapshot_lost" &&
          !signal?.aborted;
        attempts++;
        if (isRetriable && attempts < maxAttempts) {
          log.warn("Retrying after a transient failure: {reason}", {
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
