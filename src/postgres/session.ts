/**
 * Opens sessions. A session is one physical connection that is never reopened, so
 * a transaction on it is either complete or gone.
 *
 * @module
 */
import type net from "node:net";
import type { Writable } from "node:stream";
import type { DatabaseConfig } from "../config/config.ts";
import { hasSqlstate, ServiceError } from "../errors.ts";
import { connect, probe } from "./client.ts";
import {
  type Answer,
  type Client,
  closedError,
  closeNow,
  createClient,
  send,
  sendCopy,
} from "./driver.ts";
import { address } from "./address.ts";
import {
  asConnectFailure,
  endingOf,
  noAnswerError,
  toServiceError,
} from "./errors.ts";
import type { CopyReceiver } from "./guard.ts";
import type { Line } from "./line.ts";
import {
  otherServerError,
  SERVER_EXPRESSION,
  type ServerHolder,
} from "./server_identity.ts";
import {
  identifier,
  LIFT_TIMEOUTS,
  literal,
  type Parameter,
  type Row,
  SET_SEARCH_PATH,
  withParameters,
} from "./sql.ts";
import { withTimeout } from "../timeout.ts";
import { StallWatch, type WatchOptions } from "./stall_watch.ts";

/** Idle time in a transaction after which a session sends a heartbeat, in seconds. */
const HEARTBEAT_SECONDS = 15;

/** Idle time in a transaction after which the server ends it, in seconds. The process is gone then. */
const IDLE_TIMEOUT_SECONDS = 8 * HEARTBEAT_SECONDS;

/** Options of a connection. Durations are seconds. */
export interface ConnectionOptions extends WatchOptions {
  /** Destroys the session when it aborts. Its reason becomes the error. */
  readonly signal?: AbortSignal;
  /** The connection whose server the transactions must share. */
  readonly holder?: ServerHolder;
  /** Receives the notifications of the channels that the session listens on. */
  readonly onNotify?: (channel: string, payload: string) => void;
}

/** Settings of a transaction on a {@linkcode Session}. */
export interface TransactionOptions {
  readonly mode:
    | "read committed"
    | "read committed read only"
    | "repeatable read read only";
  /** Time zone of the transaction. It defines the instant that a DATE becomes. */
  readonly timezone?: string;
  readonly lockTimeoutSeconds: number;
  /** Keeps the role's own search path, for views whose functions may need it. See {@linkcode Session.withOwnSearchPath}. */
  readonly hasOwnSearchPath?: boolean;
}

/** A running `COPY … FROM STDIN`. */
interface CopyIn {
  readonly stream: Writable;
  /** Resolves with the row count of the server, or rejects with its error. */
  readonly done: Promise<number>;
}

/** One physical connection. A failed session stays failed and never opens a second connection. */
export class Session implements AsyncDisposable, Disposable {
  /** The configuration, with the server of the session alone. */
  readonly config: DatabaseConfig;
  /** Destroys the session when it stalls. */
  readonly watch: StallWatch;
  readonly #options: ConnectionOptions;
  readonly #client: Client;
  readonly #heart: ReturnType<typeof setInterval>;
  readonly #line: Line;
  #failure: ServiceError | undefined;
  readonly #lost = new AbortController();
  readonly #rejectors = new Set<(error: ServiceError) => void>();
  #pending = 0;
  #idleSince = 0;
  #inTransaction = false;
  #pid = 0;
  #server = "";
  /** The schemas of the role's own search path, without those of PostgreSQL. */
  #ownSchemas: readonly string[] = [];
  /** The current role of the session. `none` is the role that logged in. */
  #role = "none";
  /** Never `off`, because an announced commit must survive a crash of the server. */
  #synchronousCommit = "on";
  /** SQL of the settings of the open transaction. */
  #settings = "";
  #closing: Promise<void> | undefined;
  readonly #ended = Promise.withResolvers<void>();

  private constructor(line: Line, options: ConnectionOptions) {
    this.config = line.config;
    this.#line = line;
    this.#options = options;
    let isDialed = false;
    this.#client = createClient({ ...options, max: 1 }, () => {
      if (isDialed) throw this.#failure ?? closedError();
      isDialed = true;
      return Promise.resolve(line.socket);
    });
    // Detects a closed connection immediately, even without a running query.
    let cause: unknown = {
      code: "ECONNRESET",
      message: "the connection was closed",
    };
    for (const socket of new Set([line.raw, line.socket])) {
      socket.once("error", (error) => cause = error);
      socket.once("close", () => this.destroy(this.#explain(cause)));
    }
    options.signal?.addEventListener("abort", this.#abort, { once: true });
    this.watch = new StallWatch(this, options);
    this.#heart = setInterval(this.#heartbeat, HEARTBEAT_SECONDS * 1000 / 3);
    Deno.unrefTimer(this.#heart as unknown as number);
  }

  /**
   * Connects.
   *
   * @throws {ServiceError} `connection_failed`, `authentication_failed`,
   * `database_missing`, `tls_failed`, `server_too_old`.
   */
  static async open(
    config: DatabaseConfig,
    options: ConnectionOptions,
  ): Promise<Session> {
    const target = options.holder?.config ?? config;
    const session = new Session(await connect(target, options), options);
    try {
      await withTimeout(
        session.#learnSettings(),
        options.connectTimeoutSeconds,
        () => session.#noAnswer(),
      );
      return session;
    } catch (error) {
      session.destroy();
      throw asConnectFailure(error, session.config);
    }
  }

  #noAnswer(): ServiceError {
    return noAnswerError(
      this.config,
      this.#options.connectTimeoutSeconds,
      true,
    );
  }

  /**
   * Reads the settings of the role. It runs under the search path of the role, so
   * its SQL uses no operator and no cast.
   */
  async #learnSettings(): Promise<void> {
    const row = await this.#queryRow(
      `${LIFT_TIMEOUTS};
       select pg_catalog.pg_backend_pid() as pid,
         pg_catalog.array_to_json(pg_catalog.current_schemas(false)) as schemas,
         pg_catalog.current_setting('role') as role,
         pg_catalog.current_setting('synchronous_commit') as commit`,
    );
    this.#pid = row.pid;
    this.#ownSchemas = (row.schemas as string[]).filter((name) =>
      !name.startsWith("pg_")
    );
    this.#role = row.role;
    if (row.commit !== "off") this.#synchronousCommit = row.commit;
  }

  /** `server_version` of the server, such as `15.18 (Debian …)`. */
  get serverVersion(): string {
    return this.#line.guard.parameter("server_version") ?? "";
  }

  get serverEncoding(): string {
    return this.#line.guard.parameter("server_encoding") ?? "";
  }

  /** Process id of the backend. During a transaction, that of the transaction's backend. */
  get pid(): number {
    return this.#pid;
  }

  /** Identifies the server of the transaction. */
  get server(): string {
    return this.#server;
  }

  /** Whether the server of the transaction is a standby. */
  get isStandby(): boolean {
    return this.#server.endsWith(" t");
  }

  /** Aborts with the reason when the connection is lost or destroyed. */
  get signal(): AbortSignal {
    return this.#lost.signal;
  }

  /** Resolves when the session has released its connection. */
  get ended(): Promise<void> {
    return this.#ended.promise;
  }

  /** The reason why the session is unusable, or `undefined` while it is usable. */
  get failure(): ServiceError | undefined {
    return this.#failure;
  }

  /**
   * Runs a script. Returns the rows of the last statement that returns rows.
   */
  async query<T extends Row = Row>(
    text: string,
    parameters: readonly Parameter[] = [],
  ): Promise<T[]> {
    const { rows } = await this.#send<T>(withParameters(text, parameters));
    return rows;
  }

  /** Runs a statement that returns one row. */
  async #queryRow(text: string): Promise<Row> {
    const [row] = await this.query(text);
    if (row) return row;
    const reason = toServiceError(
      new Error("the server sent no row"),
      this.config,
    );
    this.destroy(reason);
    throw reason;
  }

  /**
   * Runs one statement over many rows of a table, in a transaction. The server may
   * compile it. Other statements are not compiled. That takes up to 0.2 s for catalogs
   * and the history, because the planner overrates their number of rows.
   */
  async scan<T extends Row = Row>(text: string): Promise<T[]> {
    return await this.query<T>(
      `set local jit to default;\n${text};\nset local jit = off`,
    );
  }

  /** Runs one statement and returns the number of rows that it affected. */
  async execute(text: string): Promise<number> {
    const { count } = await this.#send(text);
    return count;
  }

  /**
   * Begins a transaction and runs `script` in it, in one round trip. Returns the
   * rows of the script's last statement.
   *
   * The transaction turns off the timeouts of the role. The server ends it when
   * this process dies: it checks the connection, and it limits the idle time.
   * Heartbeats keep the idle time below that limit.
   */
  async begin<T extends Row = Row>(
    options: TransactionOptions,
    script = "",
  ): Promise<T[]> {
    const isNew = Number.parseInt(this.serverVersion) >= 17;
    const settings: Record<string, string> = {
      lock_timeout: `${Math.round(options.lockTimeoutSeconds * 1000)}ms`,
      statement_timeout: "0",
      idle_in_transaction_session_timeout: `${IDLE_TIMEOUT_SECONDS}s`,
      ...(isNew ? { transaction_timeout: "0" } : {}),
      // With row security on, a load would miss hidden rows and still succeed.
      row_security: "off",
      client_encoding: "UTF8",
      standard_conforming_strings: "on",
      transform_null_equals: "off",
      // Pays off for whole tables only. See `scan`.
      jit: "off",
      // Rows in the same order on both servers are compared with little memory.
      synchronize_seqscans: "off",
      // Formats of types and values must be the same on both sides.
      quote_all_identifiers: "off",
      array_nulls: "on",
      datestyle: "ISO",
      intervalstyle: "postgres",
      bytea_output: "hex",
      xmloption: "content",
      lc_monetary: "C",
      extra_float_digits: "1",
      tcp_keepalives_idle: "30",
      tcp_keepalives_interval: "10",
      tcp_keepalives_count: "3",
      ...(options.timezone ? { timezone: options.timezone } : {}),
      synchronous_commit: this.#synchronousCommit,
    };
    this.#settings = [
      SET_SEARCH_PATH,
      ...Object.entries(settings)
        .map(([name, value]) => `set local ${name} = ${literal(value)}`),
      ...(options.hasOwnSearchPath ? [this.#setOwnSearchPath()] : []),
    ].join(";\n");
    // A pooler may have no connection to the server for the transaction.
    const began = withTimeout(
      this.query(`begin isolation level ${options.mode};\n${this.#settings}`),
      this.#options.connectTimeoutSeconds,
      () => this.#noAnswer(),
    ).catch((error) => {
      if (error instanceof ServiceError && !error.sqlstate) this.destroy(error);
      throw asBeginFailure(error, options, this.config);
    });
    // Sent in the same round trip. The first failure counts.
    const [, rows] = await allInOrder(
      began,
      script ? this.query<T>(script) : Promise.resolve([]),
      this.#learnBackend(),
    );
    this.#inTransaction = true;
    return rows;
  }

  /**
   * Runs `work` with the search path of the role, which functions in a view or a
   * trigger may need. Restores the settings of the transaction afterwards.
   *
   * PostgreSQL could call a function or an operator of another role whose argument types
   * fit better. Statements of `work` must name the schema of each that does not fit exactly.
   */
  async withOwnSearchPath<T>(work: () => Promise<T>): Promise<T> {
    await this.query(this.#setOwnSearchPath());
    const result = await work();
    await this.restoreSettings();
    return result;
  }

  /**
   * Restores the settings of the transaction after functions of others ran, which
   * can change any setting. Also closes their cursors, because the commit would
   * run those WITH HOLD.
   */
  async restoreSettings(): Promise<void> {
    await this.query(
      `close all;\nset local role ${
        this.#role === "none" ? "none" : identifier(this.#role)
      };\n${this.#settings}`,
    );
  }

  /** Sets the search path of the role. PostgreSQL searches pg_catalog first, because the path does not name it. */
  #setOwnSearchPath(): string {
    const schemas = [...this.#ownSchemas.map(identifier), "pg_temp"];
    return `set local search_path = ${schemas.join(", ")}`;
  }

  /**
   * Reads the process id of the transaction's backend, and its server.
   *
   * @throws {ServiceError} `lock_lost` when it is not the holder's server.
   */
  async #learnBackend(): Promise<void> {
    const backend = await this.#queryRow(
      // Only servers on Linux detect a lost client while they compute.
      `select pg_backend_pid() as pid, ${SERVER_EXPRESSION} as server, case when version() like '%linux%'
         then set_config('client_connection_check_interval', '10s', true) end`,
    );
    this.#pid = backend.pid;
    this.#server = backend.server;
    const { holder } = this.#options;
    if (!holder || holder.server === this.#server) return;
    const reason = otherServerError(this.config);
    holder.giveUp(reason);
    throw reason;
  }

  /**
   * Checks that a new connection would reach the server of the session. An address
   * that does not answer passes the check.
   *
   * @throws {ServiceError} `connection_lost` when it leads to another server.
   */
  async checkAddress(config: DatabaseConfig): Promise<void> {
    const script = `select ${SERVER_EXPRESSION} as server`;
    const own = await this.#queryRow(script);
    const { rows } = await probe(config, this.#options, script);
    if (!rows || rows[0]?.server === own.server) return;
    throw new ServiceError(
      "connection_lost",
      `${address(config)} now leads to another server`,
    );
  }

  /**
   * Returns whether the server answers within the connection timeout, or has answered
   * within the last second. Destroys the session if not.
   */
  async answers(): Promise<boolean> {
    const idleMilliseconds = performance.now() - this.#idleSince;
    if (!this.#failure && idleMilliseconds < 1000) return true;
    try {
      await withTimeout(
        this.query("select 1"),
        this.#options.connectTimeoutSeconds,
        () => this.#noAnswer(),
      );
      return true;
    } catch {
      this.destroy();
      return false;
    }
  }

  /** Commits. A lost connection (`connection_lost`) leaves the outcome unknown. */
  async commit(): Promise<void> {
    await this.query("commit");
    this.#inTransaction = false;
  }

  /** Runs `COPY … TO STDOUT`. Returns the row count of the server. */
  copyTo(text: string, receive: CopyReceiver): Promise<number> {
    this.#line.guard.expectCopy(receive);
    return this.#run(() => sendCopy(this.#client, text).done);
  }

  /** Starts `COPY … FROM STDIN`. */
  async copyFrom(text: string): Promise<CopyIn> {
    this.#line.guard.expectCopy();
    const sent = sendCopy<Writable>(this.#client, text);
    const done = this.#run(() => sent.done);
    done.catch(() => {});
    // `done` rejects with the translated error.
    const opened = sent.stream.catch(() => done.then(() => sent.stream));
    const stream = await Promise.race([opened, done.then(() => opened)]);
    return { stream, done };
  }

  get isEncrypted(): boolean {
    return this.#line.isEncrypted;
  }

  /** The socket that carries the protocol, encrypted or not. */
  get socket(): net.Socket {
    return this.#line.socket;
  }

  /**
   * Sends small messages at once, until the result is disposed of. The system would
   * hold back the end of a short COPY for 40 ms.
   */
  sendAtOnce(): Disposable {
    const { raw } = this.#line;
    raw.setNoDelay(true);
    return { [Symbol.dispose]: () => void raw.setNoDelay(false) };
  }

  get isWaiting(): boolean {
    return this.#pending > 0;
  }

  /** Bytes sent, and bytes of answers received, so far. */
  get bytesMoved(): number {
    return this.#line.guard.received + this.#line.raw.bytesWritten;
  }

  /**
   * Closes the session gracefully. The server rolls back an open transaction.
   * Resolves when the server has closed the connection, which can take time.
   */
  close(): Promise<void> {
    return this.#closing ??= this.#close();
  }

  async #close(): Promise<void> {
    if (this.#failure) return;
    // Marks the session as closed, so that no late heartbeat uses it.
    this.#failure = new ServiceError(
      "connection_lost",
      "The session is closed",
    );
    this.#release();
    await this.#client.end({ timeout: 1 });
    this.#line.destroy();
    this.#ended.resolve();
  }

  /** Closes the connection immediately. Pending work rejects with `reason`. */
  destroy(
    reason = new ServiceError("connection_lost", "The session was destroyed"),
  ): void {
    if (this.#failure) return;
    this.#failure = reason;
    this.#release();
    for (const reject of this.#rejectors) reject(reason);
    this.#lost.abort(reason);
    closeNow(this.#client);
    this.#line.destroy();
    this.#ended.resolve();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  /** Starts to close, without waiting. */
  [Symbol.dispose](): void {
    void this.close();
  }

  /** Translates the error. Prefers the error that the server sent before it closed the connection. */
  #explain(error: unknown): ServiceError {
    const cause = endingOf(error, this.#line.guard.fatal);
    return toServiceError(cause, this.config);
  }

  #release(): void {
    this.watch.stop();
    clearInterval(this.#heart);
    this.#options.signal?.removeEventListener("abort", this.#abort);
  }

  #abort = () => {
    const { reason } = this.#options.signal!;
    this.destroy(
      reason instanceof ServiceError
        ? reason
        : new ServiceError("terminated", "The load was aborted", {
          cause: reason,
        }),
    );
  };

  #send<T extends Row>(script: string): Promise<Answer<T>> {
    return this.#run(() => send<T>(this.#client, script));
  }

  async #run<T>(start: () => PromiseLike<T>): Promise<T> {
    if (this.#failure) throw this.#failure;
    const failure = Promise.withResolvers<never>();
    this.#rejectors.add(failure.reject);
    this.#pending++;
    try {
      return await Promise.race([start(), failure.promise]);
    } catch (error) {
      const known = this.#explain(error);
      // The driver could not read the answer, so it cannot find the start of the next one.
      if (!known.sqlstate) this.destroy(known);
      // The error of the server is more precise than the loss of the connection after it.
      throw known.sqlstate ? known : this.#failure ?? known;
    } finally {
      this.#pending--;
      this.#idleSince = performance.now();
      this.#rejectors.delete(failure.reject);
    }
  }

  /** Keeps an idle transaction alive. */
  #heartbeat = () => {
    const idleSeconds = (performance.now() - this.#idleSince) / 1000;
    const isDue = this.#inTransaction && !this.isWaiting &&
      idleSeconds >= HEARTBEAT_SECONDS;
    if (isDue) this.query("select 1").catch((error) => this.destroy(error));
  };
}

/** Waits for all promises. Throws the failure of the earliest in the list. */
async function allInOrder<T extends readonly unknown[]>(
  ...promises: { [K in keyof T]: Promise<T[K]> }
): Promise<T> {
  await Promise.allSettled(promises);
  return await Promise.all(promises) as unknown as T;
}

/** Names LOAD_TIMEZONE as the cause when the server does not know it. All other settings are constants. */
function asBeginFailure(
  error: unknown,
  { timezone }: TransactionOptions,
  config: DatabaseConfig,
): unknown {
  if (timezone === undefined || !hasSqlstate(error, "22023")) return error;
  return new ServiceError(
    "configuration",
    `LOAD_TIMEZONE ${JSON.stringify(timezone)} is unknown to ${
      address(config)
    }`,
    {
      cause: error,
      remedy:
        "Set LOAD_TIMEZONE to a name that pg_timezone_names lists on both servers.",
    },
  );
}
