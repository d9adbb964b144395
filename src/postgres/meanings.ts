/**
 * The meaning of a server's error: a code and a remedy.
 *
 * One SQLSTATE stands for several causes. The fields `severity`, `file` and
 * `routine` distinguish them. Unlike the message, they are never translated.
 *
 * @module
 */
import type { DatabaseConfig } from "../config/config.ts";
import { type ErrorCode, ServiceError } from "../errors.ts";
import { address } from "./address.ts";
import type { ServerErrorFields } from "./driver.ts";
import { identifier } from "./sql.ts";

/** A code, and a remedy that replaces the default of the code. */
interface Meaning {
  readonly code: ErrorCode;
  readonly remedy?: string;
}

/** Returns the meaning of a server's error. Its remedy ends with the server's hint. */
export function meaningOf(
  error: ServerErrorFields,
  config: DatabaseConfig,
): Meaning {
  const isFatal = (error.severity ?? error.severity_local) === "FATAL";
  // PostgreSQL always names the routine, and PgBouncer never does.
  const isPooler = isFatal && !error.routine;
  const [, code, remedyOf] = isPooler
    ? POOLER_RULES.find(([pattern]) => pattern.test(error.message)) ?? []
    : RULES.find(([cause]) =>
      cause.sqlstate === error.code &&
      (!cause.isFatal || isFatal) &&
      (!cause.label || cause.label === config.label) &&
      (!cause.routine || cause.routine === error.routine) &&
      (!cause.file || cause.file === error.file)
    ) ?? [];
  const { hint } = error;
  const remedy = [
    remedyOf?.(namesOf(config)),
    hint && `The server's hint: ${/[.!?]$/.test(hint) ? hint : `${hint}.`}`,
  ].filter(Boolean).join(" ");
  return { code: code ?? codeOf(error.code), ...(remedy ? { remedy } : {}) };
}

/** Codes by SQLSTATE, or by its first two characters. */
const CODES: Readonly<Record<string, ErrorCode>> = {
  "08": "connection_lost",
  "28": "authentication_failed",
  "3D000": "database_missing",
  "22": "value_invalid",
  "23": "constraint_violated",
  "2BP01": "target_in_use",
  "25P03": "connection_lost",
  "40": "serialization",
  "42501": "permission_denied",
  "53": "out_of_resources",
  "53300": "too_many_connections",
  "55P03": "serialization",
  "57P01": "connection_lost",
  "57P02": "connection_lost",
  "57P03": "connection_lost",
  "57P04": "database_missing",
  "57P05": "connection_lost",
  "58": "out_of_resources",
};

function codeOf(sqlstate: string): ErrorCode {
  return CODES[sqlstate] ?? CODES[sqlstate.slice(0, 2)] ?? "database_error";
}

/** An error with all of these fields. */
interface Cause {
  readonly sqlstate: string;
  readonly isFatal?: true;
  readonly routine?: string;
  readonly file?: string;
  readonly label?: DatabaseConfig["label"];
}

interface Names {
  /** Quoted as in SQL. */
  readonly role: string;
  readonly database: string;
  /** The beginning of the names of variables, such as `DWH_DB`. */
  readonly prefix: string;
  /** The remedy for too few connections. */
  readonly connections: string;
}

function namesOf(config: DatabaseConfig): Names {
  return {
    role: identifier(config.user),
    database: identifier(config.database),
    prefix: `${config.label.toUpperCase()}_DB`,
    connections: connectionsRemedy(config),
  };
}

/** A cause, its meaning, and its remedy. */
type Rule<T> = readonly [T, ErrorCode, (names: Names) => string];

/** Remedy for a type that is another one in the warehouse. */
export const OTHER_TYPE_REMEDY =
  "Give the user-defined type the same definition on both servers, or declare the column as text in TABLES_FILE.";

/** Remedy for a value that the type of the warehouse cannot store. */
const AS_TEXT_REMEDY =
  "Declare the column as text in TABLES_FILE, with an expression such as value::text.";

/** Errors of PostgreSQL that mean more than their SQLSTATE. The first rule that fits applies. */
const RULES: readonly Rule<Cause>[] = [
  [
    { sqlstate: "42501", isFatal: true },
    "connection_forbidden",
    ({ role, database }) =>
      `Run GRANT CONNECT ON DATABASE ${database} TO ${role};`,
  ],
  [
    { sqlstate: "42501", routine: "check_enable_rls" },
    "permission_denied",
    ({ role }) => rowSecurityRemedy(role),
  ],
  [
    { sqlstate: "42501", label: "olist" },
    "permission_denied",
    ({ role }) =>
      `Grant role ${role} the missing privilege. A load needs SELECT on the source tables, and USAGE on their schemas.`,
  ],
  [
    { sqlstate: "42501" },
    "permission_denied",
    ({ role, database }) =>
      `Grant role ${role} the missing privilege. A load needs CREATE on database ${database} or ownership of the target tables, and USAGE on the schemas of their types.`,
  ],
  [
    { sqlstate: "55000", isFatal: true, routine: "CheckMyDatabase" },
    "connection_forbidden",
    ({ database, prefix }) =>
      `Run ALTER DATABASE ${database} WITH ALLOW_CONNECTIONS true;, or name another database (${prefix}_NAME).`,
  ],
  [
    { sqlstate: "55000", routine: "CheckCmdReplicaIdentity" },
    "target_incompatible",
    () =>
      "Run ALTER TABLE … REPLICA IDENTITY FULL; on the target, or give it a primary key. A published table needs a replica identity before rows can be deleted.",
  ],
  [
    { sqlstate: "42P10", routine: "CheckCmdReplicaIdentity" },
    "target_incompatible",
    () =>
      "Change the publication or the replica identity of the target. A row filter must use columns of the identity only, and a column list must contain all of them.",
  ],
  [
    { sqlstate: "42701", label: "dwh" },
    "target_incompatible",
    () =>
      "Declare the column under another name in TABLES_FILE, with the source column as `from`.",
  ],
  [
    { sqlstate: "42804", routine: "record_recv" },
    "target_incompatible",
    () => OTHER_TYPE_REMEDY,
  ],
  // Values that end too early. The server counts that as an error of the protocol.
  [
    { sqlstate: "08P01", file: "pqformat.c", label: "dwh" },
    "target_incompatible",
    () => OTHER_TYPE_REMEDY,
  ],
  // The types sort values in another order.
  [
    { sqlstate: "22000", file: "rangetypes.c", label: "dwh" },
    "target_incompatible",
    () => OTHER_TYPE_REMEDY,
  ],
  [
    { sqlstate: "22P02", file: "enum.c", label: "dwh" },
    "target_incompatible",
    () =>
      "Add the label in the warehouse with ALTER TYPE … ADD VALUE, or declare the column as text in TABLES_FILE.",
  ],
  // A name has at most 63 bytes, and a letter can have more bytes in another encoding.
  [
    { sqlstate: "42622", label: "dwh" },
    "value_invalid",
    () => AS_TEXT_REMEDY,
  ],
  // A path that only newer versions have.
  [
    { sqlstate: "42601", routine: "jsonpath_yyerror", label: "dwh" },
    "value_invalid",
    () => AS_TEXT_REMEDY,
  ],
  [
    { sqlstate: "53300", routine: "InitializeSessionUserId" },
    "too_many_connections",
    ({ role, connections }) =>
      `Raise the role's limit: ALTER ROLE ${role} CONNECTION LIMIT …. ${connections}`,
  ],
  [
    { sqlstate: "53300", routine: "CheckMyDatabase" },
    "too_many_connections",
    ({ database, connections }) =>
      `Raise the database's limit: ALTER DATABASE ${database} CONNECTION LIMIT …. ${connections}`,
  ],
  [
    { sqlstate: "53300" },
    "too_many_connections",
    ({ connections }) =>
      `Raise max_connections of the server, or close other connections. ${connections}`,
  ],
  // The table of locks lives in shared memory of a fixed size.
  [
    { sqlstate: "53200", file: "lock.c" },
    "out_of_resources",
    () =>
      "Raise max_locks_per_transaction and restart the server. A load locks each table, its indexes and its partitions.",
  ],
  [
    { sqlstate: "28000", routine: "InitializeSessionUserId" },
    "authentication_failed",
    ({ role, prefix }) =>
      `Check ${prefix}_USER. The role must exist and be allowed to log in: ALTER ROLE ${role} LOGIN;`,
  ],
  [
    { sqlstate: "28000" },
    "authentication_failed",
    ({ role, database, prefix }) =>
      `Add a line to the server's pg_hba.conf that allows role ${role} to connect to database ${database} from this host, and check ${prefix}_SSLMODE.`,
  ],
  [
    { sqlstate: "53100" },
    "out_of_resources",
    () =>
      "Free disk space on the server. A load needs room for the new rows, for WAL and for temporary files.",
  ],
  [
    { sqlstate: "53400" },
    "out_of_resources",
    () => "Raise the limit that the message names, such as temp_file_limit.",
  ],
  // The source checks the columns that an aggregate function leaves out only where they
  // are read together.
  [
    { sqlstate: "42803", label: "olist" },
    "configuration",
    () =>
      "Put aggregate functions of an expression in TABLES_FILE into a subquery.",
  ],
  [
    { sqlstate: "P0001", label: "olist" },
    "database_error",
    () => "Correct the source view or function that raises the error.",
  ],
  [
    { sqlstate: "P0001" },
    "database_error",
    () =>
      "Correct the rows in the source, or the trigger or function of the warehouse that raises the error.",
  ],
  [
    { sqlstate: "57014" },
    "database_error",
    ({ role }) =>
      `Check the server's log for the cancellation, or turn off statement_timeout for role ${role}.`,
  ],
  // Source transactions are always read-only.
  [
    { sqlstate: "25006", label: "olist" },
    "database_error",
    () =>
      "Replace the source view or function that writes. A load only reads the source.",
  ],
  [{ sqlstate: "25006" }, "read_only", (names) => readOnlyRemedy(names)],
];

/** Errors of PgBouncer. Most have the same SQLSTATE, and all are in English. */
const POOLER_RULES: readonly Rule<RegExp>[] = [
  [
    /^no such database|^database ".*" does not exist/,
    "database_missing",
    ({ prefix }) =>
      `Check ${prefix}_NAME, the section [databases] of PgBouncer, and that the database exists on the server behind it.`,
  ],
  [
    /authentication failed|no such user|password/i,
    "authentication_failed",
    ({ prefix }) =>
      `Check ${prefix}_USER and ${prefix}_PASSWORD, and the role's entry in PgBouncer's auth_file or auth_query.`,
  ],
  [
    /statement pooling mode/,
    "connection_forbidden",
    () =>
      "Set pool_mode = transaction or session for the database in PgBouncer. A load needs transactions.",
  ],
  [
    /query_wait_timeout|no more connections allowed|too many/,
    "too_many_connections",
    ({ connections }) =>
      `Raise default_pool_size and max_client_conn in PgBouncer. ${connections}`,
  ],
  [
    /unsupported startup parameter/,
    "connection_forbidden",
    () => "Add the parameter to ignore_startup_parameters in PgBouncer.",
  ],
  [
    /SSL required/,
    "tls_failed",
    ({ prefix }) => `Set ${prefix}_SSLMODE=require, verify-ca or verify-full.`,
  ],
];

/** Returns how many connections a load needs at most. */
export function connectionsRemedy({ label }: DatabaseConfig): string {
  const others = label === "olist" ? "one connection" : "two connections";
  return `A load needs up to ${others} to this server, and one more for each table that it loads at once. Lower MAX_PARALLEL_TASKS to need fewer.`;
}

/** Returns the remedy for row-level security that would hide rows from the quoted role. */
export function rowSecurityRemedy(role: string): string {
  return `Run ALTER ROLE ${role} BYPASSRLS; as a superuser, or DISABLE ROW LEVEL SECURITY on the table. A policy would hide rows, and the load would miss them.`;
}

/** Remedy for a standby that cancels sessions which conflict with its recovery. */
export const RECOVERY_CONFLICT_REMEDY =
  "Raise max_standby_streaming_delay (or max_standby_archive_delay) on the source above the time that a load takes, or turn on hot_standby_feedback. The source is a standby, and it ends sessions that conflict with its recovery.";

/** Returns the remedy for a warehouse that accepts no writes, by whether it is a standby. */
function readOnlyRemedy({ prefix, role }: Names, isStandby?: boolean): string {
  const host = `${prefix}_HOST`;
  const setting =
    `default_transaction_read_only off for the server, the database and role ${role}`;
  switch (isStandby) {
    case true:
      return `Point ${host} at the primary, or promote this server.`;
    case false:
      return `Turn ${setting}, or point ${host} at a server that accepts writes.`;
    case undefined:
      return `Point ${host} at the primary if this server is a standby. Otherwise turn ${setting}.`;
  }
}

/** Returns the error of a warehouse that accepts no writes. */
export function readOnlyError(
  config: DatabaseConfig,
  isStandby: boolean,
): ServiceError {
  const why = isStandby
    ? "it is a standby"
    : "default_transaction_read_only is on";
  return new ServiceError(
    "read_only",
    `The warehouse is read-only: ${why} (${address(config)})`,
    {
      server: config.label,
      sqlstate: "25006",
      remedy: readOnlyRemedy(namesOf(config), isStandby),
    },
  );
}
