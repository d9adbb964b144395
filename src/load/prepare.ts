/**
 * Prepares commit groups: loads and verifies them from one snapshot, not yet visible.
 *
 * @module
 */
import { holderClause, nameLockedTable } from "../postgres/lock_holders.ts";
import { limitHistoryLocks, type Pool } from "../postgres/pool.ts";
import { Session } from "../postgres/session.ts";
import { SpareSessions } from "../postgres/spare_sessions.ts";
import { asServiceError, hasCode, ServiceError } from "../errors.ts";
import {
  type FailedEntry,
  failedEntry,
  integrityCheck,
  loadedEntry,
} from "../runs/event.ts";
import { connectionOf } from "../context.ts";
import { retry } from "./retry.ts";
import {
  keepLock,
  type RunContext,
  warehouseConnection,
} from "./run_context.ts";
import { endBackend } from "../postgres/backends.ts";
import {
  checkHistoryTables,
  lastLoadsOf,
  recordTableLoad,
  representable,
} from "../runs/record.ts";
import { openSnapshot, type Snapshot } from "../sync/snapshot.ts";
import {
  beginWithLocks,
  type LastLoad,
  syncTable,
  type TableResult,
} from "../sync/sync_table.ts";
import { settleConstraints } from "../sync/constraints.ts";
import { requireAll, runChecks } from "../sync/checks.ts";
import { PhaseClock, type PhaseTiming } from "../sync/progress.ts";
import {
  namesOf,
  selectTables,
  type TableDeclaration,
} from "../tables/declaration.ts";
import { lookUpTargets, type UnlockedTargets } from "../sync/find_target.ts";
import { createSchemas, targetSchemas } from "../sync/target.ts";

/** Tables that become visible together, in one warehouse transaction. */
export type CommitGroup = readonly TableDeclaration[];

/** A commit group that is loaded and verified, with its transaction open. */
export interface Verified {
  readonly state: "verified";
  readonly tables: CommitGroup;
  readonly results: readonly TableResult[];
  readonly session: Session;
  readonly attempts: number;
}

/** A commit group that is not loaded. */
export interface Failed {
  readonly state: "failed";
  readonly tables: CommitGroup;
  readonly failures: readonly FailedEntry[];
  readonly attempts: number;
}

export type Prepared = Verified | Failed;

/** The commit groups of a run and the one snapshot that all of them are loaded from. */
export interface Preparation extends AsyncDisposable {
  /** In the order in which results are reported. */
  readonly groups: readonly CommitGroup[];
  /** In the order of work, so that no large table is left for the end. */
  readonly largestFirst: readonly CommitGroup[];
  readonly snapshotAt: string | null;
  readonly targets: Promise<Targets>;
  /** Loads and verifies a group, with the attempts that are left. Never rejects. */
  readonly prepare: (
    group: CommitGroup,
    attemptsBefore: number,
  ) => Promise<Prepared>;
  /** Takes the session of a committed group back, for another group or to be closed. */
  readonly release: (committed: Verified) => Promise<void>;
}

/** Opens the snapshot. A snapshot that cannot be opened fails every group. */
export async function openPreparation(
  context: RunContext,
): Promise<Preparation> {
  const { config, warehouse } = context;
  const tables = selectTables(config.tables, context.run.tables);
  const groups = context.run.atomic ? [tables] : tables.map((table) => [table]);
  const spare = new SpareSessions();
  const closing: Promise<void>[] = [];
  // While the source answers.
  const targets = findTargets(warehouse, tables);
  targets.catch(() => {});
  spare.open(
    Math.min(groups.length, config.maxParallelTasks),
    () => Session.open(config.dwh, warehouseConnection(context)),
  );
  const closeSpare = async () => {
    await Promise.all([...closing, spare.close()]);
  };
  // Does not depend on the lock.
  const connection = connectionOf(config, context.run.id, context.signal);
  let snapshot: Snapshot;
  let attempts = 0;
  try {
    snapshot = await retry(config, () => {
      attempts++;
      const isLast = attempts >= config.retryAttempts;
      return openSnapshot(config, connection, tables, isLast);
    }, context);
  } catch (error) {
    return {
      groups,
      targets,
      largestFirst: groups,
      snapshotAt: null,
      prepare: (group) => Promise.resolve(failedGroup(group, error, attempts)),
      release: ({ session }) => session.close(),
      [Symbol.asyncDispose]: closeSpare,
    };
  }
  const { bySize } = snapshot;
  const shared = { snapshot, targets, spare };
  return {
    groups,
    targets,
    largestFirst: groups.toSorted(([a], [b]) =>
      bySize.indexOf(a!.name) - bySize.indexOf(b!.name)
    ),
    snapshotAt: snapshot.takenAt,
    async prepare(group, attemptsBefore) {
      // The snapshot already decided on failures of a source table.
      const refusal = group.map(({ name }) => snapshot.tables.get(name))
        .find((shape) => shape instanceof ServiceError);
      return refusal
        ? failedGroup(group, refusal, attempts)
        : await prepareGroup(context, shared, group, attemptsBefore);
    },
    async release({ session, results }) {
      const isNeeded = groups.length > config.maxParallelTasks;
      // Functions of others may have left something in the session.
      const isClean = results.every(({ hasNoSideEffects, table }) =>
        hasNoSideEffects && !table.checks?.some(({ kind }) => kind === "sql")
      );
      if (isNeeded && isClean && !session.failure) spare.add(session);
      else if (isNeeded) await session.close();
      else closing.push(session.close());
    },
    async [Symbol.asyncDispose]() {
      await Promise.all([closeSpare(), snapshot[Symbol.asyncDispose]()]);
    },
  };
}

/** The targets of a run, and the states after their last loads. */
interface Targets extends UnlockedTargets {
  readonly lastLoads: ReadonlyMap<string, LastLoad>;
}

/** Looks up the targets and their last loads in the warehouse. */
async function findTargets(
  warehouse: Pool,
  tables: readonly TableDeclaration[],
): Promise<Targets> {
  const lastLoads = await lastLoadsOf(warehouse, namesOf(tables));
  return { lastLoads, ...await lookUpTargets(tables, warehouse) };
}

/** The parts that the groups of one snapshot share. */
interface Shared {
  readonly snapshot: Snapshot;
  readonly targets: Promise<Targets>;
  /** Sessions that log in ahead, or that a committed group has released. */
  readonly spare: SpareSessions;
}

/** Loads and verifies a group's tables in one transaction, which stays open. */
async function prepareGroup(
  context: RunContext,
  { snapshot, targets, spare }: Shared,
  tables: CommitGroup,
  attemptsBefore: number,
): Promise<Prepared> {
  const { config, warehouse } = context;
  let attempts = attemptsBefore;
  let lost: Session | undefined;
  const attempt = async (): Promise<Verified> => {
    attempts++;
    await keepLock(context);
    const connection = warehouseConnection(context);
    // Otherwise its backend would keep the table locked for a while.
    if (lost) {
      await endBackend(warehouse, lost.pid, connection.applicationName);
    }
    // Again after a failure, which another group may have caused, or a dropped schema.
    const again = () => findTargets(warehouse, tables);
    const { missingSchemas, lastLoads } =
      await (attempts === 1 ? targets.catch(again) : again());
    const own = targetSchemas(tables);
    await createSchemas(
      warehouse,
      missingSchemas.filter((name) => own.includes(name)),
    );
    const session = await spare.take() ??
      await Session.open(config.dwh, connection);
    lost = session;
    try {
      const results = await syncAndRecord(
        context,
        { snapshot, lastLoads, tables, attempts },
        session,
      );
      return { state: "verified", tables, results, session, attempts };
    } catch (error) {
      // No ROLLBACK: the server rolls back when the connection ends.
      session.destroy();
      throw await nameHolder(warehouse, tables, error);
    }
  };
  try {
    const retryAttempts = config.retryAttempts - attemptsBefore;
    return await retry({ ...config, retryAttempts }, attempt, context);
  } catch (error) {
    for (const table of tables) snapshot.abandon(table);
    return failedGroup(tables, error, attempts);
  }
}

/** A commit group, and the state that its tables are loaded from. */
interface Grouped {
  readonly snapshot: Snapshot;
  readonly lastLoads: ReadonlyMap<string, LastLoad>;
  readonly tables: CommitGroup;
  /** Number of attempts with this one. */
  readonly attempts: number;
}

/**
 * Makes the tables equal to the snapshot in one open transaction, runs their checks,
 * and writes their loads to the history.
 *
 * @throws {ServiceError} of the first table that fails. The caller then destroys `session`.
 */
async function syncAndRecord(
  context: RunContext,
  { snapshot, lastLoads, tables, attempts }: Grouped,
  session: Session,
): Promise<readonly TableResult[]> {
  const { config, warehouse, run, onProgress } = context;
  const [first] = tables;
  const clock = new PhaseClock(first!.name, onProgress);
  await beginWithLocks(tables, session, config);
  const results: TableResult[] = [];
  for (const table of tables) {
    const result = await syncTable(
      {
        config,
        snapshot,
        mode: run.mode,
        recreate: run.recreate,
        allowShrink: run.allowShrink,
        isAlone: tables.length === 1,
        lastLoads,
      },
      table,
      session,
      table === first ? clock : new PhaseClock(table.name, onProgress),
    );
    results.push(result);
    onProgress({
      ...progressOf(result),
      phase: table.checks?.length ? "check" : "wait",
    });
  }
  const isClean = results.every((result) => result.hasNoSideEffects);
  if (tables.length > 1 && !isClean) {
    // A trigger of one table may have changed another one after its verification.
    await settleConstraints(session);
    for (const result of results) await result.verifyAgain();
  }
  // After all tables of the transaction: a check can read another one.
  for (const [index, result] of results.entries()) {
    results[index] = await withChecks(context, result, session);
  }
  if (!isClean) await checkHistoryTables(session);
  await Promise.all([
    session.query(limitHistoryLocks(config.lockTimeoutSeconds)),
    ...results.map(async (result) =>
      await recordTableLoad(
        session,
        run.id,
        await representable(warehouse, loadedEntry(result, attempts)),
        await representable(warehouse, integrityCheck(result)),
        result.phases,
        markOf(snapshot, result, isClean),
        await representable(warehouse, result.differingRows),
      )
    ),
  ]);
  return results;
}

/** Returns the state after the load, for the next one. */
function markOf(
  { marks }: Snapshot,
  { table, verified }: TableResult,
  isClean: boolean,
): LastLoad | undefined {
  const mark = marks.get(table.name);
  return mark && { ...mark, verified: isClean ? verified : undefined };
}

/**
 * Runs the declared checks of a loaded table. Returns the result with theirs.
 *
 * @throws {ServiceError} `check_failed`.
 */
async function withChecks(
  { config, onProgress }: RunContext,
  result: TableResult,
  session: Session,
): Promise<TableResult> {
  const { table } = result;
  if (!table.checks?.length) return result;
  const started = performance.now();
  const checks = await runChecks(table, session, config.checkTimeoutSeconds);
  requireAll(table, checks);
  const seconds = (performance.now() - started) / 1000;
  onProgress({ ...progressOf(result), phase: "wait" });
  const phase: PhaseTiming = {
    phase: "check",
    started_after: result.seconds,
    seconds,
  };
  return {
    ...result,
    checks,
    seconds: result.seconds + seconds,
    phases: [...result.phases, phase],
  };
}

/** Returns the progress of a table whose rows are all copied. */
function progressOf(
  { table, targetCount: rows, bytesCopied: bytes }: TableResult,
) {
  return { table: table.name, rows, bytes, totalRows: rows };
}

/** Returns the failure with the session that holds the lock, where a wait for a lock timed out. */
async function nameHolder(
  warehouse: Pool,
  tables: readonly TableDeclaration[],
  error: unknown,
): Promise<unknown> {
  const known = await nameLockedTable(warehouse, error);
  if (!hasCode(known, "target_locked")) return known;
  const table = tables.find(({ name }) => name === known.table);
  const clause = table ? await holderClause(warehouse, table.target) : "";
  return known.with({ reason: known.reason + clause });
}

export function failedGroup(
  tables: CommitGroup,
  cause: unknown,
  attempts: number,
): Failed {
  const error = asServiceError(cause);
  const culprit = tables.find(({ name }) => name === error.table);
  const failures = tables.map(({ name: table }) => {
    const isTakenAlong = culprit && culprit.name !== table;
    const reason = isTakenAlong
      ? new ServiceError(
        "rolled_back",
        `it was rolled back with ${culprit.name}`,
      )
      : error;
    return failedEntry(tables, table, reason.of(table), attempts);
  });
  return { state: "failed", tables, failures, attempts };
}

/** Returns whether the group failed because the source's snapshot ended. */
export function hasLostSnapshot(prepared: Prepared): boolean {
  return prepared.state === "failed" &&
    prepared.failures.some((failure) => failure.code === "snapshot_lost");
}
