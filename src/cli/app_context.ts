/**
 * Creates the context of a command: its log, its pool, and the deliveries after a
 * load.
 */
import type { Logger } from "@logtape/logtape";
import type { Config } from "../config/config.ts";
import type { Mask } from "../config/secrets.ts";
import type { AppContext } from "../context.ts";
import { Deliverer, publisherNames } from "../delivery/deliverer.ts";
import { registerPublishers } from "../delivery/outbox.ts";
import { prune } from "../delivery/retention.ts";
import { APPLICATION_NAME } from "../identity.ts";
import { captureConsole, consoleExport, setUpLogging } from "../log.ts";
import { Pool } from "../postgres/pool.ts";
import { consoleMode } from "./environment.ts";
import type { Output } from "./output.ts";

/** Seconds after a load in which deliveries may begin. The next process makes the other deliveries. */
const DELIVERY_SECONDS = 5;

/** Seconds after a signal in which deliveries may begin and must end. */
const STOPPED_DELIVERY_SECONDS = 2;

/** Starts the log that the configuration and the flags describe. */
export function startLogging(
  config: Config,
  output: Output,
  mask: Mask,
  write: (text: string) => void,
): Logger {
  const isText = config.logFormat === "text" ||
    (config.logFormat === "auto" && output.isInteractive);
  const log = setUpLogging({
    level:
      output.isQuiet && ["TRACE", "DEBUG", "INFO"].includes(config.logLevel)
        ? "WARNING"
        : config.logLevel,
    format: isText ? "text" : "json",
    colors: output.hasColors,
    mask,
    write,
    exportLine: consoleMode() === "replace" ? consoleExport() : undefined,
  });
  captureConsole(log);
  if (consoleMode() === "capture") {
    log.warn(
      "Logs are not exported, because Deno would print them twice. Set OTEL_DENO_CONSOLE=replace to export them, or OTEL_DENO_CONSOLE=ignore",
    );
  }
  return log;
}

/** Returns the context of the process. `released` closes it. */
export function createAppContext(
  config: Config,
  log: Logger,
  released: AsyncDisposableStack,
  signal: AbortSignal,
  maxConnections: number,
): AppContext {
  const warehouse = released.use(
    new Pool(config.dwh, { ...config, max: maxConnections }),
  );
  let delivered = Promise.resolve();
  // Wait for the deliveries before the connections are closed.
  released.defer(() => delivered);
  return {
    config,
    warehouse,
    log,
    // Processes in containers share their ids.
    workerId: `${APPLICATION_NAME} ${Deno.pid} ${crypto.randomUUID()}`,
    registerPublishers: () =>
      registerPublishers(warehouse, publisherNames(config)),
    deliver() {
      delivered = (async () => {
        // A load that a signal ended has an event, too.
        const limit = signal.aborted
          ? AbortSignal.timeout(STOPPED_DELIVERY_SECONDS * 1000)
          : signal;
        await new Deliverer({ config, warehouse, log })
          .deliver(DELIVERY_SECONDS, limit);
        await prune({ config, warehouse, log });
      })();
    },
  };
}
