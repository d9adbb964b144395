/**
 * The commit of a run: its tables become visible, and its event exists with them.
 *
 * @module
 */
import { pooledMap } from "@std/async/pool";
import { APPLICATION_NAME } from "../identity.ts";
import { nameLockedTable } from "../postgres/lock_holders.ts";
import { beginLocked } from "../postgres/locked_transaction.ts";
import { Session } from "../postgres/session.ts";
import { asServiceError, ServiceError } from "../errors.ts";
import {
  causeOf,
  failedEvent,
  failureLine,
  integrityCheck,
  loadedEntry,
  loadedEvent,
  type LoadEvent,
  runUrlOf,
  type TableEntry,
} from "../runs/event.ts";
import { analyzeTarget } from "../sync/analyze.ts";
import { warehouseTransaction } from "../sync/sync_table.ts";
import { selectTables } from "../tables/declaration.ts";
import { findActing, lockTargetSql } from "../sync/target.ts";
import { retry } from "./retry.ts";
import { type RunContext, warehouseConnection } from "./run_context.ts";
import {
  closeRun,
  committedTables,
  confirmRun,
  databaseTime,
  eventOf,
} from "../runs/record.ts";
import { endBackend } from "../postgres/backends.ts";
import type { RunEnd } from "../runs/run.ts";
import {
  type CommitGroup,
  type Failed,
  failedGroup,
  hasLostSnapshot,
  openPreparation,
  type Verified,
} from "./prepare.ts";

/** How a round of a run ends: with the run's event, or with the reason for another round. */
type RoundEnd =
  | { readonly state: "closed"; readonly event: LoadEvent }
  | {
    readonly state: "restart";
    readonly reason: string;
    /** Whether the next round must prepare all groups before it commits one. */
    readonly isUnprotected: boolean;
  };

/** Retries of what closes a run, which must also happen after an abort. */
const CLOSING = { atLeast: 3, evenIfAborted: true };

/** A group of which nothing is left to do. */
type Settled = Verified | Failed;

/**
 * Loads every commit group from one snapshot. Each commits as soon as it is verified,
 * so that none waits for another one's locks. The transaction of the last one also
 * closes the run and writes its event. So neither exists without the other.
 *
 * Targets whose functions may write to another target, as in a trigger, come first.
 * All of them are prepared before the first commit, and the other targets stay locked
 * until the last one. Functions that ran without that protection end the round.
 *
 * @param mayRestart whether the round may end before the run is closed.
 * @param isProtected whether all groups are prepared before the first commits in
 * any case.
 */
export async function loadFromOneSnapshot(
  context: RunContext,
  mayRestart: boolean,
  isProtected: boolean,
): Promise<RoundEnd> {
  const found = findActing(
    selectTables(context.config.tables, context.run.tables),
    context.warehouse,
  );
  found.catch(() => {});
  await using preparation = await openPreparation(context);
  const { groups, largestFirst, snapshotAt } = preparation;
  const settled = new Map<CommitGroup, Settled>();
  const commits = new Turns();
  let event: LoadEvent | undefined;
  let restart: string | undefined;
  let failure: { readonly cause: unknown } | undefined;

  const inParallel = <T>(
    groups: readonly CommitGroup[],
    work: (group: CommitGroup) => Promise<T>,
  ) =>
    Array.fromAsync(pooledMap(context.config.maxParallelTasks, groups, work));
  await using locks = new AsyncDisposableStack();
  const acting = groups.length === 1
    ? []
    : isProtected
    ? largestFirst
    : await protectOthers(context, largestFirst, found, locks);
  const first = await inParallel(
    acting,
    (group) => preparation.prepare(group, 0),
  );
  if (mayRestart && first.some(hasLostSnapshot)) restart = SNAPSHOT_LOST;

  const settle = async (group: CommitGroup) => {
    for (let attempts = 0;;) {
      const prepared = attempts === 0 && first[acting.indexOf(group)] ||
        await preparation.prepare(group, attempts);
      if (mayRestart && hasLostSnapshot(prepared)) restart ??= SNAPSHOT_LOST;
      if (prepared.state === "failed") {
        settled.set(group, prepared);
        return;
      }
      const outcome = await commits.take(async () => {
        const isUnprotected = !first.includes(prepared) &&
          prepared.results.some((result) => result.mayActOnOthers) &&
          [...settled.values()].some(({ state }) => state === "verified");
        // A new target shows only now that it calls functions.
        if (isUnprotected && (mayRestart || !isProtected)) {
          restart ??= UNPROTECTED;
        }
        // Two snapshots must never be mixed, so what is prepared is given up too.
        if (restart || failure) {
          prepared.session.destroy();
          return { state: "abandoned" } as const;
        }
        if (isUnprotected) {
          prepared.session.destroy();
          const cause = new ServiceError("serialization", UNPROTECTED);
          settled.set(group, failedGroup(group, cause, prepared.attempts));
          return { state: "failed", cause } as const;
        }
        const isLast = settled.size === groups.length - 1;
        const others = isLast ? [...settled.values()] : undefined;
        const outcome = await commitGroup(
          context,
          prepared,
          (timestamp) =>
            others && runEnd(
              context,
              snapshotAt,
              inOrder(groups, [...others, prepared]),
              timestamp,
            ),
        );
        // Before the next one looks whether it is the last.
        if (outcome.state === "committed") settled.set(group, prepared);
        if (outcome.state === "failed") {
          const { cause } = outcome;
          settled.set(group, failedGroup(group, cause, prepared.attempts));
        }
        return outcome;
      });
      switch (outcome.state) {
        case "committed":
        case "settledElsewhere":
          if (outcome.state === "committed") {
            await analyzeLoaded(context, prepared);
          }
          event ??= outcome.event;
          await preparation.release(prepared);
          return;
        case "failed":
        case "abandoned":
          return;
        case "retry":
          attempts = prepared.attempts;
      }
    }
  };

  const settleAll = (groups: readonly CommitGroup[]) =>
    inParallel(groups, (group) =>
      settle(group).catch((cause) => {
        failure ??= { cause };
      }));
  await settleAll(acting);
  await locks.disposeAsync();
  if (!failure && !restart) {
    await settleAll(largestFirst.filter((group) => !acting.includes(group)));
  }
  if (failure) throw failure.cause;
  if (event) return { state: "closed", event };
  if (restart) {
    const isUnprotected = restart === UNPROTECTED;
    return { state: "restart", reason: restart, isUnprotected };
  }
  const outcomes = inOrder(groups, [...settled.values()]);
  return {
    state: "closed",
    event: await closeWithoutTables(context, snapshotAt, outcomes),
  };
}

const SNAPSHOT_LOST = "the source's snapshot was lost";

const UNPROTECTED =
  "functions of the target ran after another table was committed, and may have changed it";

/**
 * Returns the groups that may write to another target, and locks the targets of the
 * other groups. Returns all groups where that fails.
 */
async function protectOthers(
  context: RunContext,
  groups: readonly CommitGroup[],
  found: ReturnType<typeof findActing>,
  locks: AsyncDisposableStack,
): Promise<readonly CommitGroup[]> {
  const { config } = context;
  try {
    const acts = await found;
    const acting = groups.filter(([table]) => acts.get(table!.name));
    const others = groups.flat().filter(({ name }) => acts.get(name) === false);
    if (acting.length > 0 && others.length > 0) {
      const session = locks.use(
        await Session.open(config.dwh, warehouseConnection(context)),
      );
      const options = warehouseTransaction(config);
      await beginLocked(session, options, others.map(lockTargetSql));
    }
    return acting;
  } catch {
    // Whatever the reason is, the load of a table meets it as well.
    await locks.disposeAsync();
    return groups;
  }
}

/** Work that is done one after the other. */
class Turns {
  #last: Promise<unknown> = Promise.resolve();

  /** Does the work when all that came before is over. */
  take<T>(work: () => Promise<T>): Promise<T> {
    const result = this.#last.then(work);
    this.#last = result.catch(() => {});
    return result;
  }
}

function inOrder(
  groups: readonly CommitGroup[],
  settled: readonly Settled[],
): readonly Settled[] {
  return groups.flatMap((group) =>
    settled.filter(({ tables }) => tables === group)
  );
}

/** What became of one attempt to commit a group. */
type CommitOutcome =
  /** It is visible, and the event exists if it was the last. */
  | { readonly state: "committed"; readonly event: LoadEvent | undefined }
  /** Another process has closed the run. */
  | { readonly state: "settledElsewhere"; readonly event: LoadEvent }
  | { readonly state: "retry" }
  | { readonly state: "failed"; readonly cause: unknown };

/**
 * Commits one group.
 *
 * @param endOf returns the end of the run for the last group, which closes it.
 */
async function commitGroup(
  context: RunContext,
  prepared: Verified,
  endOf: (timestamp: string) => RunEnd | undefined,
): Promise<CommitOutcome> {
  const { config, warehouse, run, signal } = context;
  const { session } = prepared;
  try {
    const end = endOf(await confirmRun(session, run.id));
    if (end) await closeRun(session, run.id, "running", end);
    await session.commit();
    return { state: "committed", event: end?.event };
  } catch (error) {
    session.destroy();
    const cause = await nameLockedTable(warehouse, error);
    if (!isLockedHistory(cause)) {
      const found = await resolveUnknownCommit(context, prepared);
      if (found.isCommitted) return { state: "committed", event: found.event };
      if (found.event) return { state: "settledElsewhere", event: found.event };
    }
    const mayRetry = asServiceError(cause).kind.transient &&
      prepared.attempts < config.retryAttempts && !signal?.aborted;
    return mayRetry ? { state: "retry" } : { state: "failed", cause };
  }
}

/**
 * Returns whether a statement timed out in a wait for a lock on the history. Such a
 * statement changed nothing, and a retry waits again.
 */
function isLockedHistory(error: unknown): boolean {
  return error instanceof ServiceError && error.code === "history_locked";
}

/** Looks up a commit whose outcome is unknown: what it would have written exists or not. */
async function resolveUnknownCommit(
  context: RunContext,
  { tables, session }: Verified,
): Promise<{ isCommitted: boolean; event: LoadEvent | undefined }> {
  const { config, warehouse, run } = context;
  return await retry(config, async () => {
    // The backend may still be committing: after this it is certainly over.
    await endBackend(warehouse, session.pid, `${APPLICATION_NAME}/${run.id}`);
    const committed = await committedTables(warehouse, run.id);
    return {
      isCommitted: tables.every(({ name }) => committed.includes(name)),
      event: await eventOf(warehouse, run.id),
    };
  }, { ...context, ...CLOSING });
}

/** Closes a run of which no transaction is left that could do it: its tables failed, or their commits did. */
async function closeWithoutTables(
  context: RunContext,
  snapshotAt: string | null,
  outcomes: readonly Settled[],
): Promise<LoadEvent> {
  const { config, warehouse, run } = context;
  return await retry(config, async () => {
    const end = runEnd(
      context,
      snapshotAt,
      outcomes,
      await databaseTime(warehouse),
    );
    try {
      await closeRun(warehouse, run.id, "running", end);
      return end.event;
    } catch (error) {
      if (isLockedHistory(error)) throw error;
      const event = await eventOf(warehouse, run.id);
      if (event) return event;
      throw error;
    }
  }, { ...context, ...CLOSING });
}

/** Updates the statistics of the tables that were loaded in full. A failure is only logged. */
async function analyzeLoaded(
  { config, log, signal }: RunContext,
  { results, session }: Verified,
): Promise<void> {
  for (const { table, mode } of results) {
    if (mode !== "full") continue;
    try {
      await analyzeTarget(session, table, config.lockTimeoutSeconds);
    } catch (error) {
      if (signal.aborted) return;
      log.warn("{table}: the statistics are not updated: {reason}", {
        table: table.name,
        reason: asServiceError(error).reason,
      });
      if (session.failure) return;
    }
  }
}

/** Returns the run's end and its event, from what became of its groups. */
function runEnd(
  { run, config, traceparent }: RunContext,
  sourceSnapshotAt: string | null,
  outcomes: readonly Settled[],
  timestamp: string,
): RunEnd {
  const subject = {
    runId: run.id,
    trigger: run.trigger,
    timestamp,
    sourceSnapshotAt,
    startedAt: run.startedAt,
    runUrl: runUrlOf(config, run.id),
    traceparent,
  };
  const failed = outcomes.flatMap((outcome) =>
    outcome.state === "failed" ? outcome.failures : []
  );
  if (failed.length === 0) {
    const verified = outcomes.filter((outcome) => outcome.state === "verified");
    const loaded = verified.flatMap(entriesOf).filter((entry) =>
      entry.status === "success"
    );
    const checks = verified.flatMap((group) =>
      group.results.map(integrityCheck)
    );
    return {
      state: "succeeded",
      event: loadedEvent(subject, loaded, checks),
      code: null,
      failed,
      sourceSnapshotAt,
    };
  }
  const entries = outcomes.flatMap(entriesOf);
  const { code } = causeOf(failed)!;
  return {
    state: code === "terminated" ? "interrupted" : "failed",
    event: failedEvent(subject, failureLine(entries), entries),
    code,
    failed,
    sourceSnapshotAt,
  };
}

/** Returns the entries of a group in the event. */
function entriesOf(group: Settled): readonly TableEntry[] {
  return group.state === "failed"
    ? group.failures
    : group.results.map((result) => loadedEntry(result, group.attempts));
}
