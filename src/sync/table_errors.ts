/**
 * Gives errors of a load the name of their table, and codes that fit the phase.
 *
 * @module
 */
import {
  type ErrorCode,
  hasCode,
  hasSqlstate,
  ServiceError,
} from "../errors.ts";
import { GONE } from "../postgres/errors.ts";
import type { Session } from "../postgres/session.ts";
import {
  formatRelation,
  type TableDeclaration,
} from "../tables/declaration.ts";

/** Returns a failure of a table. It has the remedy of its code, unless `remedy` is given. */
export function tableError(
  table: string,
  code: ErrorCode,
  reason: string,
  remedy?: string,
): ServiceError {
  return new ServiceError(code, reason, { table, remedy });
}

/** Returns the failure of a read in a snapshot that is no longer usable for the table. */
export function snapshotLost(
  { name: table }: TableDeclaration,
  reason: string,
  cause?: ServiceError,
): ServiceError {
  return new ServiceError(
    "snapshot_lost",
    `the source's snapshot ended, or DDL changed the table (${reason})`,
    { table, cause, sqlstate: cause?.sqlstate },
  );
}

/** Returns whether the session is lost or unreachable. */
export function isLost(error: unknown): error is ServiceError {
  return hasCode(error, "connection_lost", "stalled");
}

/** Returns whether the source's table is missing under its name. Its schema may have been renamed. */
export function isGoneInSource(error: unknown, warehouse: Session): boolean {
  return hasSqlstate(error, ...GONE) && !isFrom(warehouse, error);
}

function isFrom({ config }: Session, { server }: ServiceError): boolean {
  return server === config.label;
}

/** Returns the error with the table's name, and with a code that fits the phase. */
export function forTable(
  error: unknown,
  table: TableDeclaration,
  warehouse: Session,
  isLocked = false,
): ServiceError {
  if (!(error instanceof ServiceError)) throw error;
  if (error.table) return error;
  const name = formatRelation(table.target);
  const isTarget = isFrom(warehouse, error);
  const details = {
    table: table.name,
    cause: error,
    sqlstate: error.sqlstate,
  };
  if (error.sqlstate === "55P03" && isTarget && isLocked) {
    return new ServiceError(
      "target_locked",
      `a trigger or foreign key of ${name} waits for a lock of another session (${error.message})`,
      {
        ...details,
        remedy:
          "If it writes to another loaded table, set LOAD_ATOMIC=true: one transaction does not wait for itself. Otherwise find the lock in pg_locks, or raise LOCK_TIMEOUT.",
      },
    );
  }
  if (error.sqlstate === "55P03" && isTarget) {
    return new ServiceError(
      "target_locked",
      `${name} in the warehouse is locked by another session`,
      details,
    );
  }
  // XX000 ends a wait for a lock when the table is dropped. Under the lock, these
  // codes mean something else, such as a file that must not grow.
  if (isTarget && !isLocked && hasSqlstate(error, ...GONE, "XX000")) {
    return new ServiceError(
      "target_dropped",
      `${name} was dropped during the load (${error.message})`,
      details,
    );
  }
  if (!isTarget && error.sqlstate === "22021") {
    return new ServiceError(
      "value_invalid",
      `${
        formatRelation(table.source)
      } contains invalid UTF-8 (${error.message})`,
      {
        ...details,
        remedy:
          "Correct the texts in the source. A SQL_ASCII database accepts any bytes, but only UTF-8 can be loaded.",
      },
    );
  }
  if (isTarget && error.sqlstate === "22P05") {
    return new ServiceError(
      "value_invalid",
      `the warehouse encoding ${warehouse.serverEncoding} cannot represent a character (${error.message})`,
      {
        ...details,
        remedy:
          "Load into a database of encoding UTF8, or correct the text in the source.",
      },
    );
  }
  return error.of(table.name);
}
