/**
 * Compares source and target as they are now and changes nothing: what
 * `verify` and `load --dry-run` do.
 *
 * @module
 */
import { pooledMap } from "@std/async/pool";
import type { Config } from "./config.ts";
import { Session } from "./db.ts";
import { asServiceError, type ServiceError } from "./errors.ts";
import { connectionOf } from "./load.ts";
import { openSnapshot } from "./snapshot.ts";
import {
  compareTable,
  type Comparison,
  type TableLoadContext,
  warehouseTransaction,
} from "./table_load.ts";
import { type Table, type TableName, tablesNamed } from "./tables.ts";

/** What comparing one table gave. */
export type ComparisonOutcome<T = Comparison> =
  | { readonly table: TableName; readonly comparison: T }
  | { readonly table: TableName; readonly error: ServiceError };

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
  compare = compareTable as (
    context: TableLoadContext,
    table: Table,
    warehouse: Session,
  ) => Promise<T>,
): Promise<readonly ComparisonOutcome<T>[]> {
  const tables = tablesNamed(names);
  const connection = connectionOf(config, "compare", signal);
  await using snapshot = await openSnapshot(config, connection, tables);
  const context = {
    config,
    connection,
    snapshot,
    mode: "auto",
    recreate: false,
    lastLoads: new Map<string, never>(),
    onProgress: () => {},
  } as const;
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
          return {
            table: table.name,
            comparison: await compare(context, table, warehouse),
          };
        } catch (error) {
          return { table: table.name, error: asServiceError(error) };
        }
      },
    ),
  );
}
