/**
 * Connects to the first suitable server of a database, and keeps the connections of
 * the clients of the driver.
 *
 * @module
 */
import type net from "node:net";
import type { DatabaseConfig, ServerAddress } from "../config/config.ts";
import { ServiceError } from "../errors.ts";
import {
  closeNow,
  createClient,
  isServerError,
  send,
  type ServerErrorFields,
} from "./driver.ts";
import { address, hostsOf, variable } from "./address.ts";
import { isOtherServerNeeded, namingVariables } from "./errors.ts";
import { Line, type LineOptions } from "./line.ts";
import { type Credentials, credentialsOf } from "./login.ts";
import type { Row } from "./sql.ts";
import { withTimeout } from "../timeout.ts";

/** Servers that did not answer the last connection. */
const silent = new WeakSet<ServerAddress>();

/**
 * Connects to the first server that answers and that `targetSessionAttrs` allows.
 * As in libpq, a server that refuses the login ends the search.
 *
 * A server that did not answer is tried last until it answers again. Otherwise
 * each connection would wait for it.
 *
 * @throws {ServiceError} that names each server and its failure, or the reason of the signal.
 */
export async function connect(
  config: DatabaseConfig,
  options: LineOptions,
): Promise<Line> {
  const credentials = await readCredentials(config);
  const failures: Failure[] = [];
  let spare: Line | undefined;
  const isSilent = (server: ServerAddress) => Number(silent.has(server));
  const servers = config.servers
    .toSorted((a, b) => isSilent(a) - isSilent(b));
  for (const server of servers) {
    const one = { ...config, servers: [server] };
    try {
      const line = await Line.open(one, credentials, options);
      silent.delete(server);
      const reason = unsuitable(line);
      if (!reason) {
        spare?.close();
        recheckSilent(config, credentials, options);
        return line;
      }
      if (config.targetSessionAttrs === "prefer-standby") spare ??= line;
      else line.close();
      failures.push({ of: one, error: reason });
    } catch (error) {
      const isKnown = error instanceof ServiceError && !options.signal?.aborted;
      const isAnswer = isKnown && isRefusal(error);
      if (!isAnswer) silent.add(server);
      if (!isKnown) {
        spare?.close();
        throw error;
      }
      failures.push({ of: one, error });
      if (isAnswer) break;
    }
  }
  if (spare && !spare.raw.destroyed) return spare;
  throw allOf(failures, config);
}

const rechecked = new WeakSet<ServerAddress>();

/** Finds out whether the silent servers answer again. Does not wait. */
function recheckSilent(
  config: DatabaseConfig,
  credentials: Credentials,
  { applicationName, connectTimeoutSeconds }: LineOptions,
): void {
  for (const server of config.servers) {
    if (!silent.has(server) || rechecked.has(server)) continue;
    rechecked.add(server);
    const one = { ...config, servers: [server] };
    Line.open(one, credentials, { applicationName, connectTimeoutSeconds })
      .then((line) => {
        line.close();
        silent.delete(server);
      })
      .catch((error) => {
        if (isRefusal(error)) silent.delete(server);
      })
      .finally(() => rechecked.delete(server));
  }
}

/** Reads the password. Its file may have been replaced. */
async function readCredentials(config: DatabaseConfig): Promise<Credentials> {
  let password: string | undefined;
  try {
    password = config.password.read();
  } catch (error) {
    const failure = new ServiceError(
      "authentication_failed",
      `Cannot log in to ${address(config)}: ${(error as Error).message}`,
      { cause: error },
    );
    throw namingVariables(failure, config);
  }
  return await credentialsOf(password);
}

/**
 * Returns why the server is not the one that is needed. PostgreSQL reports its state
 * with the login. A pooler may not, and then every server is suitable.
 */
function unsuitable({ config, guard }: Line): ServiceError | undefined {
  const { label, targetSessionAttrs } = config;
  const isStandby = guard.parameter("in_hot_standby") === "on";
  const isReadOnly = guard.parameter("default_transaction_read_only") === "on";
  const failed = {
    any: false,
    "read-write": isStandby || isReadOnly,
    primary: isStandby,
    standby: guard.parameter("in_hot_standby") === "off",
    "prefer-standby": guard.parameter("in_hot_standby") === "off",
  }[targetSessionAttrs];
  if (!failed) return undefined;
  const state = isStandby
    ? "it is a standby"
    : isReadOnly
    ? "default_transaction_read_only is on"
    : "it is not a standby";
  const reason = `Cannot connect to ${address(config)}: ${state}`;
  if (label === "dwh" && (isStandby || isReadOnly)) {
    return new ServiceError("read_only", reason);
  }
  const name = variable(config, "TARGET_SESSION_ATTRS");
  return new ServiceError("connection_failed", reason, {
    remedy: `Name a server that ${name}=${targetSessionAttrs} allows.`,
  });
}

/** Returns whether the server answered with a refusal. A server that starts or stops does not. */
function isRefusal({ code, sqlstate }: ServiceError): boolean {
  return code === "authentication_failed" ||
    sqlstate !== undefined && !isOtherServerNeeded(sqlstate);
}

/** The failure of one server. */
interface Failure {
  readonly of: DatabaseConfig;
  readonly error: ServiceError;
}

/** Returns one failure for all. Its code is that of a failure that a retry may heal, unless the last one is a refusal. */
function allOf(
  failures: readonly Failure[],
  config: DatabaseConfig,
): ServiceError {
  const last = failures.at(-1)!.error;
  if (config.servers.length === 1) return last;
  const errors = failures.map(({ error }) => error);
  const { code, remedy } = isRefusal(last)
    ? last
    : errors.find(({ kind }) => kind.transient) ?? last;
  const reasons = failures.map(({ of, error: { reason } }) => {
    const prefix = `Cannot connect to ${address(of)}: `;
    return `${hostsOf(of.servers)}: ${
      reason.startsWith(prefix) ? reason.slice(prefix.length) : reason
    }`;
  });
  return new ServiceError(
    code,
    `Cannot connect to ${address(config)}: ${reasons.join("; ")}`,
    { remedy },
  );
}

/** The lines of one client. */
export class Lines {
  readonly #config: DatabaseConfig;
  readonly #options: LineOptions;
  readonly #open = new Set<Line>();
  readonly #destroyed = new AbortController();
  /** Whether at least one of the lines was ready for a statement. */
  isReady = false;
  /** The server of the newest line, such as `localhost:5432`. */
  server: string | undefined;
  /** The last error with which the server ended a session. */
  fatal: ServerErrorFields | undefined;

  constructor(config: DatabaseConfig, options: LineOptions) {
    this.#config = config;
    this.#options = { ...options, signal: this.#destroyed.signal };
  }

  /** Opens another line. */
  dial = async (): Promise<net.Socket> => {
    this.fatal = undefined;
    // The driver dials in a later turn, when the client may already be closed.
    const line = await connect(this.#config, this.#options);
    if (this.#destroyed.signal.aborted) {
      line.destroy();
      throw this.#destroyed.signal.reason;
    }
    this.isReady = true;
    this.server = hostsOf(line.config.servers);
    this.#open.add(line);
    // This listener runs before that of the driver, which is added later.
    line.raw.once("close", () => {
      this.#open.delete(line);
      this.fatal = line.guard.fatal ?? this.fatal;
    });
    return line.socket;
  };

  /** Closes all lines immediately. */
  destroy(): void {
    this.#destroyed.abort(
      Object.assign(new Error("the client is closed"), {
        code: "CONNECTION_DESTROYED",
      }),
    );
    for (const line of this.#open) line.destroy();
  }
}

/** The result of {@linkcode probe}. */
interface Probed {
  /** Rows of the last statement, or `undefined` without rows in time. */
  readonly rows: Row[] | undefined;
  /** Whether the server accepted the login and then did not answer. */
  readonly isWaiting: boolean;
}

/** Runs a script on a new connection and closes it. Never throws. */
export async function probe(
  config: DatabaseConfig,
  options: LineOptions,
  script: string,
): Promise<Probed> {
  const { applicationName, connectTimeoutSeconds } = options;
  const lines = new Lines(config, { applicationName, connectTimeoutSeconds });
  const client = createClient({ max: 1 }, lines.dial);
  try {
    const { rows } = await withTimeout(
      send(client, script),
      connectTimeoutSeconds,
      () => new Error("no answer"),
    );
    return { rows, isWaiting: false };
  } catch (error) {
    // An error of the server is an answer.
    const isWaiting = lines.isReady && !isServerError(error);
    return { rows: undefined, isWaiting };
  } finally {
    closeNow(client);
    lines.destroy();
  }
}
