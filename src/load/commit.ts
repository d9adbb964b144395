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
import { type TableResult, warehouseTransaction } from "../sync/sync_table.ts";
import { writtenRelations } from "../sync/find_target.ts";
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
  representable,
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
  | { readonly state: "restart"; readonly reason: string };

/** Retries of statements that close a run. They also happen after an abort. */
const CLOSING = { atLeast: 3, evenIfAborted: true };

/** A group that is committed, or has failed. */
type Settled = Verified | Failed;

/**
 * Loads every commit group from one snapshot. Each commits as soon as it is verified,
 * so that none waits for another one's locks. The transaction of the last one also
 * closes the run and writes its event. So neither exists without the other.
 *
 * Targets whose functions may write to another target, as in a trigger, come first. The
 * load of a later target repairs the rows that they write to it.
 *
 * @param mayRestart whether the round may end before the run is closed.
 */
export async function loadFromOneSnapshot(
  context: RunContext,
  mayRestart: boolean,
): Promise<RoundEnd> {
  await using preparation = await openPreparation(context);
  const { groups, largestFirst, targets } = preparation;
  const found = (await targets.catch(() => undefined))?.acting;
  const acting = groups.length === 1
    ? []
    : largestFirst.filter((group) =>
      group.some(({ name }) => found?.get(name))
    );
  const round = new Round(context, preparation, mayRestart);
  if (acting.length > 0) {
    await using _ = await lockTargets(
      context,
      groups.flat().filter(({ name }) => found?.get(name) === false),
    );
    await round.settle(acting);
  }
  await round.settle(largestFirst.filter((group) => !acting.includes(group)));
  return await round.end();
}

/** The outcomes of the groups of one snapshot. */
class Round {
  readonly #context: RunContext;
  readonly #preparation: Preparation;
  readonly #mayRestart: boolean;
  readonly #settled = new Map<CommitGroup, Settled>();
  readonly #commits = new Turns();
  #event: LoadEvent | undefined;
  #restart: string | undefined;
  #failure: { readonly cause: unknown } | undefined;

  constructor(
    context: RunContext,
    preparation: Preparation,
    mayRestart: boolean,
  ) {
    this.#context = context;
    this.#preparation = preparation;
    this.#mayRestart = mayRestart;
  }

  /** Whether no further group commits. */
  get isGivenUp(): boolean {
    return this.#restart !== undefined || this.#failure !== undefined;
  }

  /** Loads the groups. A failure of the run itself ends the round. */
  async settle(groups: readonly CommitGroup[]): Promise<void> {
    if (this.isGivenUp) return;
    const { maxParallelTasks } = this.#context.config;
    await Array.fromAsync(
      pooledMap(
        maxParallelTasks,
        groups,
        (group) =>
          this.#settle(group).catch((cause) => {
            this.#failure ??= { cause };
          }),
      ),
    );
  }

  /** Returns the end of the round. Closes the run where no commit has closed it. */
  async end(): Promise<RoundEnd> {
    if (this.#failure) throw this.#failure.cause;
    if (this.#event) return { state: "closed", event: this.#event };
    if (this.#restart) return { state: "restart", reason: this.#restart };
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
      this.#restart ??= "the source's snapshot was lost";
    }
    return prepared;
  }

  async #settle(group: CommitGroup): Promise<void> {
    let prepared = await this.#prepare(group, 0);
    while (prepared.state === "verified") {
      const verified = prepared;
      const outcome = await this.#commits.take(() => this.#commit(verified));
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
  async #commit(verified: Verified): Promise<CommitOutcome> {
    const { tables, session, attempts } = verified;
    // Two snapshots must never be mixed, so a prepared group is given up, too.
    if (this.isGivenUp) {
      session.destroy();
      return { state: "abandoned" };
    }
    const others = [...this.#settled.values()];
    const isLast = others.length === this.#preparation.groups.length - 1;
    const outcome = await commitGroup(
      this.#context,
      verified,
      others.flatMap((it) => it.state === "verified" ? it.results : []),
      (timestamp) => isLast ? this.#eventAt(timestamp, verified) : undefined,
    );
    // Before the next group checks whether it is the last.
    if (outcome.state === "committed") this.#settled.set(tables, verified);
    if (outcome.state === "failed") {
      this.#settled.set(tables, failedGroup(tables, outcome.cause, attempts));
    }
    return outcome;
  }

  /** Returns the event of the run, with the group that is about to commit. */
  #eventAt(timestamp: string, last?: Verified): LoadEvent {
    const { groups, snapshotAt } = this.#preparation;
    const outcomes = groups.map((group) => this.#settled.get(group) ?? last!);
    return runEvent(this.#context, snapshotAt, outcomes, timestamp);
  }
}

/**
 * Locks targets that no load writes yet, so that functions of other targets do not change
 * one that cannot be loaded. Where a lock is not free, the load of its target reports that.
 */
async function lockTargets(
  context: RunContext,
  tables: readonly TableDeclaration[],
): Promise<Session | undefined> {
  const { config, run } = context;
  // A foreign key of a new table takes the same lock on the table that it refers to.
  if (tables.length === 0 || run.recreate) return undefined;
  let session: Session | undefined;
  try {
    session = await Session.open(config.dwh, warehouseConnection(context));
    const options = warehouseTransaction(config);
    await beginLocked(session, options, tables.map(lockTargetSql));
    return session;
  } catch {
    session?.destroy();
    return undefined;
  }
}

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
 * Commits one group, unless its functions have written to a committed target.
 *
 * @param committed results of the groups that are committed.
 * @param eventAt returns the event of the run for the last group, which closes it.
 */
async function commitGroup(
  context: RunContext,
  prepared: Verified,
  committed: readonly TableResult[],
  eventAt: (timestamp: string) => LoadEvent | undefined,
): Promise<CommitOutcome> {
  const { config, warehouse, run, signal } = context;
  const { session } = prepared;
  try {
    const event = eventAt(await confirmRun(session, run.id));
    if (event) {
      const written = await representable(warehouse, event);
      await closeRun(session, run.id, "running", written);
    }
    await checkCommitted(prepared, committed);
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

/**
 * Checks that the transaction of a group has not written to a committed target.
 *
 * @throws {ServiceError} `target_locked`.
 */
async function checkCommitted(
  { results, session }: Verified,
  committed: readonly TableResult[],
): Promise<void> {
  // Any DDL can call event triggers.
  const isUntouched = results.every(({ hasNoSideEffects, mode }) =>
    hasNoSideEffects && mode === "unchanged"
  );
  if (isUntouched || committed.length === 0) return;
  const written = await writtenRelations(session);
  const changed = committed.find(({ oid }) => written.has(oid));
  if (!changed) return;
  const { name } = results[0]!.table;
  throw new ServiceError(
    "target_locked",
    `a trigger, function or foreign key of ${name} writes to ${changed.table.name}, which is already loaded`,
    { table: name, remedy: "Set LOAD_ATOMIC=true." },
  );
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
