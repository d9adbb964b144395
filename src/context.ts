/**
 * What a process works with, and the options of its connections.
 *
 * @module
 */
import type { Logger } from "@logtape/logtape";
import type { Config } from "./config/config.ts";
import { APPLICATION_NAME } from "./identity.ts";
import type { Pool } from "./postgres/pool.ts";
import type { ConnectionOptions } from "./postgres/session.ts";

/** The context of a process. Created once. */
export interface AppContext {
  readonly config: Config;
  /** The warehouse, for everything that is not a load. */
  readonly warehouse: Pool;
  readonly log: Logger;
  /** Names this process in the history. */
  readonly workerId: string;
  /** Begins to hand finished events to files and endpoints; must not wait or throw. */
  readonly deliver: () => void;
}

/** How the sessions of a run, or of something else by its name, connect. */
export function connectionOf(
  config: Config,
  name: string,
  signal?: AbortSignal,
): ConnectionOptions {
  return {
    applicationName: `${APPLICATION_NAME}/${name}`,
    connectTimeoutSeconds: config.connectTimeoutSeconds,
    stallTimeoutSeconds: config.stallTimeoutSeconds,
    ...(signal ? { signal } : {}),
  };
}
