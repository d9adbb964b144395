/**
 * What a server's error means: its code and its remedy.
 *
 * An SQLSTATE alone is too coarse: one stands for several causes. The server's
 * `severity`, `file` and `routine` tell them apart. They are never translated,
 * unlike the message.
 *
 * @module
 */
import type { DatabaseConfig } from "../config/config.ts";
import type { ErrorCode } from "../errors.ts";

/** The fields of a server's error that are used here, as the protocol names them. */
export interface ServerErrorFields {
  /** SQLSTATE. */
  readonly code: string;
  readonly message: string;
  readonly severity?: string | undefined;
  readonly severity_local?: string | undefined;
  readonly hint?: string | undefined;
  readonly file?: string | undefined;
  readonly routine?: string | undefined;
}

/** A code, with a remedy where the code's own does not fit. */
export interface Meaning {
  readonly code: ErrorCode;
  readonly remedy?: string;
}

/** The maximum number of connections that one load of all tables holds at once, per server. */
export const CONNECTIONS_PER_LOAD = { olist: 4, dwh: 8 } as const;

/** Returns what the server's error means. */
export function meaningOf(
  error: ServerErrorFields,
  config: DatabaseConfig,
): Meaning {
  const { code, remedy } = specificMeaning(error, config) ??
    { code: codeOf(error.code) };
  const { hint } = error;
  if (!hint) return { code, ...(remedy ? { remedy } : {}) };
  const suggestion = `The server's hint: ${
    /[.!?]$/.test(hint) ? hint : `${hint}.`
  }`;
  return { code, remedy: remedy ? `${remedy} ${suggestion}` : suggestion };
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
  "55P03": "serialization",
  "57P01": "connection_lost",
  "57P02": "connection_lost",
  "57P03": "connection_lost",
  "57P05": "connection_lost",
  "58": "out_of_resources",
};

function codeOf(sqlstate: string): ErrorCode {
  return CODES[sqlstate] ?? CODES[sqlstate.slice(0, 2)] ?? "database_error";
}

function specificMeaning(
  error: ServerErrorFields,
  config: DatabaseConfig,
): Meaning | undefined {
  const { code: sqlstate, routine, file } = error;
  const isFatal = (error.severity ?? error.severity_local) === "FATAL";
  // PostgreSQL always names the routine, and PgBouncer never does.
  if (isFatal && !routine) return poolerMeaning(error, config);
  const role = quoted(config.user);
  const database = quoted(config.database);
  switch (sqlstate) {
    case "42501":
      if (isFatal) {
        return {
          code: "connection_forbidden",
          remedy: `Run GRANT CONNECT ON DATABASE ${database} TO ${role};`,
        };
      }
      if (routine === "check_enable_rls") {
        return { code: "permission_denied", remedy: rowSecurityRemedy(config) };
      }
      return undefined;
    case "55000":
      if (isFatal && routine === "CheckMyDatabase") {
        return {
          code: "connection_forbidden",
          remedy:
            `Run ALTER DATABASE ${database} WITH ALLOW_CONNECTIONS true;, or name another database (${
              variable(config, "NAME")
            }).`,
        };
      }
      if (routine === "CheckCmdReplicaIdentity") {
        return { code: "target_incompatible", remedy: REPLICA_IDENTITY_REMEDY };
      }
      return undefined;
    case "53300":
      return {
        code: "out_of_resources",
        remedy: `${
          connectionLimitRemedy(routine, role, database)
        } A load needs up to ${
          CONNECTIONS_PER_LOAD[config.label]
        } connections to this server.`,
      };
    case "53200":
      // The table of locks lives in shared memory of a fixed size.
      return file === "lock.c"
        ? {
          code: "out_of_resources",
          remedy:
            "Raise max_locks_per_transaction and restart the server. A load locks each table with its indexes and partitions.",
        }
        : undefined;
    case "25006":
      return {
        code: "database_error",
        remedy: readOnlyRemedy(routine, config),
      };
    default:
      return undefined;
  }
}

/** Remedy where row-level security would hide rows from the role. */
export function rowSecurityRemedy({ user }: DatabaseConfig): string {
  return `Run ALTER ROLE ${
    quoted(user)
  } BYPASSRLS; as a superuser, or DISABLE ROW LEVEL SECURITY on the table. A policy would hide rows, and the load would miss them.`;
}

/** Remedy for a published table without a replica identity. */
const REPLICA_IDENTITY_REMEDY =
  "Run ALTER TABLE … REPLICA IDENTITY FULL; on the target, or give it a primary key. A published table needs a replica identity before rows can be deleted.";

function connectionLimitRemedy(
  routine: string | undefined,
  role: string,
  database: string,
): string {
  switch (routine) {
    case "InitializeSessionUserId":
      return `Raise the role's limit: ALTER ROLE ${role} CONNECTION LIMIT ….`;
    case "CheckMyDatabase":
      return `Raise the database's limit: ALTER DATABASE ${database} CONNECTION LIMIT ….`;
    default:
      return "Raise max_connections of the server, or close other connections.";
  }
}

function readOnlyRemedy(
  routine: string | undefined,
  config: DatabaseConfig,
): string {
  const host = variable(config, "HOST");
  return routine === "PreventCommandDuringRecovery"
    ? `Point ${host} at the primary: this server is a standby, and a standby takes no writes.`
    : `Point ${host} at the primary if this server is a standby. Otherwise turn default_transaction_read_only off for the server, the database and role ${
      quoted(config.user)
    }.`;
}

/** PgBouncer reports most refusals with one SQLSTATE, and only in English. */
function poolerMeaning(
  { code, message }: ServerErrorFields,
  config: DatabaseConfig,
): Meaning {
  const refusal = POOLER_REFUSALS.find(([pattern]) => pattern.test(message));
  if (refusal) {
    const [, meaning, remedy] = refusal;
    return { code: meaning, remedy: remedy(config) };
  }
  return { code: codeOf(code) };
}

const POOLER_REFUSALS: readonly (readonly [
  RegExp,
  ErrorCode,
  (config: DatabaseConfig) => string,
])[] = [
  [
    /^no such database|^database ".*" does not exist/,
    "database_missing",
    (config) =>
      `Check ${
        variable(config, "NAME")
      }, the section [databases] of PgBouncer, and that the server behind it has the database.`,
  ],
  [
    /authentication failed|no such user|password/i,
    "authentication_failed",
    (config) =>
      `Check ${variable(config, "USER")} and ${
        variable(config, "PASSWORD")
      }, and the role's entry in PgBouncer's auth_file or auth_query.`,
  ],
  [
    /statement pooling mode/,
    "connection_forbidden",
    () =>
      "Set pool_mode = transaction or session for the database in PgBouncer. A load needs transactions.",
  ],
  [
    /query_wait_timeout|no more connections allowed|too many/,
    "out_of_resources",
    (config) =>
      `Raise default_pool_size and max_client_conn in PgBouncer. A load needs up to ${
        CONNECTIONS_PER_LOAD[config.label]
      } connections to this server.`,
  ],
  [
    /unsupported startup parameter/,
    "connection_forbidden",
    () => "Add the parameter to ignore_startup_parameters in PgBouncer.",
  ],
  [
    /SSL required/,
    "tls_failed",
    (config) => `Set ${variable(config, "SSLMODE")}=require or verify-full.`,
  ],
];

/** Name of the variable that configures this database. */
function variable({ label }: DatabaseConfig, name: string): string {
  return `${label.toUpperCase()}_DB_${name}`;
}

function quoted(name: string): string {
  return `"${name.replaceAll('"', '""')}"`;
}
