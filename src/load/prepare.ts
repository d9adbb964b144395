/**
 * Tables on their way: loaded and verified from one snapshot, not yet visible.
 *
 * @module
 */
import { pooledMap } from "@std/async/pool";
import { Session } from "../postgres/session.ts";
import { asServiceError, ServiceError } from "../errors.ts";
import {
  type FailedEntry,
  failedEntry,
  integrityCheck,
  loadedEntry,
} from "../runs/event.ts";
import { withRetries } from "./retry.ts";
import {
  keepLock,
  type RunContext,
  sourceConnection,
  warehouseConnection,
} from "./run_context.ts";
import { endBackend, lastLoads, recordTableLoad } from "../runs/queue.ts";
import { openSnapshot, type Snapshot } from "../sync/snapshot.ts";
import {
  settleConstraints,
  syncTable,
  type TableResult,
  warehouseTransaction,
} from "../sync/sync_table.ts";
import { type Table, tablesNamed } from "../tables/declaration.ts";
import { ensureTargetSchema } from "../sync/target.ts";

/** Tables that become visible together, in one warehouse transaction. */
export interface Unit {
  readonly tables: readonly Table[];
  /** Loaded and verified, not yet visible; `session` has the transaction open. */
  readonly results: readonly TableResult[];
  readonly session: Session | undefined;
  /** Why the tables are not loaded. */
  readonly failures: readonly FailedEntry[];
  readonly attempts: number;
}

export interface PreparedUnits {
  readonly outcomes: readonly Unit[];
  readonly snapshotAt: string | null;
  /** Prepares a unit again from the same snapshot, with the attempts that are left. */
  readonly again: (unit: Unit) => Promise<Unit>;
  readonly release: () => Promise<void>;
}

/** Opens the snapshot and brings every unit to the point where only its commit is missing. */
export async function prepareFromOneSnapshot(
  context: RunContext,
): Promise<PreparedUnits> {
  const { config } = context.service;
  const tables = tablesNamed(context.run.tables);
  const groups = context.run.atomic ? [tables] : tables.map((table) => [table]);
  let snapshot: Snapshot;
  let attempts = 0;
  try {
    snapshot = await withRetries(context, () => {
      attempts++;
      const isLast = attempts >= config.retryAttempts;
      return openSnapshot(config, sourceConnection(context), tables, isLast);
    });
  } catch (error) {
    const outcomes = groups.map((group) => failedUnit(group, error, attempts));
    const again = (unit: Unit) => Promise.resolve(unit);
    return { outcomes, snapshotAt: null, again, release: async () => {} };
  }
  const prepare = async (group: readonly Table[], before = 0) => {
    // What is wrong with a source table was settled with the snapshot.
    const refusal = group.map(({ name }) => snapshot.tables.get(name))
      .find((shape) => shape instanceof ServiceError);
    return refusal
      ? failedUnit(group, refusal, attempts)
      : await prepareUnit(context, snapshot, group, before);
  };
  return {
    // Results arrive in the order of the groups; a unit never rejects.
    outcomes: await Array.fromAsync(
      pooledMap(config.maxParallelTasks, groups, (group) => prepare(group)),
    ),
    snapshotAt: snapshot.takenAt,
    again: (unit) => prepare(unit.tables, unit.attempts),
    release: async () => await snapshot[Symbol.asyncDispose](),
  };
}

/** Loads and verifies a unit's tables in one transaction, which stays open. */
async function prepareUnit(
  context: RunContext,
  snapshot: Snapshot,
  tables: readonly Table[],
  attemptsBefore: number,
): Promise<Unit> {
  const { service: { config, warehouse }, run, onProgress } = context;
  let attempts = attemptsBefore;
  let lost: Session | undefined;
  const attempt = async (): Promise<Unit> => {
    attempts++;
    await keepLock(context);
    const connection = warehouseConnection(context);
    // Or its backend would keep the table locked until the server misses us.
    if (lost) {
      await endBackend(warehouse, lost.pid, connection.applicationName);
    }
    // Before the session is opened, so that the load needs one connection less.
    await ensureTargetSchema(warehouse);
    const known = await lastLoads(warehouse, run.tables);
    const session = await Session.open(config.dwh, connection);
    lost = session;
    try {
      await session.begin(warehouseTransaction(config));
      const results: TableResult[] = [];
      for (const table of tables) {
        const result = await syncTable(
          {
            config,
            connection,
            snapshot,
            onProgress,
            mode: run.mode,
            recreate: run.recreate,
            isAlone: tables.length === 1,
            lastLoads: known,
          },
          table,
          session,
        );
        await recordTableLoad(
          session,
          run.id,
          loadedEntry(result, attempts),
          integrityCheck(result),
          result.phases,
          snapshot.marks.get(table.name),
        );
        results.push(result);
        onProgress({
          table: table.name,
          phase: "wait",
          rows: result.targetCount,
          bytes: result.bytesCopied,
          totalRows: result.targetCount,
        });
      }
      if (tables.length > 1 && !results.every((r) => r.hasNoSideEffects)) {
        // What hangs on one table may have acted on another one after that was verified.
        await settleConstraints(session);
        for (const result of results) await result.verifyAgain();
      }
      return { tables, results, session, failures: [], attempts };
    } catch (error) {
      // Never a ROLLBACK: the server does that by itself when the connection goes.
      session.destroy();
      throw error;
    }
  };
  try {
    return await withRetries(
      context,
      attempt,
      config.retryAttempts - attemptsBefore,
    );
  } catch (error) {
    return failedUnit(tables, error, attempts);
  }
}

export function failedUnit(
  tables: readonly Table[],
  cause: unknown,
  attempts: number,
): Unit {
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
    return failedEntry(table, reason.of(table), attempts);
  });
  return { tables, results: [], session: undefined, failures, attempts };
}

export function hasLostSnapshot(unit: Unit): boolean {
  return unit.failures.some((failure) => failure.code === "snapshot_lost");
}
