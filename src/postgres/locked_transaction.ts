/**
 * Begins a transaction with locks on tables.
 *
 * @module
 */
import { hasSqlstate } from "../errors.ts";
import type { Session, TransactionOptions } from "./session.ts";
import { setLockTimeout } from "./sql.ts";

/** Seconds of the first wait, in which most locks are free. */
const FIRST_SECONDS = 0.1;

/**
 * Begins a transaction and runs `locks`, which are LOCK statements, in it. Waits
 * for at most `waitSeconds`.
 *
 * It waits in short transactions. A session that waits for a lock holds a snapshot
 * of the catalog. CREATE INDEX CONCURRENTLY on the table waits for the end of that
 * transaction, and the transaction waits for the index. PostgreSQL finds such a
 * deadlock when one of them has waited for `deadlock_timeout`, and cancels that one.
 * A transaction that ends before twice that time cannot cancel the index. One that
 * lasts longer than that time still cancels an autovacuum that holds the lock.
 *
 * @throws {ServiceError} with SQLSTATE 55P03 when a lock is not free in time.
 */
export async function beginLocked(
  session: Session,
  options: TransactionOptions,
  locks: readonly string[],
  waitSeconds = options.lockTimeoutSeconds,
): Promise<void> {
  const { lockTimeoutSeconds } = options;
  const deadline = performance.now() + waitSeconds * 1000;
  let longest = FIRST_SECONDS;
  while (true) {
    const left = Math.max((deadline - performance.now()) / 1000, 0.001);
    try {
      await session.begin(
        options,
        [
          setLockTimeout(Math.min(left, longest)),
          ...locks,
          setLockTimeout(lockTimeoutSeconds),
        ].join(";\n"),
      );
      return;
    } catch (error) {
      // The wait for a lock timed out, or was a deadlock.
      const isHeld = hasSqlstate(error, "55P03", "40P01");
      if (!isHeld || left <= longest) throw error;
    }
    await session.query("rollback");
    const [row] = await session.query(
      `select pg_catalog.date_part('epoch', pg_catalog.current_setting('deadlock_timeout')::pg_catalog.interval) as seconds`,
    );
    longest = 1.5 * row!.seconds;
  }
}
