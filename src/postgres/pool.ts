/**
 * Runs single statements on connections that are reopened after a loss.
 *
 * @module
 */
import type { DatabaseConfig } from "../config/config.ts";
import { hasCode, ServiceError } from "../errors.ts";
import { APPLICATION_NAME } from "../identity.ts";
import { withTimeout } from "../timeout.ts";
import { Lines, probe } from "./client.ts";
import { type Client, closeNow, createClient, send } from "./driver.ts";
import {
  asConnectFailure,
  endingOf,
  isOtherServerNeeded,
  noAnswerError,
  sqlstateOf,
} from "./errors.ts";
import { nameLockedTable } from "./lock_holders.ts";
import { readOnlyError } from "./meanings.ts";
import {
  assertServer,
  OTHER_SERVER,
  otherServerError,
  type ServerHolder,
} from "./server_identity.ts";
import {
  LIFT_TIMEOUTS,
  type Parameter,
  type Row,
  SET_SEARCH_PATH,
  setLockTimeout,
  withParameters,
} from "./sql.ts";

/** Maximum lifetime of a connection, in seconds. Its address can lead to another server later. */
const LIFETIME_SECONDS = 600;

/** Timeout of a probe of the server, in seconds. */
const PROBE_SECONDS = 2;

/** Selects whether a server accepts writes, and the reason if it does not. */
const WRITABLE = `select pg_catalog.pg_is_in_recovery() as standby,
  pg_catalog.current_setting('transaction_read_only') as read_only`;

/**
 * Settings of each statement. The server ends waits for locks, and the pool all other
 * waits. The server must not compile them. Their tables are small and may lack
 * statistics, and compiling takes up to 0.2 s.
 */
const SETTINGS = `${LIFT_TIMEOUTS};\nset local jit = off;\n${SET_SEARCH_PATH}`;

/** Maximum wait of a statement for a lock on the history, in seconds. */
const MAX_LOCK_SECONDS = 10;

/**
 * Returns SQL that limits each wait for a lock on the history to `LOCK_TIMEOUT`, up to
 * `MAX_LOCK_SECONDS`. At least 1 s, because loads also wait for each other's rows.
 */
export function limitHistoryLocks(lockTimeoutSeconds: number): string {
  return setLockTimeout(
    Math.min(MAX_LOCK_SECONDS, Math.max(1, lockTimeoutSeconds)),
  );
}

interface Connected {
  readonly client: Client;
  readonly lines: Lines;
  /** Why a statement gave the connections up. Other statements on them fail for the same reason. */
  reason?: ServiceError;
}

/** Connections for single statements: history, events, health. Reconnects automatically. */
export class Pool implements AsyncDisposable {
  readonly config: DatabaseConfig;
  /** Maximum number of connections that the pool opens. */
  readonly max: number;
  readonly #connectTimeoutSeconds: number;
  readonly #timeoutSeconds: number;
  readonly #settings: string;
  #current: Connected | undefined;
  #holder: ServerHolder | undefined;
  /** Number of statements that run or wait for a connection. */
  inFlight = 0;

  constructor(
    config: DatabaseConfig,
    options: {
      max: number;
      connectTimeoutSeconds: number;
      stallTimeoutSeconds: number;
      lockTimeoutSeconds: number;
    },
  ) {
    this.config = config;
    this.max = options.max;
    this.#connectTimeoutSeconds = options.connectTimeoutSeconds;
    this.#timeoutSeconds = options.stallTimeoutSeconds +
      config.servers.length * options.connectTimeoutSeconds;
    this.#settings = `${SETTINGS};\n${
      limitHistoryLocks(options.lockTimeoutSeconds)
    }`;
  }

  /** The server of the newest connection, such as `localhost:5432`. */
  get server(): string | undefined {
    return this.#current?.lines.server;
  }

  /**
   * Runs one statement and returns its rows.
   *
   * Sends the statement and its settings as one script, in one message and one
   * transaction. That also works behind a pooler that gives each transaction
   * another connection.
   *
   * `timeoutSeconds` defaults to the sum of the stall timeout and of the connection
   * timeouts of all servers.
   *
   * @throws {ServiceError} the statement's error, `connection_failed` when the server does
   * not answer in time, or `read_only` when it does not accept writes. `lock_lost` when
   * the address leads to another server than the holder's.
   */
  async query<T extends Row = Row>(
    text: string,
    parameters: readonly Parameter[] = [],
    timeoutSeconds = this.#timeoutSeconds,
  ): Promise<T[]> {
    const statement = withParameters(text, parameters);
    const holder = this.#holder;
    this.inFlight++;
    try {
      try {
        return await this.#run<T>(statement, timeoutSeconds, holder);
      } catch (error) {
        if (!holder || sqlstateOf(error) !== OTHER_SERVER) throw error;
      }
      try {
        // The connection was an old one, and the statement has not run yet.
        return await this.#run<T>(statement, timeoutSeconds, holder);
      } catch (error) {
        if (sqlstateOf(error) !== OTHER_SERVER) throw error;
        if (this.#holder === holder) this.#holder = undefined;
        const reason = otherServerError(this.config);
        holder.giveUp(reason);
        throw reason;
      }
    } catch (error) {
      const known = asConnectFailure(error, this.config);
      if (known.sqlstate === "55P03") throw await nameLockedTable(this, known);
      const isStatement = sqlstateOf(error) !== undefined;
      throw isStatement && known.code === "read_only"
        ? await this.#explain(known)
        : known;
    } finally {
      this.inFlight--;
    }
  }

  /**
   * Checks that the server accepts writes.
   *
   * @throws {ServiceError} `read_only` when it does not, or an error of `query`.
   */
  async checkWritable(timeoutSeconds?: number): Promise<void> {
    for (let attempt = 1;; attempt++) {
      const current = this.#current;
      const [row] = await this.query(WRITABLE, [], timeoutSeconds);
      if (row!.read_only !== "on") return;
      // An old connection may lead to a replaced server.
      if (this.#current) this.#drop(this.#current);
      if (!current || attempt === 2) {
        throw readOnlyError(this.config, row!.standby);
      }
    }
  }

  /**
   * Keeps all statements on the holder's server until the result is disposed.
   * Calls `giveUp` of the holder when the address leads to another server.
   */
  stayWith(holder: ServerHolder): Disposable {
    this.#holder = holder;
    return {
      [Symbol.dispose]: () => {
        if (this.#holder === holder) this.#holder = undefined;
      },
    };
  }

  async #run<T extends Row>(
    statement: string,
    timeoutSeconds: number,
    holder: ServerHolder | undefined,
  ): Promise<T[]> {
    const current = this.#current ??= this.#connect();
    const { client, lines } = current;
    const check = holder ? `${assertServer(holder.server)};\n` : "";
    try {
      const { rows } = await this.#awaitAnswer(
        send<T>(client, `${this.#settings};\n${check}${statement}`),
        timeoutSeconds,
        lines,
      );
      return rows;
    } catch (cause) {
      const ending = endingOf(cause, lines.fatal);
      const isCutOff = !(ending instanceof ServiceError) && !sqlstateOf(ending);
      const error = isCutOff ? current.reason ?? ending : ending;
      if (error instanceof ServiceError) current.reason ??= error;
      // Most errors of the server leave the connection usable. All other errors make it suspect.
      const sqlstate = sqlstateOf(error);
      const isSuspect = !sqlstate || sqlstate === OTHER_SERVER ||
        isOtherServerNeeded(sqlstate);
      if (isSuspect) this.#drop(current);
      throw error;
    }
  }

  /**
   * Waits for an answer.
   *
   * A slow statement and a pooler without a free connection look alike. So after
   * the connection timeout, a probe asks on a second connection. A pooler without
   * a free connection does not answer that either.
   */
  async #awaitAnswer<T>(
    answer: PromiseLike<T>,
    timeoutSeconds: number,
    lines: Lines,
  ): Promise<T> {
    const { config } = this;
    const connectTimeoutSeconds = this.#connectTimeoutSeconds;
    const shortage = Promise.withResolvers<never>();
    const timer = setTimeout(async () => {
      if (!lines.isReady) return;
      const options = {
        applicationName: APPLICATION_NAME,
        connectTimeoutSeconds,
      };
      const { isWaiting } = await probe(config, options, "select 1");
      if (isWaiting) {
        const seconds = 2 * connectTimeoutSeconds;
        shortage.reject(noAnswerError(config, seconds, true));
      }
    }, connectTimeoutSeconds * 1000);
    try {
      return await withTimeout(
        Promise.race([answer, shortage.promise]),
        timeoutSeconds,
        () => noAnswerError(config, timeoutSeconds, lines.isReady),
      );
    } finally {
      clearTimeout(timer);
      shortage.promise.catch(() => {});
    }
  }

  /** Returns the error with the reason why the server accepts no writes. */
  async #explain(known: ServiceError): Promise<ServiceError> {
    try {
      await this.checkWritable(PROBE_SECONDS);
    } catch (error) {
      if (hasCode(error, "read_only")) return error;
    }
    return known;
  }

  #connect(): Connected {
    const lines = new Lines(this.#holder?.config ?? this.config, {
      applicationName: APPLICATION_NAME,
      connectTimeoutSeconds: this.#connectTimeoutSeconds,
    });
    const client = createClient(
      { max: this.max, lifetimeSeconds: LIFETIME_SECONDS },
      lines.dial,
    );
    return { client, lines };
  }

  /** Closes all connections immediately. The next statement opens a new one. */
  #drop(current: Connected): void {
    if (this.#current === current) this.#current = undefined;
    closeNow(current.client);
    current.lines.destroy();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const current = this.#current;
    this.#current = undefined;
    await current?.client.end({ timeout: 2 });
    current?.lines.destroy();
  }
}
