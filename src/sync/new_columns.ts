/**
 * Columns that the source has and the target lacks, where the declaration asks for
 * every column of the source.
 *
 * @module
 */
import { hasSqlstate } from "../errors.ts";
import type { Session } from "../postgres/session.ts";
import { identifier, qualified } from "../postgres/sql.ts";
import { formatTypeName } from "../tables/column_types.ts";
import {
  type Column,
  formatRelation,
  type Table,
} from "../tables/declaration.ts";
import type { FoundTarget } from "./find_target.ts";
import { withWarehouseTypes } from "./warehouse_types.ts";
import { tableError } from "./table_errors.ts";

type TargetColumns = Pick<FoundTarget, "columns">;

/** The table with the columns that its target has, and warnings about the others. */
interface FittedTable {
  readonly table: Table;
  readonly warnings: readonly string[];
  /** Whether the target has columns that it lacked. */
  readonly hasAdded: boolean;
}

function newColumnsOf(table: Table, found: TargetColumns): readonly Column[] {
  return table.newColumns === undefined ? [] : table.columns.filter(
    ({ name }) => !found.columns.some((column) => column.name === name),
  );
}

/**
 * Returns the table without the columns that the target lacks.
 *
 * @throws {ServiceError} `target_incompatible` where new columns are a failure.
 */
export function withoutNewColumns(
  table: Table,
  found: TargetColumns,
): FittedTable {
  const added = newColumnsOf(table, found);
  if (added.length === 0) return { table, warnings: [], hasAdded: false };
  const listed = added.map(({ name }) => `"${name}"`).join(", ");
  const fitted = without(
    added,
    table,
    `the target lacks columns of the source, so they are not loaded: ${listed}`,
  );
  const hasKey = !added.some(({ name }) => table.key?.includes(name));
  if (
    table.newColumns === "fail" || fitted.table.columns.length === 0 || !hasKey
  ) {
    throw tableError(
      table.name,
      "target_incompatible",
      `the source has columns that ${
        formatRelation(table.target)
      } in the warehouse lacks: ${listed}`,
      "Add them to the target, set new_columns to add, or list the wanted columns in TABLES_FILE.",
    );
  }
  return fitted;
}

function without(
  omitted: readonly Column[],
  table: Table,
  warning: string,
): FittedTable {
  const columns = table.columns.filter((column) => !omitted.includes(column));
  return { table: { ...table, columns }, warnings: [warning], hasAdded: false };
}

/**
 * Checks that the role can add the columns that the target lacks.
 *
 * @throws {ServiceError} `permission_denied`.
 */
export function checkMayAddColumns(table: Table, found: FoundTarget): void {
  const added = newColumnsOf(table, found);
  if (table.newColumns !== "add" || added.length === 0 || found.isOwned) return;
  const role = identifier(found.role);
  throw tableError(
    table.name,
    "permission_denied",
    `role ${role} is not an owner of ${
      formatRelation(table.target)
    } in the warehouse, and only an owner can add columns: ${
      added.map(({ name }) => `"${name}"`).join(", ")
    }`,
    `Run ALTER TABLE ${
      qualified(table.target)
    } OWNER TO ${role};, add the columns yourself, or set new_columns to ignore.`,
  );
}

/** Maximum wait for the lock of adding columns, in milliseconds. New readers wait behind it. */
const LOCK_MILLISECONDS = 200;

/**
 * Adds the columns that the target lacks, in the open transaction. Where another
 * session uses the target, leaves them out: waiting would block new readers.
 *
 * @throws {ServiceError} without the privilege to change the table.
 */
export async function addNewColumns(
  table: Table,
  warehouse: Session,
  found: TargetColumns,
): Promise<FittedTable> {
  const added = newColumnsOf(table, found);
  if (added.length === 0) return { table, warnings: [], hasAdded: false };
  const { columns } = await withWarehouseTypes(
    { ...table, columns: added },
    warehouse,
  );
  const listed = added.map(({ name }) => `"${name}"`).join(", ");
  await warehouse.query("savepoint new_columns");
  try {
    await warehouse.query(
      `set local lock_timeout = ${LOCK_MILLISECONDS};
       alter table ${qualified(table.target)} ${
        columns.map(({ name, type }) =>
          `add column ${identifier(name)} ${formatTypeName(type)}`
        )
      }`,
    );
  } catch (error) {
    const isNeeded = added.some(({ name }) => table.key?.includes(name));
    if (isNeeded || !hasSqlstate(error, "55P03")) throw error;
    await warehouse.query(
      "rollback to savepoint new_columns; release savepoint new_columns",
    );
    return without(
      added,
      table,
      `columns ${listed} are not added, because another session uses the target. A later load adds them`,
    );
  }
  await warehouse.query("release savepoint new_columns");
  await warehouse.restoreSettings();
  const warnings = [`added columns ${listed} to the target`];
  return { table, warnings, hasAdded: true };
}
