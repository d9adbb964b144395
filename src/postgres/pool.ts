/**
 * Connections for single statements, which are opened again when they are lost.
 *
 * @module
 */
import type { DatabaseConfig } from "../config/config.ts";
import { ServiceError } from "../errors.ts";
import { APPLICATION_NAME } from "../identity.ts";
import {
  type Client,
  connect,
  lastRows,
  Lines,
  parameterOf,
  withTimeout,
} from "./client.ts";
import {
  address,
  asConnectFailure,
  checkVersion,
  isOtherServerNeeded,
  sqlstateOf,
} from "./errors.ts";
import {
  type Parameter,
  type Row,
  SET_SEARCH_PATH,
  withParameters,
} from "./sql.ts";

/** Seconds that a connection is used. An address may lead to another server after a while. */
const LIFETIME_SECONDS = 600;

interface Connected {
  readonly client: Client;
  readonly lines: Lines;
}

/** Connections for single statements: history, events, health. Reconnects by itself. */
export class Pool implements AsyncDisposable {
  readonly config: DatabaseConfig;
  readonly #max: number;
  readonly #connectTimeoutSeconds: number;
  readonly #stallTimeoutSeconds: number;
  #current: Connected | undefined;
  /** Statements that are under way or wait for a connection. */
  inFlight = 0;

  constructor(
    config: DatabaseConfig,
    options: {
      max: number;
      connectTimeoutSeconds: number;
      stallTimeoutSeconds: number;
    },
  ) {
    this.config = config;
    this.#max = options.max;
    this.#connectTimeoutSeconds = options.connectTimeoutSeconds;
    this.#stallTimeoutSeconds = options.stallTimeoutSeconds;
  }

  /** Most connections that the pool opens. */
  get max(): number {
    return this.#max;
  }

  /**
   * Runs one statement and returns its rows.
   *
   * The statement is sent as a script, in one message and one transaction, with
   * the settings that it needs before it. That also works behind a pooler that
   * gives each transaction another connection.
   *
   * @throws {ServiceError} also `connection_failed` when there is no answer
   * within `timeoutSeconds` (default: those to connect and those to stall).
   */
  async query<T extends Row = Row>(
    text: string,
    parameters: readonly Parameter[] = [],
    timeoutSeconds = this.#connectTimeoutSeconds + this.#stallTimeoutSeconds,
  ): Promise<T[]> {
    const current = this.#current ??= this.#connect();
    const { client } = current;
    this.inFlight++;
    try {
      const rows = await withTimeout(
        client.unsafe(
          `${this.#settings(client)};\n${withParameters(text, parameters)}`,
        ),
        timeoutSeconds,
        () =>
          new ServiceError(
            "connection_failed",
            `No answer from ${address(this.config)} within ${timeoutSeconds} s`,
          ),
      );
      checkVersion(this.config, parameterOf(client, "server_version"));
      return lastRows<T>(rows);
    } catch (error) {
      // Most of the server's own errors leave the connection whole. Anything else makes it suspect.
      const sqlstate = sqlstateOf(error);
      if (!sqlstate || isOtherServerNeeded(sqlstate)) this.#drop(current);
      throw asConnectFailure(error, this.config);
    } finally {
      this.inFlight--;
    }
  }

  /** Timeouts that the role may carry are lifted: the pool has its own. */
  #settings(client: Client): string {
    const version = Number.parseInt(parameterOf(client, "server_version"));
    return [
      SET_SEARCH_PATH,
      "set local statement_timeout = 0",
      "set local lock_timeout = 0",
      "set local idle_in_transaction_session_timeout = 0",
      ...(version >= 17 ? ["set local transaction_timeout = 0"] : []),
    ].join("; ");
  }

  #connect(): Connected {
    const lines = new Lines(this.config, this.#connectTimeoutSeconds);
    const client = connect(
      this.config,
      {
        applicationName: APPLICATION_NAME,
        connectTimeoutSeconds: this.#connectTimeoutSeconds,
        max: this.#max,
        lifetimeSeconds: LIFETIME_SECONDS,
      },
      lines.dial,
    );
    return { client, lines };
  }

  /** Closes all connections at once. The next statement opens one again. */
  #drop(current: Connected): void {
    if (this.#current === current) this.#current = undefined;
    current.client.end({ timeout: 0 }).catch(() => {});
    current.lines.destroy();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const current = this.#current;
    this.#current = undefined;
    await current?.client.end({ timeout: 2 });
    current?.lines.destroy();
  }
}
