/**
 * Translates an error of a server into a code and a remedy.
 *
 * One SQLSTATE stands for several causes. The fields `severity`, `file` and
 * `routine` distinguish them. Unlike the message, they are never translated.
 *
 * @module
 */
import type { DatabaseConfig, ServerAddress } from "../config/config.ts";
import { maskOfDatabase } from "../config/secrets.ts";
import { type ErrorCode, hasCode, ServiceError } from "../errors.ts";
import {
  isServerError,
  serverError,
  type ServerErrorFields,
} from "./driver.ts";

/** A code, and a remedy that replaces the default of the code. */
interface Meaning {
  readonly code: ErrorCode;
  readonly remedy?: string;
}

/** Returns how many connections a load needs at most. */
function connectionsRemedy({ label }: DatabaseConfig): string {
  const others = label === "olist" ? "one connection" : "two connections";
  return `A load needs up to ${others} to this server, and one more for each table that it loads at once. Lower MAX_PARALLEL_TASKS to need fewer.`;
}

/** Returns the meaning of a server's error. */
function meaningOf(
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
        return {
          code: "permission_denied",
          remedy: rowSecurityRemedy(config.user),
        };
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
        code: "too_many_connections",
        remedy: `${connectionLimitRemedy(routine, role, database)} ${
          connectionsRemedy(config)
        }`,
      };
    case "53200":
      // The table of locks lives in shared memory of a fixed size.
      return file === "lock.c"
        ? {
          code: "out_of_resources",
          remedy:
            "Raise max_locks_per_transaction and restart the server. A load locks each table, its indexes and its partitions.",
        }
        : undefined;
    case "28000":
      return {
        code: "authentication_failed",
        remedy: routine === "InitializeSessionUserId"
          ? `Check ${
            variable(config, "USER")
          }. The role must exist and be allowed to log in: ALTER ROLE ${role} LOGIN;`
          : `Add a line to the server's pg_hba.conf that allows role ${role} to connect to database ${database} from this host, and check ${
            variable(config, "SSLMODE")
          }.`,
      };
    case "53100":
      return {
        code: "out_of_resources",
        remedy:
          "Free disk space on the server. A load needs room for the new rows, for WAL and for temporary files.",
      };
    case "53400":
      return {
        code: "out_of_resources",
        remedy:
          "Raise the limit that the message names, such as temp_file_limit.",
      };
    case "57014":
      return {
        code: "database_error",
        remedy:
          `Check the server's log for the cancellation, or turn off statement_timeout for role ${role}.`,
      };
    case "25006":
      // Source transactions are always read-only.
      return config.label === "olist"
        ? {
          code: "database_error",
          remedy:
            "Replace the source view or function that writes. A load only reads the source.",
        }
        : { code: "read_only", remedy: readOnlyRemedy(config) };
    default:
      return undefined;
  }
}

/** Returns the remedy for row-level security that would hide rows from the role. */
export function rowSecurityRemedy(role: string): string {
  return `Run ALTER ROLE ${
    quoted(role)
  } BYPASSRLS; as a superuser, or DISABLE ROW LEVEL SECURITY on the table. A policy would hide rows, and the load would miss them.`;
}

/** Remedy for a standby that cancels sessions which conflict with its recovery. */
export const RECOVERY_CONFLICT_REMEDY =
  "Raise max_standby_streaming_delay (or max_standby_archive_delay) on the source above the time that a load takes, or turn on hot_standby_feedback. The source is a standby, and it ends sessions that conflict with its recovery.";

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
  config: DatabaseConfig,
  isStandby?: boolean,
): string {
  const host = variable(config, "HOST");
  const setting =
    `default_transaction_read_only off for the server, the database and role ${
      quoted(config.user)
    }`;
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
      remedy: readOnlyRemedy(config, isStandby),
    },
  );
}

/**
 * Returns the error of a connection without an answer. After the login, the likely
 * cause is a pooler without a free connection to the server.
 */
export function noAnswerError(
  config: DatabaseConfig,
  seconds: number,
  isLoggedIn: boolean,
): ServiceError {
  const what = `Cannot connect to ${
    address(config)
  }: no answer within ${seconds} s`;
  if (!isLoggedIn) return new ServiceError("connection_failed", what);
  return new ServiceError(
    "connection_failed",
    `${what} after the login, as when a pooler waits for a free connection to the server`,
    {
      remedy: `Raise default_pool_size if this is PgBouncer. ${
        connectionsRemedy(config)
      } Otherwise look in pg_stat_activity for what the server waits for.`,
    },
  );
}

/** Returns the meaning of a PgBouncer error. Most have the same SQLSTATE, and all are in English. */
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
      }, the section [databases] of PgBouncer, and that the database exists on the server behind it.`,
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
    "too_many_connections",
    (config) =>
      `Raise default_pool_size and max_client_conn in PgBouncer. ${
        connectionsRemedy(config)
      }`,
  ],
  [
    /unsupported startup parameter/,
    "connection_forbidden",
    () => "Add the parameter to ignore_startup_parameters in PgBouncer.",
  ],
  [
    /SSL required/,
    "tls_failed",
    (config) =>
      `Set ${variable(config, "SSLMODE")}=require, verify-ca or verify-full.`,
  ],
];

/** Returns the name of a variable of this database. */
function variable({ label }: DatabaseConfig, name: string): string {
  return `${label.toUpperCase()}_DB_${name}`;
}

function quoted(name: string): string {
  return `"${name.replaceAll('"', '""')}"`;
}

/** Returns the address of a database for messages. Contains no secret. */
export function address({ database, servers, label }: DatabaseConfig): string {
  return `database "${database}" on ${hostsOf(servers)} (${label})`;
}

/** Returns the hosts and ports of servers, as in `a:5432,b:5432`. */
export function hostsOf(servers: readonly ServerAddress[]): string {
  return servers.map(({ host, port }) => `${host}:${port}`).join(",");
}

/** @throws {ServiceError} `server_too_old` for a server older than PostgreSQL 14. */
export function checkVersion(
  config: DatabaseConfig,
  version: string | undefined,
): void {
  const major = Number.parseInt(version ?? "");
  if (major < 14) {
    throw new ServiceError(
      "server_too_old",
      `${
        address(config)
      } runs PostgreSQL ${version}, and 14 or newer is required`,
    );
  }
}

/** SQLSTATEs of a missing table (42P01) and a missing schema (3F000). */
export const GONE: readonly string[] = ["42P01", "3F000"];

/**
 * Returns whether the connection must be replaced: 08 is a connection failure,
 * 25006 a read-only server, 57P01 to 57P05 a shutdown or start. The address may
 * lead to another server by now.
 */
export function isOtherServerNeeded(sqlstate: string): boolean {
  return /^08|^25006$|^57P0/.test(sqlstate);
}

/** Returns whether a lack of free connections can have caused the error. A pooler does not answer then. */
export function mayLackConnections(error: unknown): boolean {
  return hasCode(error, "too_many_connections", "connection_failed");
}

/** Returns the error with which the server ended the session, if `error` only reports the loss. */
export function endingOf(
  error: unknown,
  fatal: ServerErrorFields | undefined,
): unknown {
  const isKnown = !fatal || error instanceof ServiceError ||
    isServerError(error);
  return isKnown ? error : serverError(fatal);
}

/** Returns the SQLSTATE of a server's error, or `undefined` for another error. */
export function sqlstateOf(error: unknown): string | undefined {
  return isServerError(error) ? error.code : undefined;
}

const LOST = new Set([
  "CONNECTION_CLOSED",
  "CONNECTION_DESTROYED",
  "CONNECTION_ENDED",
  "ECONNRESET",
  "EPIPE",
  "ETIMEDOUT",
  "EHOSTUNREACH",
  "ENETUNREACH",
]);

/** Translates an error of the driver or the server. Returns a {@linkcode ServiceError} unchanged. */
export function toServiceError(
  error: unknown,
  config: DatabaseConfig,
): ServiceError {
  if (error instanceof ServiceError) return error;
  if (isServerError(error)) {
    const mask = maskOfDatabase(config);
    // Masks before it clips, because the mask does not recognize half a secret.
    const maskAndClip = (text?: string) => clip(text && mask(text));
    const { code, remedy } = meaningOf(
      { ...error, message: error.message, hint: maskAndClip(error.hint) },
      config,
    );
    const message = maskAndClip(error.message);
    const detail = maskAndClip(error.detail);
    const where = maskAndClip(error.where);
    const context = [detail, code === "value_invalid" ? where : undefined]
      .filter(Boolean).join("; ");
    return new ServiceError(
      code,
      `${code === "read_only" ? "The warehouse is read-only: " : ""}${message}${
        context ? ` (${context})` : ""
      }`,
      {
        server: config.label,
        sqlstate: error.code,
        remedy,
        cause: error,
      },
    );
  }
  const { code } = (error ?? {}) as { code?: string };
  return new ServiceError(
    code && LOST.has(code) ? "connection_lost" : "connection_failed",
    `Lost the connection to ${address(config)}: ${textOf(error, config)}`,
    { server: config.label, cause: error },
  );
}

/** Returns the text of an error that no server sent. The driver's own texts lack the address. */
function textOf(error: unknown, config: DatabaseConfig): string {
  const { code, message } = (error ?? {}) as {
    code?: string;
    message?: string;
  };
  return code?.startsWith("CONNECTION_")
    ? "the connection was closed"
    : maskOfDatabase(config)(message || code || String(error));
}

/** Maximum length of a text from the server, in characters. */
const MAX_TEXT_LENGTH = 4000;

/** Shortens a text that would fill logs and events. */
function clip(text: string | undefined): string {
  if (!text || text.length <= MAX_TEXT_LENGTH) return text ?? "";
  const left = text.length - MAX_TEXT_LENGTH;
  return `${text.slice(0, MAX_TEXT_LENGTH)}… (${left} characters omitted)`;
}

/** Matches codes of a failed handshake or certificate check. Messages are not matched, because they may contain the host name. */
const TLS_CODES =
  /CERT|TLS|SSL|^UNABLE_TO_|^INVALID_CA$|^INVALID_PURPOSE$|^HOSTNAME_MISMATCH$|^PATH_LENGTH_EXCEEDED$|^EPROTO$/;

/** Message of a socket that is closed during its handshake, as by a server without TLS. */
const NO_HANDSHAKE =
  "Client network socket disconnected before secure TLS connection was established";

function isTlsFailure(
  { name, code, message }: { name?: string; code?: string; message?: string },
): boolean {
  return TLS_CODES.test(code ?? "") || message === NO_HANDSHAKE ||
    name === "InvalidData";
}

/** Translates an error during connecting. A lost connection counts as one that failed to open. */
export function asConnectFailure(
  error: unknown,
  config: DatabaseConfig,
): ServiceError {
  const known = toServiceError(error, config);
  const cause = known.cause as { code?: string; message?: string } | undefined;
  // The server sent no error. A timeout has no cause, and is reported unchanged.
  if (!known.sqlstate && cause && /^connection_/.test(known.code)) {
    return new ServiceError(
      isTlsFailure(cause) ? "tls_failed" : "connection_failed",
      `Cannot connect to ${address(config)}: ${textOf(cause, config)}`,
      { cause },
    );
  }
  if (known.code === "connection_lost") {
    const { reason, server, sqlstate, cause } = known;
    const details = { server, sqlstate, cause };
    return new ServiceError("connection_failed", reason, details);
  }
  return known;
}
