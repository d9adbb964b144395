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
import { asServiceError, hasCode, ServiceError } from "../errors.ts";
import {
  failedEvent,
  failureLine,
  integrityCheck,
  loadedEntry,
  loadedEvent,
  type LoadEvent,
  subjectOf,
  type TableEntry,
} from "../runs/event.ts";
import { analyzeTarget } from "../sync/analyze.ts";
import { warehouseTransaction } from "../sync/sync_table.ts";
import { lockTargetSql } from "../sync/target.ts";
import type { TableDeclaration } from "../tables/declaration.ts";
import { retry } from "./retry.ts";
import { type RunContext, warehouseConnection } from "./run_context.ts";
import {
  closeRun,
  confirmRun,
  databaseTime,
  eventOf,
  loadedByRun,
} from "../runs/record.ts";
import { endBackend } from "../postgres/backends.ts";
import {
  type CommitGroup,
  type Failed,
  failedGroup,
  hasLostSnapshot,
  openPreparation,
  type Preparation,
  type Prepared,
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

/** Retries of statements that close a run. They also happen after an abort. */
const CLOSING = { atLeast: 3, evenIfAborted: true };

/** A group that is committed, or has failed. */
type Settled = Verified | Failed;

/** What keeps functions that a batch calls from changing committed targets. */
interface Protection {
  /** The batch, as it was prepared before the first of its commits. */
  readonly first: ReadonlyMap<CommitGroup, Prepared>;
  /** Locks the committed targets outside of the batch. */
  readonly guard?: Session | undefined;
}

/**
 * Loads every commit group from one snapshot. Each commits as soon as it is verified,
 * so that none waits for another one's locks. The transaction of the last one also
 * closes the run and writes its event. So neither exists without the other.
 *
 * Targets whose functions may write to another target, as in a trigger, come first, in
 * batches. A batch is prepared before the first of its commits, and all other targets
 * are locked meanwhile. Functions that ran without that protection end the round.
 *
 * @param mayRestart whether the round may end before the run is closed.
 * @param isProtected whether all groups are loaded in that way.
 */
export async function loadFromOneSnapshot(
  context: RunContext,
  mayRestart: boolean,
  isProtected: boolean,
): Promise<RoundEnd> {
  await using preparation = await openPreparation(context);
  const { groups, largestFirst } = preparation;
  const acting = groups.length === 1
    ? []
    : isProtected
    ? largestFirst
    : await actingGroups(preparation);
  const round = new Round(context, preparation, mayRestart, isProtected);
  await round.settleProtected(acting);
  await round.settle(largestFirst.filter((group) => !acting.includes(group)));
  return await round.end();
}

/** The outcomes of the groups of one snapshot. */
class Round {
  readonly #context: RunContext;
  readonly #preparation: Preparation;
  readonly #mayRestart: boolean;
  readonly #isProtected: boolean;
  readonly #settled = new Map<CommitGroup, Settled>();
  readonly #commits = new Turns();
  #mayLockAll = true;
  #event: LoadEvent | undefined;
  #restart: string | undefined;
  #failure: { readonly cause: unknown } | undefined;

  constructor(
    context: RunContext,
    preparation: Preparation,
    mayRestart: boolean,
    isProtected: boolean,
  ) {
    this.#context = context;
    this.#preparation = preparation;
    this.#mayRestart = mayRestart;
    this.#isProtected = isProtected;
  }

  /** Whether no further group commits. */
  get isGivenUp(): boolean {
    return this.#restart !== undefined || this.#failure !== undefined;
  }

  /** Loads the groups. */
  async settle(groups: readonly CommitGroup[]): Promise<void> {
    if (this.isGivenUp) return;
    await this.#inParallel(groups, (group) => this.#settle(group));
  }

  /** Loads the groups so that none of them can change a target that is committed. */
  async settleProtected(groups: readonly CommitGroup[]): Promise<void> {
    const { maxParallelTasks } = this.#context.config;
    for (let n = 0; n < groups.length; n += maxParallelTasks) {
      if (this.isGivenUp) return;
      const batch = groups.slice(n, n + maxParallelTasks);
      await using guard = await this.#lockOthers(batch);
      const first = new Map<CommitGroup, Prepared>();
      await this.#inParallel(batch, async (group) => {
        first.set(group, await this.#prepare(group, 0));
      });
      const protection = { first, guard };
      await this.#inParallel(
        batch,
        (group) => this.#settle(group, protection),
      );
    }
  }

  async #inParallel(
    groups: readonly CommitGroup[],
    work: (group: CommitGroup) => Promise<void>,
  ): Promise<void> {
    const { maxParallelTasks } = this.#context.config;
    await Array.fromAsync(pooledMap(maxParallelTasks, groups, work));
  }

  /**
   * Locks the targets outside of the batch, or at least those that are committed. The
   * load of any other target repairs what functions write to it. Returns `undefined`
   * where there is none, and where the locks are not free.
   */
  async #lockOthers(
    batch: readonly CommitGroup[],
  ): Promise<Session | undefined> {
    const others = this.#preparation.groups.filter((group) =>
      !batch.includes(group)
    );
    const committed = others.filter((group) => this.#isCommitted(group)).flat();
    if (this.#mayLockAll) {
      try {
        const { acting: present } = await this.#preparation.targets;
        return await lockTargets(
          this.#context,
          others.flat().filter((table) =>
            present.has(table.name) || committed.includes(table)
          ),
        );
      } catch {
        // The load of a locked target reports it. No other batch waits for its lock.
        this.#mayLockAll = false;
      }
    }
    return await lockTargets(this.#context, committed).catch(() => undefined);
  }

  #isCommitted(group: CommitGroup): boolean {
    return this.#settled.get(group)?.state === "verified";
  }

  /** Returns the end of the round. Closes the run where no commit has closed it. */
  async end(): Promise<RoundEnd> {
    if (this.#failure) throw this.#failure.cause;
    if (this.#event) return { state: "closed", event: this.#event };
    const reason = this.#restart;
    if (reason) {
      const isUnprotected = reason === UNPROTECTED;
      return { state: "restart", reason, isUnprotected };
    }
    return {
      state: "closed",
      event: await closeWithoutTables(
        this.#context,
        (timestamp) => this.#eventAt(timestamp),
      ),
    };
  }

  async #prepare(group: CommitGroup, attempts: number): Promise<Prepared> {
    const prepared = await this.#preparation.prepare(group, attempts);
    if (this.#mayRestart && hasLostSnapshot(prepared)) {
      this.#restart ??= SNAPSHOT_LOST;
    }
    return prepared;
  }

  /** Loads a group. A failure of the run itself ends the round. */
  async #settle(group: CommitGroup, protection?: Protection): Promise<void> {
    try {
      await this.#load(group, protection);
    } catch (cause) {
      this.#failure ??= { cause };
    }
  }

  async #load(group: CommitGroup, protection?: Protection): Promise<void> {
    let prepared = protection?.first.get(group) ??
      await this.#prepare(group, 0);
    while (prepared.state === "verified") {
      const verified = prepared;
      const outcome = await this.#commits.take(() =>
        this.#commit(verified, protection)
      );
      if (outcome.state === "retry") {
        prepared = await this.#prepare(group, verified.attempts);
        continue;
      }
      if (outcome.state === "committed") {
        await analyzeLoaded(this.#context, verified);
      }
      if ("event" in outcome) {
        this.#event ??= outcome.event;
        await this.#preparation.release(verified);
      }
      return;
    }
    this.#settled.set(group, prepared);
  }

  /** Commits a verified group, unless the round is given up. */
  async #commit(
    verified: Verified,
    protection?: Protection,
  ): Promise<CommitOutcome> {
    const { tables, results, session, attempts } = verified;
    const isUnprotected =
      results.some(({ mayActOnOthers }) => mayActOnOthers) &&
      await this.#mayHaveChanged(verified, protection);
    // A new target shows only now that it calls functions.
    if (isUnprotected && (this.#mayRestart || !this.#isProtected)) {
      this.#restart ??= UNPROTECTED;
    }
    // Two snapshots must never be mixed, so what is prepared is given up too.
    if (this.isGivenUp || isUnprotected) session.destroy();
    if (this.isGivenUp) return { state: "abandoned" };
    const isLast = this.#settled.size === this.#preparation.groups.length - 1;
    const outcome: CommitOutcome = isUnprotected
      ? {
        state: "failed",
        cause: new ServiceError("serialization", UNPROTECTED),
      }
      : await commitGroup(
        this.#context,
        verified,
        (timestamp) => isLast ? this.#eventAt(timestamp, verified) : undefined,
      );
    // Before the next group checks whether it is the last.
    if (outcome.state === "committed") this.#settled.set(tables, verified);
    if (outcome.state === "failed") {
      this.#settled.set(tables, failedGroup(tables, outcome.cause, attempts));
    }
    return outcome;
  }

  /** Returns whether functions that a group has called may have changed a committed target. */
  async #mayHaveChanged(
    verified: Verified,
    { first, guard }: Protection = { first: new Map() },
  ): Promise<boolean> {
    const committed = [...this.#settled.keys()].filter((group) =>
      this.#isCommitted(group)
    );
    const isPreparedFirst = first.get(verified.tables) === verified;
    const isInBatch = (group: CommitGroup) => first.has(group);
    return committed.some(isInBatch) && !isPreparedFirst ||
      !committed.every(isInBatch) && !(guard && await isAlive(guard));
  }

  /** Returns the event of the run, with the group that is about to commit. */
  #eventAt(timestamp: string, last?: Verified): LoadEvent {
    const { groups, snapshotAt } = this.#preparation;
    const outcomes = groups.map((group) => this.#settled.get(group) ?? last!);
    return runEvent(this.#context, snapshotAt, outcomes, timestamp);
  }
}

const SNAPSHOT_LOST = "the source's snapshot was lost";

const UNPROTECTED =
  "functions of the target ran after another table was committed, and may have changed it";

/** Returns the groups that may write to another target, or all where that is unknown. */
async function actingGroups(
  { largestFirst, targets }: Preparation,
): Promise<readonly CommitGroup[]> {
  const found = await targets.catch(() => undefined);
  return largestFirst.filter((group) =>
    group.some(({ name }) => found?.acting.get(name) ?? !found)
  );
}

/**
 * Locks targets for functions of others, as their loads do.
 *
 * @throws {ServiceError} with SQLSTATE 55P03 when another session holds one.
 */
async function lockTargets(
  context: RunContext,
  tables: readonly TableDeclaration[],
): Promise<Session | undefined> {
  if (tables.length === 0) return undefined;
  const { config } = context;
  const session = await Session.open(config.dwh, warehouseConnection(context));
  try {
    const options = warehouseTransaction(config);
    await beginLocked(session, options, tables.map(lockTargetSql));
    return session;
  } catch (error) {
    session.destroy();
    throw error;
  }
}

/** Returns whether the session still has its transaction, and so its locks. */
const isAlive = (session: Session) =>
  session.query("select").then(() => true, () => false);

/** Work that is done one after the other. */
class Turns {
  #last: Promise<unknown> = Promise.resolve();

  /** Does the work after all earlier work. */
  take<T>(work: () => Promise<T>): Promise<T> {
    const result = this.#last.then(work);
    this.#last = result.catch(() => {});
    return result;
  }
}

/** The outcome of one attempt to commit a group. */
type CommitOutcome =
  /** It is visible, and the event exists if it was the last. */
  | { readonly state: "committed"; readonly event: LoadEvent | undefined }
  /** Another process has closed the run. */
  | { readonly state: "settledElsewhere"; readonly event: LoadEvent }
  | { readonly state: "retry" | "abandoned" }
  | { readonly state: "failed"; readonly cause: unknown };

/**
 * Commits one group.
 *
 * @param eventAt returns the event of the run for the last group, which closes it.
 */
async function commitGroup(
  context: RunContext,
  prepared: Verified,
  eventAt: (timestamp: string) => LoadEvent | undefined,
): Promise<CommitOutcome> {
  const { config, warehouse, run, signal } = context;
  const { session } = prepared;
  try {
    const event = eventAt(await confirmRun(session, run.id));
    if (event) await closeRun(session, run.id, "running", event);
    await session.commit();
    return { state: "committed", event };
  } catch (error) {
    session.destroy();
    const cause = await nameLockedTable(warehouse, error);
    // A lock timeout changed nothing.
    if (!hasCode(cause, "history_locked")) {
      const found = await resolveUnknownCommit(context, prepared);
      if (found.isCommitted) return { state: "committed", event: found.event };
      if (found.event) return { state: "settledElsewhere", event: found.event };
    }
    const mayRetry = asServiceError(cause).kind.transient &&
      prepared.attempts < config.retryAttempts && !signal?.aborted;
    return mayRetry ? { state: "retry" } : { state: "failed", cause };
  }
}

/** Looks up a commit whose outcome is unknown: its rows exist or not. */
async function resolveUnknownCommit(
  context: RunContext,
  { tables, session }: Verified,
): Promise<{ isCommitted: boolean; event: LoadEvent | undefined }> {
  const { config, warehouse, run } = context;
  return await retry(config, async () => {
    // The backend may still be committing: after this it is certainly over.
    await endBackend(warehouse, session.pid, `${APPLICATION_NAME}/${run.id}`);
    const loaded = await loadedByRun(warehouse, run.id);
    return {
      isCommitted: tables.every(({ name }) =>
        loaded.some(({ table }) => table === name)
      ),
      event: await eventOf(warehouse, run.id),
    };
  }, { ...context, ...CLOSING });
}

/** Closes a run whose tables, or their commits, failed. So no transaction of a table can close it. */
async function closeWithoutTables(
  context: RunContext,
  eventAt: (timestamp: string) => LoadEvent,
): Promise<LoadEvent> {
  const { config, warehouse, run } = context;
  return await retry(config, async () => {
    const event = eventAt(await databaseTime(warehouse));
    try {
      await closeRun(warehouse, run.id, "running", event);
      return event;
    } catch (error) {
      if (hasCode(error, "history_locked")) throw error;
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

/** Returns the event of the run, from the outcomes of its groups. */
function runEvent(
  { run, config, traceparent }: RunContext,
  sourceSnapshotAt: string | null,
  outcomes: readonly Settled[],
  timestamp: string,
): LoadEvent {
  const details = { timestamp, sourceSnapshotAt, traceparent };
  const subject = subjectOf(config, run, details);
  const entries = outcomes.flatMap(entriesOf);
  const loaded = entries.filter((entry) => entry.status === "success");
  if (loaded.length < entries.length) {
    return failedEvent(subject, failureLine(entries), entries);
  }
  const checks = outcomes.flatMap((outcome) =>
    outcome.state === "verified" ? outcome.results.map(integrityCheck) : []
  );
  return loadedEvent(subject, loaded, checks);
}

function entriesOf(group: Settled): readonly TableEntry[] {
  return group.state === "failed"
    ? group.failures
    : group.results.map((result) => loadedEntry(result, group.attempts));
}
