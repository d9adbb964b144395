/**
 * Makes one table equal to its source: lock, compare, apply, verify. The caller
 * commits.
 *
 * @module
 */
import type { Config } from "../config/config.ts";
import { findLockHolders } from "../postgres/lock_holders.ts";
import { beginLocked } from "../postgres/locked_transaction.ts";
import type { Session } from "../postgres/session.ts";
import { qualified } from "../postgres/sql.ts";
import { compareContent, type Sides } from "../diff/find_difference.ts";
import type { DifferingRows } from "../diff/differing_rows.ts";
import { ServiceError } from "../errors.ts";
import type { PlanMode } from "../diff/fingerprint.ts";
import type { CheckResult } from "./checks.ts";
import type { PhaseClock, PhaseTiming } from "./progress.ts";
import { resolvedIn, type Snapshot, type SourceWatermark } from "./snapshot.ts";
import type { Table, TableDeclaration } from "../tables/declaration.ts";
import { checkShrink } from "./shrink_guard.ts";
import { settleConstraints } from "./constraints.ts";
import { checkHeld, countAs, heldAfterDelta, measure } from "./measure.ts";
import { bothSides, fetchingByCtid, sidesOf } from "./sides.ts";
import { forTable, isGoneInSource } from "./table_errors.ts";
import type { Target } from "./find_target.ts";
import {
  confirmTarget,
  lockTarget,
  lockTargetSql,
  putInPlace,
} from "./target.ts";
import { checkKey } from "./update_in_place.ts";
import { type Proof, prove } from "./proof.ts";
import {
  presentFacts,
  type VerifiedState,
  verifiedState,
  writtenBy,
} from "./verified_state.ts";
import { type Applied, applyPlan, type Decided } from "./apply_plan.ts";

/** The surroundings of a table's load. */
interface SyncContext {
  readonly config: Config;
  readonly snapshot: Snapshot;
  readonly mode: "auto" | "full";
  /** Whether the target is dropped and created again. */
  readonly recreate: boolean;
  /** Whether the load may remove any number of rows. */
  readonly allowShrink: boolean;
  /** Whether the transaction loads no other table. Deferred constraints then fire before the table is verified. */
  readonly isAlone: boolean;
  /** The last load of each table, where it is known. */
  readonly lastLoads: ReadonlyMap<string, LastLoad>;
}

/** The state after a load of a table, for the next one. */
export interface LastLoad extends SourceWatermark {
  readonly verified?: VerifiedState | undefined;
}

/** A table that holds the source's rows, verified, in an open transaction. */
export interface TableResult {
  readonly table: Table;
  readonly mode: PlanMode;
  /** Rows in the source's snapshot, and in the target: equal, or the load would have failed. */
  readonly sourceCount: number;
  readonly targetCount: number;
  readonly rowsInserted: number;
  readonly rowsDeleted: number;
  readonly bytesCopied: number;
  /** Sum of the row hashes; `null` when only the counts were compared. */
  readonly checksum: string | null;
  readonly warnings: readonly string[];
  /** The results of the declared checks, which run later. */
  readonly checks: readonly CheckResult[];
  readonly seconds: number;
  readonly phases: readonly PhaseTiming[];
  /** The first rows of a delta, where they are shown. */
  readonly differingRows: DifferingRows | undefined;
  /** Whether writing to the target calls no function of others. */
  readonly hasNoSideEffects: boolean;
  /** The OID of the target. */
  readonly oid: number;
  /** The state of both sides, where the next load can use it. */
  readonly verified: VerifiedState | undefined;
  /**
   * Compares all of the target with the snapshot again.
   *
   * @throws {ServiceError} `verification_failed`.
   */
  readonly verifyAgain: () => Promise<void>;
}

/** Returns the settings of the warehouse's transaction. */
export function warehouseTransaction(config: Config) {
  return {
    mode: "read committed",
    timezone: config.loadTimezone,
    lockTimeoutSeconds: config.lockTimeoutSeconds,
  } as const;
}

/**
 * Begins the transaction of a load with the locks of its targets. Where one cannot
 * be locked, as where it does not exist, begins without locks: {@linkcode syncTable}
 * creates it or reports the reason.
 *
 * @throws {ServiceError} `target_locked`.
 */
export async function beginWithLocks(
  tables: readonly TableDeclaration[],
  warehouse: Session,
  config: Config,
): Promise<void> {
  const options = warehouseTransaction(config);
  try {
    await beginLocked(warehouse, options, tables.map(lockTargetSql));
  } catch (error) {
    if (!(error instanceof ServiceError) || warehouse.failure) throw error;
    await warehouse.query("rollback");
    await warehouse.begin(options);
    if (error.code !== "serialization") return;
    const holders = await Promise.all(
      tables.map(({ target }) => findLockHolders(warehouse, target)),
    );
    const locked = tables.find((_, index) => holders[index]!.length > 0);
    throw forTable(error, locked ?? tables[0]!, warehouse);
  }
}

/**
 * Makes the target equal to the snapshot, in the transaction that `warehouse`
 * has open, and verifies it there.
 *
 * @throws {ServiceError} with the table's name. The caller then destroys `warehouse`.
 */
export async function syncTable(
  context: SyncContext,
  declaration: TableDeclaration,
  warehouse: Session,
  clock: PhaseClock,
): Promise<TableResult> {
  const { snapshot, recreate } = context;
  const resolved = resolvedIn(snapshot, declaration);
  let isLocked = false;
  try {
    const [source, target] = await bothSides(
      snapshot.openReader(declaration),
      lockTarget(resolved.table, warehouse, recreate),
    );
    let isDone = false;
    using _ = {
      [Symbol.dispose]: () =>
        isDone ? snapshot.release(source) : void source.close(),
    };
    isLocked = true;
    const { table } = target;

    clock.enter("compare");
    const { sides, compared, stateAfter } = await prepareComparison(
      context,
      sidesOf(table, snapshot, source, warehouse, target),
      target,
    );
    await guard(context, sides, target, compared);
    const differingRows = await findRows(context, sides, compared);
    const write = () =>
      applyPlan(sides, target, compared, clock, context.config.verify);
    const applied = compared.plan.mode === "delta"
      ? await fetchingByCtid(sides, write)
      : await write();
    isDone = true;

    clock.enter("verify");
    await snapshot.confirm(table);
    const verified = await verify(context, sides, target, compared, applied);
    await confirmTarget(table, warehouse, target);
    const placed = recreate
      ? await putInPlace(table, warehouse, target)
      : target;
    const verifyAgain = async () => {
      const side = { ...sides.target, relation: placed.relation };
      const held = await measure(context, side, sides);
      checkHeld(context, sides, placed, held, applied.source);
    };
    if (recreate && !placed.hasNoSideEffects && context.isAlone) {
      await settleConstraints(warehouse);
      await verifyAgain();
    }
    return {
      table,
      mode: compared.plan.mode,
      ...verified,
      verified: stateAfter(verified, applied.xid),
      hasNoSideEffects: placed.hasNoSideEffects,
      oid: target.oid,
      async verifyAgain() {
        try {
          await verifyAgain();
        } catch (error) {
          throw forTable(error, table, warehouse, true);
        }
      },
      rowsInserted: applied.rowsInserted,
      rowsDeleted: applied.rowsDeleted,
      bytesCopied: applied.bytesCopied,
      differingRows,
      warnings: [
        ...resolved.warnings,
        ...target.warnings,
        ...(sides.method.kind === "text"
          ? [
            "the servers hash rows differently, so a slower text hash was compared",
          ]
          : []),
      ],
      checks: [],
      ...clock.stop(),
    };
  } catch (error) {
    if (isGoneInSource(error, warehouse)) await snapshot.confirm(declaration);
    throw forTable(
      snapshot.explain(error),
      declaration,
      warehouse,
      isLocked,
    );
  }
}

/**
 * Decides on the plan: by the row versions where that is a proof, and otherwise by the
 * content. `stateAfter` returns the state for the next load.
 */
async function prepareComparison(
  context: SyncContext,
  unproven: Sides,
  target: Target,
): Promise<{
  readonly sides: Sides;
  readonly compared: Decided;
  readonly stateAfter: (
    verified: Verified,
    xid: string | null | undefined,
  ) => VerifiedState | undefined;
}> {
  const { config, snapshot, mode, recreate, lastLoads } = context;
  const { name } = unproven.table;
  const facts = snapshot.facts.get(name);
  const present = facts && !recreate && config.verify === "content"
    ? await presentFacts(
      unproven,
      { facts, horizon: snapshot.horizon },
      target,
      config.loadTimezone,
    )
    : undefined;
  const last = lastLoads.get(name);
  const mark = snapshot.marks.get(name);
  const proof: Proof = present && last?.verified && mode === "auto"
    ? await prove(
      unproven,
      present,
      last.verified,
      Number(mark?.removals) - Number(last.removals),
    )
    : { xids: [] };
  const { sides = unproven, xids } = proof;
  // The key of the same rows was checked before.
  if (proof.compared?.plan.mode !== "unchanged") await checkKey(sides);
  const compared = proof.compared ??
    await compare(context, sides, target, proof.isChanged);
  return {
    sides,
    compared,
    stateAfter: ({ targetCount: count, checksum }, xid) =>
      present && checksum !== null
        ? verifiedState(
          present,
          sides,
          { count, checksum },
          last?.verified,
          xids,
          compared.plan.mode === "unchanged" ? [] : [writtenBy(present, xid)],
        )
        : undefined,
  };
}

/** Returns the plan. A full load needs no comparison. */
async function compare(
  context: SyncContext,
  sides: Sides,
  target: Target,
  isChanged = expectsDifference(context, sides.table),
): Promise<Decided> {
  return target.isNew || context.mode === "full"
    ? { plan: { mode: "full" } }
    : await compareContent(sides, isChanged);
}

/** Maximum number of rows of a load that are stored, and of characters of their JSON. */
const MAX_STORED_ROWS = 20;
const MAX_STORED_LENGTH = 16_384;

/** Returns the first rows of a delta that are named by a key, with SHOW_ROWS. */
async function findRows(
  { config }: SyncContext,
  sides: Sides,
  { plan, source, target }: Decided,
): Promise<DifferingRows | undefined> {
  const isShown = config.showRows && sides.table.key && plan.mode === "delta";
  if (!isShown || !source || !target) return undefined;
  const { findDifferingRows } = await import("../diff/differing_rows.ts");
  const compared = { plan, source, target };
  const found = await findDifferingRows(sides, compared, MAX_STORED_ROWS);
  const rows = [...found.rows];
  while (JSON.stringify(rows).length > MAX_STORED_LENGTH) rows.pop();
  return found.named_by === "key" ? { ...found, rows } : undefined;
}

/** Returns whether the source counts other changes than at the last load. The count lags behind. */
function expectsDifference(
  { snapshot, lastLoads }: SyncContext,
  { name }: Table,
): boolean {
  const last = lastLoads.get(name);
  return last !== undefined &&
    last.changes !== snapshot.marks.get(name)?.changes;
}

/**
 * Checks the number of rows of the table that the load changes or replaces.
 *
 * @throws {ServiceError} `would_shrink`.
 */
async function guard(
  { config: { maxShrink }, allowShrink }: SyncContext,
  sides: Sides,
  { isNew, relation }: Target,
  known: Decided,
): Promise<void> {
  const present = qualified(sides.table.target);
  if (isNew && relation === present) return;
  const target = { ...sides.target, relation: present };
  await checkShrink({ allowShrink, maxShrink }, { ...sides, target }, known);
}

/** The result of the verification. */
type Verified = Pick<TableResult, "sourceCount" | "targetCount" | "checksum">;

/**
 * Compares the uncommitted target with the snapshot.
 *
 * @throws {ServiceError} `verification_failed`.
 */
async function verify(
  context: SyncContext,
  sides: Sides,
  target: Target,
  { plan, target: before }: Decided,
  applied: Applied,
): Promise<Verified> {
  const { source, deleted, rowsInserted, rowsDeleted, rowsBefore } = applied;
  if (plan.mode === "unchanged") {
    // The comparison is the verification.
    const { count, checksum } = source;
    return { sourceCount: count, targetCount: count, checksum };
  }
  if (context.isAlone && !target.hasNoSideEffects) {
    await settleConstraints(sides.target.session);
  }
  const byContent = context.config.verify === "content";
  const held = !byContent && target.hasNoSideEffects
    // Nothing else changes the rows, so the counts of the server are exact.
    ? countAs((before?.count ?? rowsBefore!) - rowsDeleted + rowsInserted)
    : (byContent && before && deleted &&
      await heldAfterDelta(sides, before, deleted, applied.appended)) ||
      await measure(context, sides.target, sides);
  checkHeld(context, sides, target, held, source);
  return {
    sourceCount: source.count,
    targetCount: held.count,
    checksum: byContent ? held.checksum : null,
  };
}
