/**
 * Opens connections for the clients of the driver, and limits their time.
 *
 * @module
 */
import type net from "node:net";
import type { DatabaseConfig } from "../config/config.ts";
import {
  closeNow,
  createClient,
  isServerError,
  send,
  type ServerErrorFields,
} from "./driver.ts";
import { Line } from "./line.ts";
import type { Row } from "./sql.ts";

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
  const client = createClient(config, { ...options, max: 1 }, lines.dial);
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
