/**
 * Timeouts that hardly count the time in which this process is suspended or busy.
 *
 * @module
 */

/** Maximum milliseconds of a part of a timeout. */
const PART_MILLISECONDS = 1000;

/** Milliseconds after which a timer is late. The process was suspended or busy then. */
const LATE_MILLISECONDS = 500;

/** The share of a part with a pause that counts. So a process that is always busy ends its waits, too. */
const LATE_SHARE = 1 / 4;

/**
 * Calls back after the time, unless the result is disposed of before.
 *
 * After a pause of the process, timers end before it reads what it received
 * meanwhile. So a part of the timeout with a pause counts only in part.
 */
export function startTimeout(seconds: number, call: () => void): Disposable {
  let left = seconds * 1000;
  const whole = Math.min(left, PART_MILLISECONDS);
  let timer: ReturnType<typeof setTimeout>;
  const startPart = () => {
    const part = Math.min(left, whole);
    const due = performance.now() + part;
    timer = setTimeout(() => {
      const isLate = performance.now() - due >= LATE_MILLISECONDS;
      left -= isLate ? whole * LATE_SHARE : part;
      if (left > 0) startPart();
      else call();
    }, part);
  };
  startPart();
  return { [Symbol.dispose]: () => clearTimeout(timer) };
}

/** Waits for `work`. Throws `error()` after the timeout. */
export async function withTimeout<T>(
  work: PromiseLike<T>,
  seconds: number,
  error: () => Error,
): Promise<T> {
  const timeout = Promise.withResolvers<never>();
  using _ = startTimeout(seconds, () => timeout.reject(error()));
  return await Promise.race([work, timeout.promise]);
}
