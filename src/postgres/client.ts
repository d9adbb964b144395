/**
 * The driver's client: its options, its sockets, and how long it may take.
 *
 * @module
 */
import type net from "node:net";
import postgres from "postgres";
import type { DatabaseConfig } from "../config/config.ts";
import { Line } from "./line.ts";
import type { Row } from "./sql.ts";

export type Client = ReturnType<typeof postgres>;

/**
 * A client with every option given, so that it reads nothing from PG*
 * variables, whose sockets `dial` makes.
 */
export function connect(
  config: DatabaseConfig,
  options: {
    applicationName: string;
    connectTimeoutSeconds: number;
    max: number;
    /** How long a connection is used; without it, until it is closed. */
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
    // A function, because an empty password would be looked up in PGPASSWORD.
    password: () => config.password ?? "",
    // The sockets come with TLS where it is wanted.
    ssl: false,
    max: options.max,
    connect_timeout: options.connectTimeoutSeconds,
    idle_timeout: options.max === 1 ? 0 : 30,
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

/** Rows of the last statement of a script, or of the only one. */
export function lastRows<T extends Row>(result: unknown): T[] {
  const sets = result as T[] | T[][];
  return ("command" in sets ? sets : sets.at(-1)) as T[];
}

/** A setting that the server reported when the connection began. */
export function parameterOf(client: Client, name: string): string {
  return (client.parameters as Record<string, string | undefined>)[name] ?? "";
}

/** The lines of one client. The driver forgets a socket that is not connected yet. */
export class Lines {
  readonly #config: DatabaseConfig;
  readonly #timeoutSeconds: number;
  readonly #open = new Set<Line>();
  #fruitless = 0;
  #isDestroyed = false;
  /** Whether one of the lines was ready for a statement. */
  isReady = false;

  constructor(config: DatabaseConfig, timeoutSeconds: number) {
    this.#config = config;
    this.#timeoutSeconds = timeoutSeconds;
  }

  /**
   * Opens one more line.
   *
   * The driver dials again, without end and at once, where a server closes the
   * connection before it is ready. So the fourth time in a row fails.
   */
  dial = async (): Promise<net.Socket> => {
    // The driver dials in a later turn, when nobody may want the line any more.
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
    const line = new Line(
      this.#config,
      this.#timeoutSeconds,
      () => {
        this.#fruitless = 0;
        this.isReady = true;
      },
    );
    this.#open.add(line);
    line.raw.once("close", () => this.#open.delete(line));
    return await line.socket;
  };

  /** Closes all lines at once. */
  destroy(): void {
    this.#isDestroyed = true;
    for (const line of this.#open) line.destroy();
  }
}

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
