/**
 * Compares source and target as they are now and changes nothing: what
 * `verify` and `load --dry-run` do.
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
  wholeFingerprint,
} from "../diff/find_difference.ts";
import { asServiceError, type ServiceError } from "../errors.ts";
import type { Fingerprint } from "../diff/fingerprint.ts";
import { connectionOf } from "../context.ts";
import { openSnapshot, type Snapshot } from "./snapshot.ts";
import {
  bothSides,
  forTable,
  sidesOf,
  warehouseTransaction,
  warningsOf,
} from "./sync_table.ts";
import {
  type Table,
  type TableName,
  tablesNamed,
} from "../tables/declaration.ts";
import { checkTarget, findTarget, type FoundTarget } from "./target.ts";

/** What comparing one table found. */
export interface Comparison {
  readonly source: Fingerprint;
  /** `null` where the target does not exist, or has another shape and is to be made anew. */
  readonly target: Fingerprint | null;
  readonly plan: Plan;
  /** Rows that a load would copy. */
  readonly rowsToCopy: number;
}

/** What comparing one table gave. */
export type ComparisonOutcome<T = Comparison> =
  | { readonly table: TableName; readonly comparison: T }
  | { readonly table: TableName; readonly error: ServiceError };

/** Compares one table; the warehouse's session has a read-only transaction open. */
export type CompareTable<T> = (
  snapshot: Snapshot,
  table: Table,
  warehouse: Session,
) => Promise<T>;

/**
 * Compares the tables, all from one snapshot of the source and each in a
 * read-only transaction of the warehouse, without locks that hold anybody off.
 *
 * @throws {ServiceError} when a database cannot be reached.
 */
export async function compareTables<T = Comparison>(
  config: Config,
  names: readonly TableName[],
  signal?: AbortSignal,
  compare = compareTable as CompareTable<T>,
): Promise<readonly ComparisonOutcome<T>[]> {
  const tables = tablesNamed(names);
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
export interface LoadToPlan {
  readonly mode: "auto" | "full";
  readonly recreate: boolean;
}

/** Compares as a load would that does what is asked: one that is full, or makes the tables anew, copies every row. */
export function comparedForLoad(load: LoadToPlan): CompareTable<Comparison> {
  return (...parts) => compareTable(...parts, load);
}

/** Compares one table by content. */
export async function compareTable(
  snapshot: Snapshot,
  table: Table,
  warehouse: Session,
  { mode, recreate }: LoadToPlan = { mode: "auto", recreate: false },
): Promise<Comparison> {
  warningsOf(snapshot, table);
  try {
    const [source, found] = await bothSides(
      snapshot.openReader(table),
      findTarget(table, warehouse),
    );
    using _ = source;
    const target = { ...found, relation: qualified(table.target) };
    const sides = sidesOf(table, snapshot, source, warehouse, target);
    if (!found.exists || recreate && hasOtherShape(table, found)) {
      const wanted = await wholeFingerprint(sides.source, sides);
      return copyingAll(wanted, null);
    }
    checkTarget(table, found);
    if (mode === "full" || recreate) {
      const [wanted, present] = await Promise.all([
        wholeFingerprint(sides.source, sides),
        wholeFingerprint(sides.target, sides),
      ]);
      return copyingAll(wanted, present);
    }
    const { plan, wanted, present } = await compareContent(sides);
    const rowsToCopy = plan.mode === "delta"
      ? plan.selection.rows
      : plan.mode === "full"
      ? wanted.count
      : 0;
    return { source: wanted, target: present, plan, rowsToCopy };
  } catch (error) {
    throw forTable(error, table, warehouse);
  }
}

function copyingAll(
  source: Fingerprint,
  target: Fingerprint | null,
): Comparison {
  return { source, target, plan: { mode: "full" }, rowsToCopy: source.count };
}

/** Whether only a table that is made anew in its place could take the rows. */
function hasOtherShape(table: Table, found: FoundTarget): boolean {
  try {
    checkTarget(table, found);
    return false;
  } catch (error) {
    const isTable = found.kind === "r" || found.kind === "p";
    if (isTable && asServiceError(error).code === "target_incompatible") {
      return true;
    }
    throw error;
  }
}
