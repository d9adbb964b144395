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
  limitedDial,
  parameterOf,
  withTimeout,
} from "./client.ts";
import {
  address,
  asConnectFailure,
  checkVersion,
  sqlstateOf,
} from "./errors.ts";
import {
  type Parameter,
  type Row,
  SET_SEARCH_PATH,
  withParameters,
} from "./sql.ts";

/** Connections for single statements: history, events, health. Reconnects by itself. */
export class Pool implements AsyncDisposable {
  readonly config: DatabaseConfig;
  readonly #max: number;
  readonly #connectTimeoutSeconds: number;
  readonly #stallTimeoutSeconds: number;
  #client: Client | undefined;
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
    const client = this.#client ??= connect(
      this.config,
      {
        applicationName: APPLICATION_NAME,
        connectTimeoutSeconds: this.#connectTimeoutSeconds,
        max: this.#max,
      },
      limitedDial(this.config),
    );
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
      // The server's own errors leave the connection whole; anything else makes it suspect.
      if (!sqlstateOf(error) && this.#client === client) {
        this.#client = undefined;
        client.end({ timeout: 0 }).catch(() => {});
      }
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

  async [Symbol.asyncDispose](): Promise<void> {
    const client = this.#client;
    this.#client = undefined;
    await client?.end({ timeout: 2 });
  }
}
