/**
 * Creates clients of the driver, with their options, sockets and timeouts.
 *
 * @module
 */
import type net from "node:net";
import postgres from "postgres";
import type { DatabaseConfig } from "../config/config.ts";
import { type ServerErrorFields, sqlstateOf } from "./errors.ts";
import { Line } from "./line.ts";
import type { Row } from "./sql.ts";

export type Client = ReturnType<typeof postgres>;

/**
 * Creates a client whose sockets come from `dial`. It sets every option, so that
 * the driver reads no PG* variable.
 */
export function connect(
  config: DatabaseConfig,
  options: {
    applicationName: string;
    connectTimeoutSeconds: number;
    max: number;
    /** Maximum lifetime of a connection. Unlimited by default. */
    lifetimeSeconds?: number;
    onNotify?: (channel: string, payload: string) => void;
  },
  dial: () => Promise<net.Socket>,
): Client {
  const driverOptions = {
    host: config.host,
    port: config.port,
    user: config.user,
    database: config.database,
    // A function, because the driver reads PGPASSWORD where the password is empty.
    password: () => config.password ?? "",
    // The sockets already use TLS where it is configured.
    ssl: false,
    max: options.max,
    connect_timeout: options.connectTimeoutSeconds,
    idle_timeout: options.lifetimeSeconds ? 30 : 0,
    max_lifetime: options.lifetimeSeconds ?? null,
    max_pipeline: 100,
    keep_alive: 30,
    backoff: () => 0,
    prepare: false,
    fetch_types: false,
    debug: false,
    publications: "none",
    connection: { application_name: options.applicationName },
    onnotice: () => {},
    ...(options.onNotify ? { onnotify: options.onNotify } : {}),
    socket: dial,
  };
  return postgres(
    driverOptions as unknown as postgres.Options<Record<string, never>>,
  );
}

/** Returns the rows of the last statement of a script. */
export function lastRows<T extends Row>(result: unknown): T[] {
  const sets = result as T[] | T[][];
  return ("command" in sets ? sets : sets.at(-1)) as T[];
}

/** Returns a setting that the server reported at the start of the connection. */
export function parameterOf(client: Client, name: string): string {
  return (client.parameters as Record<string, string | undefined>)[name] ?? "";
}

/** The lines of one client. Needed because the driver does not close a socket that is still connecting. */
export class Lines {
  readonly #config: DatabaseConfig;
  readonly #timeoutSeconds: number;
  readonly #open = new Set<Line>();
  #fruitless = 0;
  #isDestroyed = false;
  /** Whether at least one of the lines was ready for a statement. */
  isReady = false;
  /** The last error with which the server ended a session. */
  fatal: ServerErrorFields | undefined;

  constructor(config: DatabaseConfig, timeoutSeconds: number) {
    this.#config = config;
    this.#timeoutSeconds = timeoutSeconds;
  }

  /**
   * Opens another line.
   *
   * When a server closes the connection before it is ready, the driver redials
   * immediately and without limit. So the fourth attempt in a row fails.
   */
  dial = async (): Promise<net.Socket> => {
    // The driver dials in a later turn, when the client may already be closed.
    if (this.#isDestroyed) {
      throw Object.assign(new Error("the client is closed"), {
        code: "CONNECTION_DESTROYED",
      });
    }
    if (this.#fruitless >= 3) {
      this.#fruitless = 0;
      throw Object.assign(
        new Error("the server accepts connections and closes them"),
        { code: "ECONNRESET" },
      );
    }
    this.#fruitless++;
    this.fatal = undefined;
    const line = new Line(
      this.#config,
      this.#timeoutSeconds,
      () => {
        this.#fruitless = 0;
        this.isReady = true;
      },
    );
    this.#open.add(line);
    // This listener runs before that of the driver, which is added later.
    line.raw.once("close", () => {
      this.#open.delete(line);
      this.fatal = line.guard.fatal ?? this.fatal;
    });
    return await line.socket;
  };

  /** Closes all lines immediately. */
  destroy(): void {
    this.#isDestroyed = true;
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
  options: { applicationName: string; connectTimeoutSeconds: number },
  script: string,
): Promise<Probed> {
  const { connectTimeoutSeconds } = options;
  const lines = new Lines(config, connectTimeoutSeconds);
  const client = connect(config, { ...options, max: 1 }, lines.dial);
  try {
    const result = await withTimeout(
      client.unsafe(script),
      connectTimeoutSeconds,
      () => new Error("no answer"),
    );
    return { rows: lastRows(result), isWaiting: false };
  } catch (error) {
    // An error of the server is an answer.
    const isWaiting = lines.isReady && !sqlstateOf(error);
    return { rows: undefined, isWaiting };
  } finally {
    client.end({ timeout: 0 }).catch(() => {});
    lines.destroy();
  }
}

/** Waits for `work`. Throws `error()` after the timeout. */
export async function withTimeout<T>(
  work: PromiseLike<T>,
  seconds: number,
  error: () => Error,
): Promise<T> {
  const timeout = Promise.withResolvers<never>();
  const timer = setTimeout(() => timeout.reject(error()), seconds * 1000);
  try {
    return await Promise.race([work, timeout.promise]);
  } finally {
    clearTimeout(timer);
  }
}
