/**
 * Translates errors of the driver and of servers into failures of the service.
 *
 * @module
 */
import type { DatabaseConfig } from "../config/config.ts";
import { maskOfDatabase } from "../config/secrets.ts";
import { hasCode, ServiceError } from "../errors.ts";
import { address, variable } from "./address.ts";
import {
  isServerError,
  serverError,
  type ServerErrorFields,
} from "./driver.ts";
import { connectionsRemedy, meaningOf } from "./meanings.ts";

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
      } Otherwise look in pg_stat_activity for the lock or event that the server waits for.`,
    },
  );
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
      `Cannot use ${
        address(config)
      }: it runs PostgreSQL ${version}, and 14 or newer is required`,
    );
  }
}

/** SQLSTATEs of a missing table (42P01) and a missing schema (3F000). */
export const GONE: readonly string[] = ["42P01", "3F000"];

/**
 * Returns whether the connection must be replaced. The address may lead to another
 * server by now. 08 is a connection failure, 25006 a read-only server, and 57P01 to
 * 57P05 a shutdown or start.
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
    const context = [
      detail,
      code === "value_invalid" ? where : undefined,
      code === "database_error" ? callerOf(where) : undefined,
    ]
      .map((text) => text?.replace(/\.$/, "")).filter(Boolean).join("; ");
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

/**
 * Returns the innermost function or statement of a context, or `undefined` without one.
 * Lines of COPY contain the row, and are left out.
 */
function callerOf(where: string): string | undefined {
  const [line] = where.split("\n");
  return line?.startsWith("COPY ") ? undefined : line;
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

/** Returns the failure with a remedy that names the variables of this database. */
export function namingVariables(
  failure: ServiceError,
  config: DatabaseConfig,
): ServiceError {
  const remedy = failure.remedy.replaceAll("*_DB_", variable(config, ""));
  return remedy === failure.remedy
    ? failure
    : failure.with({ remedy, cause: failure.cause });
}

/** Translates an error during connecting. A lost connection counts as one that failed to open. */
export function asConnectFailure(
  error: unknown,
  config: DatabaseConfig,
): ServiceError {
  return namingVariables(connectFailure(error, config), config);
}

function connectFailure(error: unknown, config: DatabaseConfig): ServiceError {
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
