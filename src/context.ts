/**
 * The context of a process, and the options of its connections.
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
  /** The warehouse, for all statements outside of loads. */
  readonly warehouse: Pool;
  readonly log: Logger;
  /** The name of this process in the history. */
  readonly workerId: string;
  /** Starts the delivery of finished events to files and endpoints. Does not wait, and never throws. */
  readonly deliver: () => void;
  /** Records new destinations of events, before further events exist. */
  readonly registerPublishers: () => Promise<void>;
}

/** Returns the options for the sessions of a run or of another named task. */
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
