/**
 * The service. Wires the HTTP edge, the schedule and the channel to the
 * loader, and sees to an orderly end.
 *
 * @module
 */
import { delay } from "@std/async/delay";
import { Pool } from "./src/postgres/pool.ts";
import { Dispatcher } from "./src/service/dispatcher.ts";
import { asServiceError, ServiceError } from "./src/errors.ts";
import { lastSuccess } from "./src/runs/history.ts";
import { createApp } from "./src/http/app.ts";
import { isLoopback } from "./src/http/middleware/host.ts";
import { listen } from "./src/http/server.ts";
import { LiveRuns } from "./src/service/live_runs.ts";
import { sharedHealthCheck } from "./src/service/health.ts";
import { connectionOf, type Service } from "./src/context.ts";
import { Metrics } from "./src/service/metrics.ts";
import { migrate } from "./src/runs/schema.ts";
import { Deliverer, publisherNames } from "./src/delivery/deliverer.ts";
import {
  registerPublishers,
  undeliveredEvents,
} from "./src/delivery/outbox.ts";
import { prepareFiles } from "./src/delivery/file.ts";
import { listenForTriggers, startSchedule } from "./src/service/schedule.ts";
import { VERSION } from "./src/identity.ts";

/** Seconds between two attempts to reach the databases at the start. */
const RETRY_SECONDS = 2;

/** Seconds that a run gets to be put on record when SHUTDOWN_GRACE is over. */
const RECORD_SECONDS = 5;

/** Seconds that open requests get after the last run has ended, and then its event to be delivered. */
const CLOSE_SECONDS = 2;

const DAY_MILLISECONDS = 86_400_000;

if (import.meta.main) {
  const { main } = await import("./cli.ts");
  Deno.exit(await main(["serve", ...Deno.args]));
}

/** What the service is handed by the process. */
export interface ServeOptions {
  readonly service: Service;
  /** Begins the orderly end. */
  readonly signal: AbortSignal;
  readonly isTraced: boolean;
  /** Removes what is too old to keep; never throws. */
  readonly prune: () => Promise<void>;
}

/**
 * Serves until the signal.
 *
 * @throws {ServiceError} `configuration` when it must not or cannot listen.
 */
export async function serve(options: ServeOptions): Promise<number> {
  const { signal, prune } = options;
  const { config, log, warehouse } = options.service;
  refuseOpenDoor(options.service);
  await prepareFiles(config);
  await using source = new Pool(config.olist, {
    max: 1,
    connectTimeoutSeconds: config.connectTimeoutSeconds,
    stallTimeoutSeconds: config.stallTimeoutSeconds,
  });
  const live = new LiveRuns();
  const tracer = options.isTraced
    ? (await import("./src/service/tracing.ts")).traceRuns(VERSION)
    : undefined;
  const deliverer = new Deliverer(
    options.service,
    (...outcome) => metrics.delivery(...outcome),
  );
  const service: Service = {
    ...options.service,
    deliver() {
      deliverer.wake();
      void prune();
    },
  };
  const dispatcher: Dispatcher = new Dispatcher(service, {
    onStart(run) {
      live.begin(run.id);
      metrics.runStarted(run.id);
      tracer?.onStart(run);
    },
    onProgress(runId, progress) {
      live.update(runId, progress);
      tracer?.onProgress(runId, progress);
    },
    onEnd(event) {
      live.end(event);
      metrics.runEnded(event);
      tracer?.onEnd(event);
    },
  });
  const metrics = new Metrics({
    pools: { olist: source, dwh: warehouse },
    isLoading: () => dispatcher.isLoading,
    lastSuccess: () => lastSuccess(warehouse),
    undelivered: () => undeliveredEvents(warehouse, publisherNames(config)),
  });
  let isReady = false;
  const streams = new AbortController();
  const app = createApp({
    service,
    health: sharedHealthCheck(source, warehouse),
    dispatcher,
    live,
    metrics,
    isReady: () => isReady,
    shutdown: streams.signal,
  });
  const server = await listen({
    hostname: config.host,
    port: config.port,
    app,
    log,
  });
  const background = (async () => {
    await prepareWarehouse(service, signal);
    if (signal.aborted) return;
    isReady = true;
    log.info("Ready for loads");
    const triggers = { config, log, dispatcher };
    startSchedule(triggers, signal);
    const daily = setInterval(() => void prune(), DAY_MILLISECONDS);
    await Promise.all([
      deliverer.run(signal),
      dispatcher.resume(signal),
      listenForTriggers(triggers, signal),
    ]);
    clearInterval(daily);
  })();
  await new Promise<void>((done) => {
    if (signal.aborted) return done();
    signal.addEventListener("abort", () => done(), { once: true });
  });
  log.info("Stopping: no more loads are taken");
  // Streams would keep the server open for ever.
  streams.abort();
  const isDrained = await endsWithin(
    config.shutdownGraceSeconds + RECORD_SECONDS,
    dispatcher.drain(config.shutdownGraceSeconds),
  );
  if (!isDrained) {
    log.warn(
      "The last run did not end in time: the next load puts on record what became of it",
    );
  }
  await endsWithin(CLOSE_SECONDS, server.shutdown(), background);
  // What the last run announced; the rest is left to the next process.
  const delivered = deliverer.deliver(
    CLOSE_SECONDS,
    AbortSignal.timeout(CLOSE_SECONDS * 1000),
  );
  await endsWithin(CLOSE_SECONDS, delivered, source[Symbol.asyncDispose]());
  log.info("Stopped");
  return 0;
}

/** Waits until all the work has ended, and no longer than `seconds`; returns whether it has. */
async function endsWithin(
  seconds: number,
  ...work: readonly Promise<unknown>[]
): Promise<boolean> {
  const timer = new AbortController();
  try {
    return await Promise.race([
      Promise.all(work).then(() => true),
      // A database that has stopped to answer may be waited for much longer.
      delay(seconds * 1000, { signal: timer.signal }).then(() => false),
    ]);
  } finally {
    timer.abort();
  }
}

/** @throws {ServiceError} `configuration` when anybody on the network could ask for loads. */
function refuseOpenDoor({ config, log }: Service): void {
  if (isLoopback(config.host) || config.apiToken) return;
  if (config.allowUnauthenticated) {
    log.warn("Anybody who reaches {host} can ask for loads", {
      host: config.host,
    });
    return;
  }
  throw new ServiceError(
    "configuration",
    `Cannot start: HOST=${config.host} is beyond loopback and there is no API_TOKEN`,
    {
      remedy:
        "Set API_TOKEN or API_TOKEN_FILE, or ALLOW_UNAUTHENTICATED=true where something else guards the port.",
    },
  );
}

/** Brings the warehouse's schema up to date, however long the warehouse takes to come. */
async function prepareWarehouse(
  { config, warehouse, log }: Service,
  signal: AbortSignal,
): Promise<void> {
  while (!signal.aborted) {
    try {
      await migrate(warehouse, connectionOf(config, "migrate", signal));
      await registerPublishers(warehouse, publisherNames(config));
      return;
    } catch (error) {
      if (signal.aborted) return;
      log.warn("Waiting for the warehouse: {error}", {
        error: asServiceError(error).line,
      });
      await delay(RETRY_SECONDS * 1000, { signal }).catch(() => {});
    }
  }
}
