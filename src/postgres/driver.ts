/**
 * The driver, postgres.js 3.4, and all code that relies on its internals. Each use of
 * an internal has a comment. A contract test next to this file fails when the driver
 * changes one.
 *
 * @module
 */
import { Buffer } from "node:buffer";
import type { Duplex, Readable, Writable } from "node:stream";
import postgres from "postgres";
import type { Row } from "./sql.ts";

/** A client of the driver: connections to one database. */
export type Client = ReturnType<typeof postgres>;

/** Options of a client. Durations are seconds. */
interface ClientOptions {
  readonly max: number;
  /** Maximum lifetime of a connection. Unlimited by default. */
  readonly lifetimeSeconds?: number;
  readonly onNotify?: (channel: string, payload: string) => void;
}

/**
 * Creates a client whose connections come from `dial`, which has logged in. The
 * client sets every option, so that the driver reads no PG* variable.
 *
 * Relies on the undocumented option `socket`: the driver calls it for each
 * connection, in a later turn. When it fails, the statement fails with its error.
 */
export function createClient(
  options: ClientOptions,
  dial: () => Promise<Duplex>,
): Client {
  const driverOptions = {
    // Only for texts of the driver. It splits a name with a comma, and would wait for the other host.
    host: "server",
    port: 5432,
    user: "user",
    database: "database",
    // A function, because the driver reads PGPASSWORD where the password is empty.
    password: () => "",
    // The sockets already use TLS where it is configured.
    ssl: false,
    max: options.max,
    connect_timeout: 0,
    idle_timeout: options.lifetimeSeconds ? 30 : 0,
    max_lifetime: options.lifetimeSeconds ?? null,
    max_pipeline: 100,
    keep_alive: 30,
    backoff: () => 0,
    prepare: false,
    fetch_types: false,
    debug: false,
    publications: "none",
    connection: { application_name: "client" },
    onnotice: () => {},
    types: {
      json: {
        to: 114,
        from: [114, 3802],
        serialize: JSON.stringify,
        parse: parseJson,
      },
    },
    ...(options.onNotify ? { onnotify: options.onNotify } : {}),
    socket: async () => skipStartup(await dial()),
  };
  return postgres(
    driverOptions as unknown as postgres.Options<Record<string, never>>,
  );
}

/** Maximum length of a JSON value. Its objects can take ten times the memory of its text. */
const MAX_JSON_LENGTH = 16 * 1024 * 1024;

function parseJson(text: string): unknown {
  if (text.length > MAX_JSON_LENGTH) {
    throw new RangeError("a JSON value is too long");
  }
  return JSON.parse(text);
}

/** ReadyForQuery outside of a transaction. */
const READY = Buffer.from("Z\0\0\0\x05I");

/**
 * Makes the driver skip its own login on a paused socket. Returns the socket.
 *
 * Relies on the driver: it listens for data, and queues its StartupMessage in the same
 * turn. It writes that message together with the first statement. ReadyForQuery is
 * enough to begin.
 */
function skipStartup<S extends Duplex>(socket: S): S {
  const { write } = socket;
  socket.write = function (chunk: Buffer, ...rest: unknown[]) {
    socket.write = write;
    const statement = chunk.subarray(chunk.readUInt32BE());
    return Reflect.apply(write, socket, [statement, ...rest]);
  } as typeof write;
  const begin = (event: string | symbol) => {
    if (event !== "data") return;
    socket.off("newListener", begin);
    queueMicrotask(() => {
      // The driver listens too late for the end of this socket.
      if (socket.destroyed) {
        socket.emit("error", socket.errored ?? closedError());
      }
      for (const listener of socket.listeners("data")) {
        listener.call(socket, READY);
      }
      socket.resume();
    });
  };
  socket.on("newListener", begin);
  return socket;
}

/** Returns the error of a connection that the server closed. */
export function closedError(): Error {
  return Object.assign(new Error("the server closed the connection"), {
    code: "ECONNRESET",
  });
}

/** Errors of the driver when it cannot read a message. */
const MISREAD = [RangeError, SyntaxError, TypeError];

/** The answer to a script. */
export interface Answer<T extends Row = Row> {
  /** Rows of the last statement that returns rows. */
  readonly rows: T[];
  /** Number of rows that the statement affected. Only of a single statement. */
  readonly count: number;
}

/**
 * Bytes from which the driver writes a message at once. Less it leaves to
 * `setImmediate`, and an idle Deno may not wake for that.
 */
const MIN_WRITE_BYTES = 1024;

/**
 * Sends a script and returns its answer. All scripts of a client with one
 * connection run in the order in which they were sent.
 *
 * Relies on the driver: it writes long messages at once. The result of a script
 * is an array of results as soon as a second statement returns rows. A message
 * that the driver cannot read fails the script with an error of JavaScript.
 */
export async function send<T extends Row = Row>(
  client: Client,
  script: string,
): Promise<Answer<T>> {
  const result = await client.unsafe(script.padEnd(MIN_WRITE_BYTES))
    .catch((cause) => {
      const isUnread = MISREAD.some((type) => cause instanceof type);
      throw isUnread
        ? new Error("the server sent a malformed message", { cause })
        : cause;
    });
  const sets = result as unknown as T[] | T[][];
  const rows = "command" in sets ? sets : sets.at(-1);
  return { rows: rows as T[], count: result.count ?? 0 };
}

/** A COPY that the driver has sent. */
interface SentCopy<S> {
  /** Resolves when the server is ready for the data, or sends them. */
  readonly stream: Promise<S>;
  /** Resolves with the row count of the server. */
  readonly done: Promise<number>;
}

/**
 * Sends a COPY. The driver resolves a query once, with the stream. It drops the
 * row count, and an error after the last row.
 *
 * Relies on the properties `resolve` and `reject` of a query. The driver calls them.
 * They can be replaced until the query is sent.
 */
export function sendCopy<S extends Readable | Writable>(
  client: Client,
  statement: string,
): SentCopy<S> {
  const stream = Promise.withResolvers<S>();
  const done = Promise.withResolvers<number>();
  const query = client.unsafe(statement.padEnd(MIN_WRITE_BYTES)).simple();
  let copy: S | undefined;
  const reject = (error: unknown) => {
    stream.reject(error);
    done.reject(error);
  };
  Object.assign(query, {
    resolve(value: S | { count: number }) {
      if ("pipe" in value) {
        copy = value as S;
        // `done` reports the same error. Without a listener it would end the process.
        value.on("error", () => {});
        stream.resolve(copy);
      } else if (copy) {
        const resolve = () => done.resolve(value.count);
        // The driver closes the stream of rows for the server with one message more. It must not reach the next COPY.
        if ("writable" in copy && !copy.closed) copy.once("close", resolve);
        else resolve();
      } else reject(new Error("the server answered COPY without a COPY"));
    },
    reject,
  });
  stream.promise.catch(() => {});
  done.promise.catch(() => {});
  query.execute();
  return { stream: stream.promise, done: done.promise };
}

/** Closes all connections of a client at once. Pending work fails. */
export function closeNow(client: Client): void {
  client.end({ timeout: 0 }).catch(() => {});
}

/** Checks the bytes of a connection before the driver and the server read them. */
interface SocketGuard {
  /**
   * Returns the bytes for the driver.
   *
   * @throws {Error} when the bytes of the server are refused.
   */
  check(chunk: Buffer): readonly Buffer[];
  /** Reads the bytes of the driver. */
  checkClient(chunk: Buffer): void;
}

/**
 * Puts the guard in front of everything that reads from the socket, including the
 * driver. A violation closes the socket with its error.
 *
 * Relies on streams: all data reach listeners through `emit`, and `destroy` emits
 * its error as `error`. Relies on the driver: it sends each statement in one
 * `write`.
 */
export function guardSocket(socket: Duplex, guard: SocketGuard): void {
  const emit = socket.emit;
  socket.emit = function (event: string | symbol, ...values: unknown[]) {
    if (event !== "data") {
      return Reflect.apply(emit, socket, [event, ...values]);
    }
    // The rest of a chunk after a violation.
    if (socket.destroyed) return false;
    try {
      for (const bytes of guard.check(values[0] as Buffer)) {
        Reflect.apply(emit, socket, [event, bytes]);
      }
    } catch (error) {
      socket.destroy(error as Error);
    }
    return true;
  } as typeof emit;
  const write = socket.write;
  socket.write = function (chunk: Buffer, ...rest: unknown[]) {
    guard.checkClient(chunk);
    return Reflect.apply(write, socket, [chunk, ...rest]);
  } as typeof write;
}

/** The fields of a server's error, with their names in the protocol. */
export interface ServerErrorFields {
  /** SQLSTATE. */
  readonly code: string;
  readonly message: string;
  readonly severity?: string | undefined;
  readonly severity_local?: string | undefined;
  readonly detail?: string | undefined;
  readonly hint?: string | undefined;
  readonly where?: string | undefined;
  readonly file?: string | undefined;
  readonly routine?: string | undefined;
}

/** Returns whether the server sent the error. */
export function isServerError(
  error: unknown,
): error is Error & ServerErrorFields {
  return error instanceof postgres.PostgresError;
}

/** Returns an error as the driver throws it. The driver does not export the type of the fields. */
export function serverError(fields: ServerErrorFields): Error {
  return new postgres.PostgresError(fields as never);
}
