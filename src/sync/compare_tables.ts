/**
 * Compares source and target and changes nothing, for `verify` and
 * `load --dry-run`.
 *
 * @module
 */
import { pooledMap } from "@std/async/pool";
import type { Config } from "../config/config.ts";
import { Session } from "../postgres/session.ts";
import { qualified } from "../postgres/sql.ts";
import {
  compareContent,
  type Plan,
  selectionOf,
  type Side,
  type Sides,
  wholeFingerprint,
} from "../diff/find_difference.ts";
import type { DifferingRows } from "../diff/differing_rows.ts";
import { asServiceError, type ServiceError } from "../errors.ts";
import type { Fingerprint } from "../diff/fingerprint.ts";
import { connectionOf } from "../context.ts";
import { type CheckResult, nullsSql, runChecks } from "./checks.ts";
import { checkMayAddColumns, withoutNewColumns } from "./new_columns.ts";
import { checkShrink, type ShrinkLimit } from "./shrink_guard.ts";
import { openSnapshot, resolvedIn, type Snapshot } from "./snapshot.ts";
import { bothSides, sidesOf } from "./sides.ts";
import { warehouseTransaction } from "./sync_table.ts";
import { forTable, tableError } from "./table_errors.ts";
import {
  formatRelation,
  type Table,
  type TableDeclaration,
} from "../tables/declaration.ts";
import {
  checkDeletable,
  checkReplacing,
  checkTarget,
  checkWritable,
} from "./check_target.ts";
import { findTarget, type FoundTarget } from "./find_target.ts";
import { checkCreatable } from "./target.ts";
import { checkKey } from "./update_in_place.ts";
import { checkLayout } from "./warehouse_types.ts";

/** The result of comparing one table. */
interface Comparison {
  readonly source: Fingerprint;
  /** `null` where the target does not exist, or is replaced because its columns differ. */
  readonly target: Fingerprint | null;
  readonly plan: Plan;
  /** Rows that a load would copy. */
  readonly rowsToCopy: number;
  /** The rows that differ, where they were requested and the target exists. */
  readonly rows?: DifferingRows;
  /** The results of the declared checks, where they were run. */
  readonly checks?: readonly CheckResult[];
}

/** The outcome of comparing one table. */
export type ComparisonOutcome<T = Comparison> =
  | { readonly table: string; readonly comparison: T }
  | { readonly table: string; readonly error: ServiceError };

/** Compares one table. The warehouse session has a read-only transaction open. */
type CompareTable<T> = (
  snapshot: Snapshot,
  table: TableDeclaration,
  warehouse: Session,
) => Promise<T>;

/**
 * Compares the tables with one snapshot of the source. Each has a read-only
 * transaction of the warehouse, without locks that block others.
 *
 * @throws {ServiceError} when a database cannot be reached.
 */
export async function compareTables<T>(
  config: Config,
  tables: readonly TableDeclaration[],
  signal: AbortSignal | undefined,
  compare: CompareTable<T>,
): Promise<readonly ComparisonOutcome<T>[]> {
  const connection = connectionOf(config, "compare", signal);
  await using snapshot = await openSnapshot(config, connection, tables);
  return await Array.fromAsync(
    pooledMap(
      config.maxParallelTasks,
      tables,
      async (table): Promise<ComparisonOutcome<T>> => {
        try {
          await using warehouse = await Session.open(config.dwh, connection);
          await warehouse.begin({
            ...warehouseTransaction(config),
            mode: "repeatable read read only",
          });
          const comparison = await compare(snapshot, table, warehouse);
          await snapshot.confirm(table);
          return { table: table.name, comparison };
        } catch (error) {
          return { table: table.name, error: asServiceError(error) };
        }
      },
    ),
  );
}

/** Options of the load that a dry run plans. */
interface LoadToPlan extends ShrinkLimit {
  readonly mode: "auto" | "full";
  readonly recreate: boolean;
}

/** The maximum number of values that a comparison reads from each side to name rows. */
const MAX_NAMED_VALUES = 100_000;

interface CompareOptions {
  /** The load that a dry run plans. A full load, and one that recreates tables, copies every row. */
  readonly load?: LoadToPlan;
  /** Maximum number of rows to name for each table. */
  readonly rows?: number | undefined;
  /** Limit of each declared check. Without it, no check is run. */
  readonly checkTimeoutSeconds?: number;
}

/** Returns a comparison with these options. */
export function comparedWith(
  options: CompareOptions,
): CompareTable<Comparison> {
  return (...parts) => compareTable(...parts, options);
}

/**
 * Compares one table by content. With `load`, it also fails where that load
 * would fail because of the target.
 */
export async function compareTable(
  snapshot: Snapshot,
  declaration: TableDeclaration,
  warehouse: Session,
  { load, rows, checkTimeoutSeconds }: CompareOptions = {},
): Promise<Comparison> {
  const { table: resolved } = resolvedIn(snapshot, declaration);
  const isReplaced = load?.recreate ?? false;
  try {
    const [source, found] = await bothSides(
      snapshot.openReader(declaration),
      findTarget(declaration, warehouse),
    );
    using _ = source;
    const { table } = found.exists && !isReplaced
      ? withoutNewColumns(resolved, found)
      : { table: resolved };
    const target = { ...found, relation: qualified(table.target) };
    const sides = sidesOf(table, snapshot, source, warehouse, target);
    if (load && (isReplaced || !found.exists)) {
      await checkCreatable(table, warehouse, found);
    }
    if (!found.exists || isReplaced && !isComparable(table, found)) {
      const source = await wholeFingerprint(sides.source, sides);
      if (load && found.exists) await checkShrink(load, sides, { source });
      return copyingAll(source, null);
    }
    checkTarget(table, found);
    await checkLayout(table, warehouse, target.relation);
    if (load && !isReplaced) {
      checkWritable(table, found, warehouse);
      checkMayAddColumns(resolved, found);
    }
    if (load) await checkKey(sides);
    const maxValues = MAX_NAMED_VALUES / snapshot.tables.size;
    const maxRows = rows &&
      Math.min(rows, Math.ceil(maxValues / table.columns.length));
    const compared = await compareSides(sides, load, maxRows);
    if (load) await checkShrink(load, sides, compared);
    if (load && !isReplaced && compared.plan.mode !== "unchanged") {
      checkDeletable(table, found);
      const { plan } = compared;
      const selected = plan.mode === "delta"
        ? selectionOf(sides, plan.difference).target
        : undefined;
      await checkReplacing(warehouse, { ...target, table }, selected);
      await checkNulls(sides.source, table, found);
    }
    if (!checkTimeoutSeconds || !table.checks?.length) return compared;
    const checks = await runChecks(table, warehouse, checkTimeoutSeconds);
    return { ...compared, checks };
  } catch (error) {
    throw forTable(snapshot.explain(error), declaration, warehouse);
  }
}

async function compareSides(
  sides: Sides,
  load: LoadToPlan | undefined,
  maxRows: number | undefined,
): Promise<Comparison> {
  const copiesAll = load?.mode === "full" || load?.recreate;
  if (copiesAll && !maxRows) {
    const [source, target] = await Promise.all([
      wholeFingerprint(sides.source, sides),
      wholeFingerprint(sides.target, sides),
    ]);
    return copyingAll(source, target);
  }
  const compared = await compareContent(sides);
  const { plan, source, target } = compared;
  const rowsToCopy = plan.mode === "delta"
    ? plan.difference.source.count
    : plan.mode === "full"
    ? source.count
    : 0;
  const planned = copiesAll
    ? copyingAll(source, target)
    : { source, target, plan, rowsToCopy };
  if (!maxRows) return planned;
  const { findDifferingRows } = await import("../diff/differing_rows.ts");
  const rows = await findDifferingRows(sides, compared, maxRows);
  return { ...planned, rows };
}

/**
 * Checks that the source has no NULL where the target requires a value.
 *
 * @throws {ServiceError} `constraint_violated`, naming the column.
 */
async function checkNulls(
  { session, relation }: Side,
  table: Table,
  found: FoundTarget,
): Promise<void> {
  const columns = found.columns.filter(({ isNotNull }) => isNotNull)
    .map(({ name }) => name);
  if (columns.length === 0) return;
  const [row] = await session.query(nullsSql(relation, columns));
  const column = columns.find((_, i) => row![`n${i}`] !== "0");
  if (column === undefined) return;
  const name = formatRelation(table.target);
  throw tableError(
    table.name,
    "constraint_violated",
    `column "${column}" of ${name} in the warehouse is NOT NULL, and the source has NULL values`,
  );
}

function copyingAll(
  source: Fingerprint,
  target: Fingerprint | null,
): Comparison {
  return { source, target, plan: { mode: "full" }, rowsToCopy: source.count };
}

/** Returns whether the rows of a table that will be replaced can be compared. */
function isComparable(table: Table, found: FoundTarget): boolean {
  try {
    checkTarget(table, found);
    return true;
  } catch {
    return false;
  }
}
