/**
 * The error table: every failure of the service, with its HTTP status, exit code
 * and remedy. Nothing else decides on a status or an exit code.
 */
import { printable } from "./format.ts";

type Exit = 1 | 64 | 69 | 74 | 75 | 78 | 143;
type Status = 400 | 401 | 403 | 404 | 405 | 408 | 413 | 500 | 503;

/** A kind of failure, as callers see it. */
export interface ErrorKind {
  /** Exit code of the command line. */
  readonly exit: Exit;
  /** Status of an HTTP answer. */
  readonly status: Status;
  /** Whether a later attempt may succeed without a change. */
  readonly transient: boolean;
  /** Imperative sentences, at most three. */
  readonly remedy: string;
}

/** Returns a function that makes kinds of failure from their remedies. */
function kind(exit: Exit, status: Status, transient = false) {
  return (remedy: string): ErrorKind => ({ exit, status, transient, remedy });
}

/** Failures of a load. */
const failure = kind(1, 500);
const transient = kind(1, 500, true);

/** Failures of a connection. */
const refused = kind(69, 503);
const unavailable = kind(69, 503, true);

const misconfigured = kind(78, 500);

/** All kinds of failure by code. A code is stored and published verbatim. */
export const ERRORS = {
  usage: kind(64, 400)("See --help."),
  configuration: misconfigured(
    "Correct the named variables or files.",
  ),
  not_found: kind(1, 404)("See GET / for the endpoints."),
  method_not_allowed: kind(1, 405)("See the Allow header."),
  unauthorized: kind(1, 401)(
    "Send the header `Authorization: Bearer` with the token of API_TOKEN.",
  ),
  cross_origin: kind(1, 403)(
    "Use the service's own pages, or a program that sends neither Origin nor Sec-Fetch-Site. Behind a proxy, set PUBLIC_URL to its URL.",
  ),
  foreign_host: kind(1, 403)(
    "Use localhost or 127.0.0.1. To serve under another name, as behind a proxy, set PUBLIC_URL or API_TOKEN.",
  ),
  body_too_large: kind(1, 413)("Send at most 64 KiB."),
  body_too_slow: kind(1, 408)("Send the body without pauses."),
  connection_failed: unavailable(
    "Check that the server is up and that host and port (*_DB_HOST, *_DB_PORT) are right.",
  ),
  authentication_failed: refused(
    "Check user and password (*_DB_USER, *_DB_PASSWORD or *_DB_PASSWORD_FILE) and the server's pg_hba.conf.",
  ),
  tls_failed: refused(
    "Check *_DB_SSLMODE and *_DB_SSLROOTCERT against the server's certificate, and *_DB_SSLCERT and *_DB_SSLKEY.",
  ),
  database_missing: refused("Check the database's name (*_DB_NAME)."),
  connection_forbidden: refused("Allow the role to connect to the database."),
  read_only: unavailable(
    "Point DWH_DB_HOST at the primary, or turn default_transaction_read_only off.",
  ),
  too_many_connections: unavailable(
    "Raise the connection limit that is reached, or close other connections.",
  ),
  server_too_old: misconfigured("Use PostgreSQL 14 or newer."),
  connection_lost: transient(
    "Look for a restart of the server, a terminated backend, or a long pause of this process. The next load starts clean.",
  ),
  stalled: transient(
    "Check the network between the service and the server, or raise STALL_TIMEOUT.",
  ),
  snapshot_lost: transient(
    "Retry: the source ended the transaction of the snapshot, or another session replaced a table there.",
  ),
  busy: kind(75, 503)("Retry later, or raise LOCK_TIMEOUT."),
  target_locked: transient(
    "Wait for the session that locks the table, or end it with pg_terminate_backend (see pg_locks). Raise LOCK_TIMEOUT if loads often wait for it. If a foreign key or trigger of another loaded table takes the lock, set LOAD_ATOMIC=true.",
  ),
  source_locked: transient(
    "Wait for the session that holds an ACCESS EXCLUSIVE lock, or end it with pg_terminate_backend (see pg_locks). Raise LOCK_TIMEOUT if loads often wait for it.",
  ),
  source_table_missing: failure(
    "Create the table, correct its name in TABLES_FILE, or point OLIST_DB_* at the database that has it.",
  ),
  source_column_missing: failure(
    "Add the column to the source table, restore its name, or correct TABLES_FILE.",
  ),
  source_column_incompatible: failure(
    "Restore the type of the source column, or replace the table by a view with the right type. In TABLES_FILE, declare another type or an expression.",
  ),
  source_foreign: failure(
    "Copy the foreign rows into a table or a materialized view of the source. Or point OLIST_DB_* at the database that has them.",
  ),
  source_unpopulated: failure("Run REFRESH MATERIALIZED VIEW in the source."),
  target_incompatible: failure(
    "Give the table the declared columns, or run `load --recreate --table NAME`, which replaces the table.",
  ),
  target_inherited: failure(
    "Detach the tables that inherit from it with ALTER TABLE … NO INHERIT …: a load would delete their rows.",
  ),
  target_dropped: transient(
    "Load again: another session dropped or replaced it during the load.",
  ),
  target_in_use: failure(
    "Drop or detach the named objects and create them again afterwards, or load without --recreate.",
  ),
  permission_denied: failure(
    "Grant the source role SELECT on the source tables. Grant the warehouse role CREATE on its database, or ownership of the target tables.",
  ),
  value_invalid: failure(
    "Correct the value in the source, or the type or expression in TABLES_FILE.",
  ),
  constraint_violated: failure(
    "Correct the rows in the source, or drop the constraint or trigger of the target that refuses them.",
  ),
  key_not_unique: failure(
    "Correct the rows in the source, or name other columns as key in TABLES_FILE.",
  ),
  verification_failed: failure(
    "Look for triggers or rules that change rows of the target. Look for random() or a similar function in a source view or in TABLES_FILE. The target was rolled back.",
  ),
  would_shrink: failure(
    'Check the source, and `where` of the table. To remove the rows, run `load --allow-shrink --table NAME`, or send {"allow_shrink": true, "tables": ["NAME"]} to POST /load.',
  ),
  check_failed: failure(
    "Correct the rows in the source, or the check in TABLES_FILE. Where a check takes too long, raise CHECK_TIMEOUT. The target keeps its old rows.",
  ),
  out_of_resources: transient(
    "Make room on the server: it is out of disk, memory or locks. See its log.",
  ),
  serialization: transient("Load again: a concurrent transaction interfered."),
  history_locked: kind(75, 503, true)(
    "Wait until that session has ended, or end it with pg_terminate_backend. VACUUM FULL takes such a lock.",
  ),
  history_missing: kind(1, 503)(
    "Run `load` or `schema ensure`, which create it, and check DWH_DB_NAME.",
  ),
  schema_too_new: misconfigured(
    "Run the newer version of this program that has migrated the warehouse.",
  ),
  run_lost: failure(
    "See the event of the run: another process closed it while this one was disconnected.",
  ),
  lock_lost: transient(
    "Load again: the connection that held the service's lock was lost.",
  ),
  interrupted: failure(
    "Load again: the process ended or was suspended before the load was done.",
  ),
  terminated: kind(143, 503)(
    "Repeat the load, or the command that was stopped.",
  ),
  draining: kind(75, 503)("Retry in a moment: the service is shutting down."),
  rolled_back: failure("See the error of the other table: LOAD_ATOMIC is on."),
  event_file_unwritable: misconfigured(
    "Make the file's folder writable for the service, or name another file.",
  ),
  output_unwritable: kind(74, 500)(
    "Free space where standard output goes, or redirect it.",
  ),
  database_error: failure("See the cause and the server's log."),
  internal: failure("Report this defect of the service with the log."),
} as const satisfies Record<string, ErrorKind>;

/** Code of a failure, as in events, answers and logs. */
export type ErrorCode = keyof typeof ERRORS;

/** The details of a failure, in addition to its code and reason. */
interface ErrorDetails {
  /** The server: `olist` or `dwh`. The message names it when the server reported the failure. */
  readonly server?: string | undefined;
  /** The table that the failure belongs to. */
  readonly table?: string | undefined;
  /** SQLSTATE of the server's error. */
  readonly sqlstate?: string | undefined;
  readonly cause?: unknown;
  /** A more precise remedy than that of the kind. */
  readonly remedy?: string | undefined;
}

/** A known failure: code, reason, server, table, remedy. */
export class ServiceError extends Error {
  override readonly name = "ServiceError";
  readonly code: ErrorCode;
  /** The reason, without the table and the server. */
  readonly reason: string;
  readonly server: string | undefined;
  readonly table: string | undefined;
  readonly sqlstate: string | undefined;
  readonly remedy: string;

  constructor(code: ErrorCode, reason: string, details: ErrorDetails = {}) {
    const { server, table, sqlstate, remedy, cause } = details;
    const text = printable(reason);
    super(
      [table && `Cannot load ${table}`, sqlstate && server, text]
        .filter(Boolean).join(": "),
      cause === undefined ? {} : { cause },
    );
    this.code = code;
    this.reason = text;
    this.server = server;
    this.table = table;
    this.sqlstate = sqlstate;
    this.remedy = printable(remedy ?? ERRORS[code].remedy);
  }

  get kind(): ErrorKind {
    return ERRORS[this.code];
  }

  /** The message and the remedy in one line, for events and answers. */
  get line(): string {
    const sentence = /[.!?]$/.test(this.message)
      ? this.message
      : `${this.message}.`;
    return `${sentence} ${this.remedy}`;
  }

  /** Returns the same failure with the name of a table. */
  of(table: string): ServiceError {
    return this.table === table ? this : this.with({ table });
  }

  /** Returns the same failure with some other details. */
  with(
    changes: ErrorDetails & { code?: ErrorCode; reason?: string },
  ): ServiceError {
    const details = { ...this, cause: this, ...changes };
    return new ServiceError(details.code, details.reason, details);
  }
}

/** Returns whether the error is a failure with one of these codes. */
export function hasCode(
  error: unknown,
  ...codes: readonly ErrorCode[]
): error is ServiceError {
  return error instanceof ServiceError && codes.includes(error.code);
}

/** Returns whether a server reported the error with one of these SQLSTATEs. */
export function hasSqlstate(
  error: unknown,
  ...sqlstates: readonly string[]
): error is ServiceError & { readonly sqlstate: string } {
  return error instanceof ServiceError && error.sqlstate !== undefined &&
    sqlstates.includes(error.sqlstate);
}

/** Returns the error as a {@linkcode ServiceError}. An unknown error becomes the cause of an `internal` one. */
export function asServiceError(error: unknown): ServiceError {
  if (error instanceof ServiceError) return error;
  const message = error instanceof Error ? error.message : String(error);
  return new ServiceError("internal", message || "unknown failure", {
    cause: error,
  });
}
