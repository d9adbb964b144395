/**
 * One physical connection that is never reopened, so that a transaction on it
 * is either whole or gone.
 *
 * @module
 */
import type net from "node:net";
import type { Readable, Writable } from "node:stream";
import type { DatabaseConfig } from "../config/config.ts";
import { ServiceError } from "../errors.ts";
import {
  type Client,
  connect,
  lastRows,
  parameterOf,
  probe,
  withTimeout,
} from "./client.ts";
import {
  address,
  asConnectFailure,
  checkVersion,
  endingOf,
  mayLackConnections,
  noAnswerError,
  toServiceError,
} from "./errors.ts";
import { Line } from "./line.ts";
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
} from "./sql.ts";

/** Seconds of idleness in a transaction after which a session sends a sign of life. */
const HEARTBEAT_SECONDS = 15;

/** Seconds of idleness in a transaction after which the server ends it: we are gone. */
const IDLE_TIMEOUT_SECONDS = 8 * HEARTBEAT_SECONDS;

/** How a connection is made and given up. Durations are seconds. */
export interface ConnectionOptions {
  readonly applicationName: string;
  readonly connectTimeoutSeconds: number;
  readonly stallTimeoutSeconds: number;
  /** Destroys the session when aborted; the signal's reason becomes the error. */
  readonly signal?: AbortSignal;
  /** What the transactions must share the server with. Given up when they do not. */
  readonly holder?: ServerHolder;
  /** Hears what is notified on the channels that the session listens on. */
  readonly onNotify?: (channel: string, payload: string) => void;
}

/** Settings of a transaction on a {@linkcode Session}. */
interface TransactionOptions {
  readonly mode:
    | "read committed"
    | "read committed read only"
    | "repeatable read read only";
  /** Session time zone; decides what instant a DATE becomes. */
  readonly timezone?: string;
  readonly lockTimeoutSeconds: number;
  /** Keeps the role's own search path, for views whose functions may need it. See {@linkcode Session.withOwnSearchPath}. */
  readonly hasOwnSearchPath?: boolean;
}

/** A running COPY: its stream, and a promise of the number of rows. */
interface CopyStream<S> {
  readonly stream: S;
  /** Resolves with the server's row count; rejects with the server's error. */
  readonly done: Promise<number>;
}

/** One physical connection. When it fails it stays failed: nothing is ever sent on a second one. */
export class Session implements AsyncDisposable, Disposable {
  readonly config: DatabaseConfig;
  /** The other end of a COPY, which may be what this end waits for. */
  peer: Session | undefined;
  readonly #options: ConnectionOptions;
  readonly #client: Client;
  readonly #watch: ReturnType<typeof setInterval>;
  #line: Line | undefined;
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
  /** The role that the session acts as; `none` for the one that logged in. */
  #role = "none";
  /** How a commit is made durable. What is announced must outlive a crash of the server. */
  #synchronousCommit = "on";
  /** SQL of the settings of the open transaction. */
  #settings = "";
  #closing: Promise<void> | undefined;
  readonly #ended = Promise.withResolvers<void>();
  /** Bytes of a COPY that the server had taken when it was last asked. */
  #copied: string | undefined;
  /** When the server was last found at work, though no byte moved. */
  #workedAt = -Infinity;
  #probing: Promise<void> | undefined;

  private constructor(config: DatabaseConfig, options: ConnectionOptions) {
    this.config = config;
    this.#options = options;
    this.#client = connect(config, { ...options, max: 1 }, async () => {
      // The driver dials in a later turn, when the session may be over.
      if (this.#failure) throw this.#failure;
      if (this.#line) {
        throw Object.assign(new Error("the server closed the connection"), {
          code: "ECONNRESET",
        });
      }
      const line = this.#line = new Line(
        config,
        options.connectTimeoutSeconds,
      );
      // Noticed at once, even while no query is under way.
      let cause: unknown = {
        code: "ECONNRESET",
        message: "the connection was closed",
      };
      line.raw.once("error", (error) => cause = error);
      line.raw.once(
        "close",
        () => this.destroy(this.#explain(cause)),
      );
      const socket = await line.socket;
      if (line.isEncrypted) {
        socket.once("error", (error) => cause = error);
        socket.once(
          "close",
          () => this.destroy(this.#explain(cause)),
        );
      }
      return socket;
    });
    options.signal?.addEventListener("abort", this.#abort, { once: true });
    this.#watch = this.#startWatch();
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
    options.signal?.throwIfAborted();
    const session = new Session(config, options);
    try {
      // A timer of our own: the client's begins only with an answer to TLS and start-up.
      await withTimeout(
        session.#learnSettings(),
        options.connectTimeoutSeconds,
        () => session.#noAnswer(),
      );
      checkVersion(config, session.serverVersion);
      return session;
    } catch (error) {
      session.destroy();
      // An old server may not even know what it was asked.
      checkVersion(config, session.serverVersion);
      throw asConnectFailure(error, config);
    }
  }

  #noAnswer(): ServiceError {
    return noAnswerError(
      this.config,
      this.#options.connectTimeoutSeconds,
      this.#line?.guard.isReady ?? false,
    );
  }

  /** Reads the settings of the role. It runs under the role's own search path: it may use no operator and no cast. */
  async #learnSettings(): Promise<void> {
    const [row] = await this.query(
      `${LIFT_TIMEOUTS};
       select pg_catalog.array_to_json(pg_catalog.current_schemas(false)) as schemas,
         pg_catalog.current_setting('role') as role,
         pg_catalog.current_setting('synchronous_commit') as commit`,
    );
    this.#ownSchemas = (row!.schemas as string[]).filter((name) =>
      !name.startsWith("pg_")
    );
    this.#role = row!.role;
    if (row!.commit !== "off") this.#synchronousCommit = row!.commit;
  }

  /** `server_version` of the server, such as `15.18 (Debian …)`. */
  get serverVersion(): string {
    return parameterOf(this.#client, "server_version");
  }

  /** `server_encoding` of the database. */
  get serverEncoding(): string {
    return parameterOf(this.#client, "server_encoding");
  }

  /** Process id of the backend: as it greeted, and of the transaction's once that has begun. */
  get pid(): number {
    return this.#pid;
  }

  /** Identifies the server of the transaction. */
  get server(): string {
    return this.#server;
  }

  /** Aborts when the connection is lost or given up, with the reason. */
  get signal(): AbortSignal {
    return this.#lost.signal;
  }

  /** Resolves when the session has given its connection back. */
  get ended(): Promise<void> {
    return this.#ended.promise;
  }

  /** Why the session is unusable, or `undefined` while it is not. */
  get failure(): ServiceError | undefined {
    return this.#failure;
  }

  /**
   * Runs one statement with parameters, or a script of several without, and
   * returns the rows of the last.
   */
  async query<T extends Row = Row>(
    text: string,
    parameters: readonly Parameter[] = [],
  ): Promise<T[]> {
    const result = await this.#run(() =>
      this.#client.unsafe(text, [...parameters])
    );
    // Behind a pooler this is the pooler's; `begin` asks the server itself.
    this.#pid ||= result.state?.pid ?? 0;
    return lastRows<T>(result);
  }

  /** Runs one statement and returns the number of rows that it affected. */
  async execute(text: string): Promise<number> {
    const result = await this.#run(() => this.#client.unsafe(text));
    return result.count ?? 0;
  }

  /**
   * Begins a transaction and runs `script` in it, in one round trip; returns
   * the rows of the script's last statement.
   *
   * Timeouts that the role may carry are lifted for the transaction. That it
   * ends when we die is seen to by the server's check of the connection and
   * by a limit on idleness that heartbeats keep at bay.
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
      // Rows that a policy hides would be missing with success reported.
      row_security: "off",
      client_encoding: "UTF8",
      standard_conforming_strings: "on",
      transform_null_equals: "off",
      // How types and values are written: both sides and this program must read the same.
      quote_all_identifiers: "off",
      datestyle: "ISO",
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
    // Sent along in the same round trip. The first failure is the one that counts.
    const [, rows] = await allInOrder(
      began,
      script ? this.query<T>(script) : Promise.resolve([]),
      this.#learnBackend(),
    );
    this.#inTransaction = true;
    return rows;
  }

  /**
   * Runs `work` with the role's own search path, which functions in a view or a
   * trigger may need, and restores the settings of the transaction afterwards.
   *
   * Statements of `work` must name no function or operator without its schema
   * whose argument types PostgreSQL's own do not fit exactly.
   */
  async withOwnSearchPath<T>(work: () => Promise<T>): Promise<T> {
    await this.query(this.#setOwnSearchPath());
    const result = await work();
    await this.restoreSettings();
    return result;
  }

  /**
   * Restores the settings of the transaction after functions of others ran,
   * which can change any of them. Closes the cursors that they left open: the
   * commit would run those WITH HOLD.
   */
  async restoreSettings(): Promise<void> {
    await this.query(
      `close all;\nset local role ${
        this.#role === "none" ? "none" : identifier(this.#role)
      };\n${this.#settings}`,
    );
  }

  /** PostgreSQL's own schema comes first where a path does not name it. */
  #setOwnSearchPath(): string {
    const schemas = [...this.#ownSchemas.map(identifier), "pg_temp"];
    return `set local search_path = ${schemas.join(", ")}`;
  }

  /**
   * Learns the process id of the transaction's backend, and its server.
   *
   * @throws {ServiceError} `lock_lost` when it is not the holder's server.
   */
  async #learnBackend(): Promise<void> {
    const [backend] = await this.query<{ pid: number; server: string }>(
      // Only Linux servers can notice a client that is gone while they compute.
      `select pg_backend_pid() as pid, ${SERVER_EXPRESSION} as server, case when version() like '%linux%'
         then set_config('client_connection_check_interval', '10s', true) end`,
    );
    this.#pid = backend!.pid;
    this.#server = backend!.server;
    const { holder } = this.#options;
    if (!holder || holder.server === this.#server) return;
    const reason = otherServerError(this.config);
    holder.giveUp(reason);
    throw reason;
  }

  /**
   * Checks that the address still leads to the session's server. An address
   * without an answer leads nowhere else.
   *
   * @throws {ServiceError} `connection_lost` when it leads to another server.
   */
  async checkAddress(): Promise<void> {
    const script = `select ${SERVER_EXPRESSION} as server`;
    const [own] = await this.query(script);
    const { rows } = await probe(this.config, this.#options, script);
    if (!rows || rows[0]?.server === own!.server) return;
    throw new ServiceError(
      "connection_lost",
      `${address(this.config)} leads to another server now`,
    );
  }

  /** Commits. A lost connection leaves the outcome unknown; see the code `connection_lost`. */
  async commit(): Promise<void> {
    await this.query("commit");
    this.#inTransaction = false;
  }

  /** Starts `COPY … TO STDOUT`. The session must be closed afterwards, not used again. */
  copyTo(text: string): Promise<CopyStream<Readable>> {
    return this.#copy<Readable>(text, "out");
  }

  /** Starts `COPY … FROM STDIN`. */
  copyFrom(text: string): Promise<CopyStream<Writable>> {
    return this.#copy<Writable>(text, "in");
  }

  /**
   * The socket, where the protocol runs over it as it is; `undefined` under
   * TLS, whose socket is the client's own.
   */
  get plainSocket(): net.Socket | undefined {
    return this.#line?.isEncrypted ? undefined : this.#line?.raw;
  }

  /** Bytes of answers received, and bytes sent, so far. */
  get bytesMoved(): number {
    return (this.#line?.guard.received ?? 0) +
      (this.#line?.raw.bytesWritten ?? 0);
  }

  /**
   * Ends the session in good order; an open transaction is rolled back by the
   * server. Settles when the server has hung up, which it may take its time for.
   */
  close(): Promise<void> {
    return this.#closing ??= this.#close();
  }

  async #close(): Promise<void> {
    if (this.#failure) return;
    // Marks the session used up, so that no late heartbeat reaches for it.
    this.#failure = new ServiceError(
      "connection_lost",
      "The session is closed",
    );
    this.#release();
    await this.#client.end({ timeout: 1 });
    this.#line?.destroy();
    this.#ended.resolve();
  }

  /** Cuts the connection, whatever is going on. Pending work rejects with `reason`. */
  destroy(
    reason = new ServiceError("connection_lost", "The session was given up"),
  ): void {
    if (this.#failure) return;
    this.#failure = reason;
    this.#release();
    for (const reject of this.#rejectors) reject(reason);
    this.#lost.abort(reason);
    this.#client.end({ timeout: 0 }).catch(() => {});
    this.#line?.destroy();
    this.#ended.resolve();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  /** Begins to close; somebody else waits for the end of that. */
  [Symbol.dispose](): void {
    void this.close();
  }

  /** The error as one of the service, with what the server said before it closed the connection. */
  #explain(error: unknown): ServiceError {
    const cause = endingOf(error, this.#line?.guard.fatal);
    return toServiceError(cause, this.config);
  }

  #release(): void {
    clearInterval(this.#watch);
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

  async #run<T>(start: () => PromiseLike<T>): Promise<T> {
    if (this.#failure) throw this.#failure;
    const failure = Promise.withResolvers<never>();
    this.#rejectors.add(failure.reject);
    this.#pending++;
    try {
      return await Promise.race([start(), failure.promise]);
    } catch (error) {
      const known = this.#explain(error);
      // The driver could not read the answer, so it cannot tell where the next one begins.
      if (!known.sqlstate) this.destroy(known);
      // What the server said is worth more than that the connection ended then.
      throw known.sqlstate ? known : this.#failure ?? known;
    } finally {
      this.#pending--;
      this.#idleSince = performance.now();
      this.#rejectors.delete(failure.reject);
    }
  }

  /**
   * postgres.js settles a query once, with the stream, and drops what comes
   * after it: the row count, and an error after the last row. So its two
   * callbacks are taken over before it is sent.
   */
  async #copy<S extends Readable | Writable>(
    text: string,
    direction: "in" | "out",
  ): Promise<CopyStream<S>> {
    this.#line?.guard.expectCopy(direction);
    const stream = Promise.withResolvers<S>();
    const done = Promise.withResolvers<number>();
    done.promise.catch(() => {});
    const query = this.#client.unsafe(text).simple();
    Object.assign(query, {
      resolve(value: S | { count: number }) {
        if ("pipe" in value) {
          // Its error comes through `done` as well; unheard it would end the process.
          value.on("error", () => {});
          stream.resolve(value as S);
        } else done.resolve(value.count);
      },
      reject(error: unknown) {
        stream.reject(error);
        done.reject(error);
      },
    });
    const finished = this.#run(() => done.promise);
    finished.catch(() => {});
    query.execute();
    return {
      stream: await Promise.race([
        stream.promise.catch((error) => {
          throw this.#explain(error);
        }),
        finished.then(() => stream.promise),
      ]),
      done: finished,
    };
  }

  /** Gives the session up when nothing moves, and sends heartbeats while it waits in a transaction. */
  #startWatch(): ReturnType<typeof setInterval> {
    const stallMilliseconds = this.#options.stallTimeoutSeconds * 1000;
    let moved = -1;
    let movedAt = performance.now();
    let isProbing = false;
    const tick = async () => {
      const now = performance.now();
      if (this.#pending === 0 || this.bytesMoved !== moved) {
        moved = this.bytesMoved;
        movedAt = now;
        if (this.#pending === 0 && this.#inTransaction) this.#heartbeat(now);
        return;
      }
      const ends = this.peer ? [this, this.peer] : [this];
      const isStalled = () =>
        performance.now() -
            Math.max(movedAt, ...ends.map((end) => end.#workedAt)) >=
          stallMilliseconds;
      // How much of a COPY was taken says nothing without an earlier probe.
      if (isProbing || !this.peer && !isStalled()) return;
      isProbing = true;
      await Promise.all(ends.map((end) => end.#probe()));
      isProbing = false;
      if (this.#pending > 0 && this.bytesMoved === moved && isStalled()) {
        this.destroy(
          new ServiceError(
            "stalled",
            `The connection to ${
              address(this.config)
            } stalled: no byte for ${this.#options.stallTimeoutSeconds} s`,
          ),
        );
      }
    };
    const timer = setInterval(
      () => void tick(),
      Math.min(stallMilliseconds / 8, 1000 * HEARTBEAT_SECONDS / 3),
    );
    Deno.unrefTimer(timer as unknown as number);
    return timer;
  }

  #heartbeat(now: number): void {
    if (now - this.#idleSince < HEARTBEAT_SECONDS * 1000) return;
    this.query("select 1").catch((error) => this.destroy(error));
  }

  /** Notes whether the server is at work. Both ends of a COPY may ask at once, and share the answer. */
  #probe(): Promise<void> {
    return this.#probing ??= this.#isServerBusy().then((isBusy) => {
      if (isBusy) this.#workedAt = performance.now();
      this.#probing = undefined;
    });
  }

  /**
   * Asks the server, on a connection of its own, whether the backend computes,
   * waits for a lock, or has taken more of a COPY since it was last asked: what
   * we have written may be on its way for longer than we would wait.
   */
  async #isServerBusy(): Promise<boolean> {
    if (this.#failure || !this.#pid) return false;
    const { rows } = await probe(
      this.config,
      this.#options,
      // A role that became another one at login may not look at its own sessions.
      `${LIFT_TIMEOUTS}; ${SET_SEARCH_PATH}; set local role none;
       select wait_event_type is distinct from 'Client' as busy, bytes_processed::text as copied
       from pg_stat_activity left join pg_stat_progress_copy using (pid)
       -- Disabled by track_activities: an idle backend waits for its client, whatever its state.
       where pid = ${this.#pid} and state in ('active', 'disabled')
         and application_name = ${literal(this.#options.applicationName)}`,
    );
    if (!rows) return false;
    const [backend] = rows;
    const hasTaken = backend?.copied !== undefined &&
      backend.copied !== null && backend.copied !== this.#copied;
    this.#copied = backend?.copied;
    return Boolean(backend?.busy || hasTaken);
  }
}

/**
 * Opens a session. Where no connection is free, waits until one of the others
 * has ended, and retries.
 */
export async function openWhenFree(
  open: () => Promise<Session>,
  others: () => Iterable<Session>,
): Promise<Session> {
  while (true) {
    const ends = [...others()].filter((session) => !session.failure)
      .map((session) => session.ended);
    try {
      return await open();
    } catch (error) {
      if (!mayLackConnections(error) || ends.length === 0) throw error;
      await Promise.race(ends);
    }
  }
}

/** Waits for all promises and throws the failure of the earliest, whichever fails first. */
async function allInOrder<T extends readonly unknown[]>(
  ...promises: { [K in keyof T]: Promise<T[K]> }
): Promise<T> {
  await Promise.allSettled(promises);
  return await Promise.all(promises) as unknown as T;
}

/** Names LOAD_TIMEZONE as the cause where the server does not know it: all other settings are constants. */
function asBeginFailure(
  error: unknown,
  { timezone }: TransactionOptions,
  config: DatabaseConfig,
): unknown {
  const isTimezone = timezone !== undefined &&
    error instanceof ServiceError && error.sqlstate === "22023";
  if (!isTimezone) return error;
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
