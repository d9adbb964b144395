/**
 * Starts the parts of the service and stops them in order. The parts are HTTP,
 * schedule, channel and deliveries.
 */
import { once } from "node:events";
import { delay } from "@std/async/delay";
import { isLoopback } from "./config/loopback.ts";
import { type AppContext, connectionOf } from "./context.ts";
import {
  Deliverer,
  prepareDeliveries,
  publisherNames,
} from "./delivery/deliverer.ts";
import { undeliveredEvents } from "./delivery/outbox.ts";
import { prune } from "./delivery/retention.ts";
import { asServiceError, ServiceError } from "./errors.ts";
import { createApp } from "./http/app.ts";
import { listen } from "./http/server.ts";
import { Pool } from "./postgres/pool.ts";
import { lastSuccess } from "./runs/history.ts";
import type { RunObserver } from "./runs/run_observer.ts";
import { migrate } from "./runs/schema.ts";
import { namesOf } from "./tables/declaration.ts";
import { Dispatcher } from "./service/dispatcher.ts";
import { sharedHealthCheck } from "./service/health.ts";
import { LiveRuns } from "./service/live_runs.ts";
import { Metrics } from "./service/metrics.ts";
import { listenForTriggers } from "./service/notify_listener.ts";
import { startSchedule } from "./service/schedule.ts";
import { startTimeout } from "./timeout.ts";

/** Seconds between two attempts to reach the warehouse at startup. */
const RETRY_SECONDS = 2;

/** Seconds to record the last run after SHUTDOWN_GRACE. */
const RECORD_SECONDS = 5;

/** Seconds for open requests to end, and then for the last event to be delivered. */
const CLOSE_SECONDS = 2;

const DAY_MILLISECONDS = 86_400_000;

/**
 * Serves until the signal. Returns the exit code.
 *
 * @throws {ServiceError} `configuration` when the service must not or cannot listen.
 */
export async function serve(options: {
  readonly app: AppContext;
  /** Stops the service. */
  readonly signal: AbortSignal;
  readonly isTraced: boolean;
}): Promise<number> {
  const { signal } = options;
  const { config, log, warehouse } = options.app;
  requireProtection(options.app);
  await prepareDeliveries(config);
  // A check must not wait for other statements, nor close their connections when it gives up.
  await using source = new Pool(config.olist, { ...config, max: 1 });
  await using checked = new Pool(config.dwh, { ...config, max: 1 });
  const metrics: Metrics = new Metrics({
    tables: namesOf(config.tables),
    pools: { olist: source, dwh: warehouse },
    isLoading: () => dispatcher.isLoading,
    lastSuccess: () => lastSuccess(warehouse),
    undelivered: () => undeliveredEvents(warehouse, publisherNames(config)),
  });
  const deliverer = new Deliverer(
    options.app,
    (...outcome) => metrics.delivery(...outcome),
  );
  const app: AppContext = {
    ...options.app,
    deliver() {
      deliverer.wake();
      void prune(app);
    },
  };
  const live = new LiveRuns();
  const observers: RunObserver[] = [live, metrics];
  if (options.isTraced) {
    const { RunTracer } = await import("./service/tracing.ts");
    observers.push(new RunTracer());
  }
  const dispatcher = new Dispatcher(app, observers);
  let isReady = false;
  let startFailure: ServiceError | undefined;
  const streams = new AbortController();
  const closeServer = await listen({
    hostname: config.host,
    port: config.port,
    app: createApp({
      ...app,
      health: sharedHealthCheck(source, checked),
      dispatcher,
      live,
      metrics,
      isReady: () => isReady,
      startFailure: () => startFailure,
      shutdown: streams.signal,
    }),
    log,
  });
  const background = (async () => {
    await prepareWarehouse(app, signal, (failure) => startFailure = failure);
    if (signal.aborted) return;
    startFailure = undefined;
    isReady = true;
    log.info("Ready for loads");
    const triggers = { config, log, dispatcher };
    startSchedule(triggers, signal);
    const daily = setInterval(() => void prune(app), DAY_MILLISECONDS);
    await Promise.all([
      deliverer.run(signal),
      dispatcher.resume(signal),
      listenForTriggers(triggers, signal),
    ]);
    clearInterval(daily);
  })();
  if (!signal.aborted) await once(signal, "abort");
  log.info("Stopping: the service accepts no more loads");
  const { shutdownGraceSeconds } = config;
  const isDrained = await endsWithin(
    shutdownGraceSeconds + RECORD_SECONDS,
    dispatcher.drain(shutdownGraceSeconds),
  );
  if (!isDrained) {
    log.warn("The last run did not end in time. The next load records its end");
  }
  // An open stream keeps the server open.
  streams.abort();
  await endsWithin(CLOSE_SECONDS, closeServer(), background);
  // The next process delivers the rest.
  const delivered = deliverer.deliver(
    CLOSE_SECONDS,
    AbortSignal.timeout(CLOSE_SECONDS * 1000),
  );
  const closed = [source, checked].map((pool) => pool[Symbol.asyncDispose]());
  await endsWithin(CLOSE_SECONDS, delivered, ...closed);
  log.info("Stopped");
  return 0;
}

/** Waits until all the work has ended, at most `seconds`. Returns whether it has. */
async function endsWithin(
  seconds: number,
  ...work: readonly Promise<unknown>[]
): Promise<boolean> {
  const limit = Promise.withResolvers<boolean>();
  // A database that stopped answering can take much longer.
  using _ = startTimeout(seconds, () => limit.resolve(false));
  return await Promise.race([
    Promise.all(work).then(() => true),
    limit.promise,
  ]);
}

/** @throws {ServiceError} `configuration` when any client on the network could start loads. */
function requireProtection({ config, log }: AppContext): void {
  if (isLoopback(config.host) || config.apiToken) return;
  if (config.allowUnauthenticated) {
    log.warn(
      "Authentication is disabled: any client that can reach {host} can start loads",
      { host: config.host },
    );
    return;
  }
  throw new ServiceError(
    "configuration",
    `Cannot start: other machines can reach HOST=${config.host}, and API_TOKEN is not set`,
    {
      remedy:
        "Set API_TOKEN or API_TOKEN_FILE. Set ALLOW_UNAUTHENTICATED=true if a firewall or a proxy protects the port.",
    },
  );
}

/** Waits for the warehouse and updates its schema. */
async function prepareWarehouse(
  { config, warehouse, log, registerPublishers }: AppContext,
  signal: AbortSignal,
  failed: (failure: ServiceError) => void,
): Promise<void> {
  while (!signal.aborted) {
    try {
      await migrate(warehouse, connectionOf(config, "migrate", signal));
      await registerPublishers();
      return;
    } catch (error) {
      if (signal.aborted) return;
      const failure = asServiceError(error);
      failed(failure);
      log.warn("Waiting for the warehouse: {error}", { error: failure.line });
      await delay(RETRY_SECONDS * 1000, { signal }).catch(() => {});
    }
  }
}
