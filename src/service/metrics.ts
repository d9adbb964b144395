/**
 * Metrics for Prometheus. Labels hold words of closed sets only, never an ID.
 * The number of series is therefore bounded.
 */
import process from "node:process";
import { Counter, Gauge, Histogram, Registry } from "prom-client";
import { VERSION } from "../identity.ts";
import { entriesOf, type LoadEvent, TRIGGERS } from "../runs/event.ts";
import type { Run } from "../runs/run.ts";
import type { RunObserver } from "../runs/run_observer.ts";

/** The sources of the numbers that each scrape looks up. */
interface MetricsSources {
  /** Names of the declared tables. */
  readonly tables: readonly string[];
  readonly pools: Readonly<
    Record<string, { readonly inFlight: number; readonly max: number }>
  >;
  readonly isLoading: () => boolean;
  /** Unix time in seconds. May reject. */
  readonly lastSuccess: () => Promise<number | undefined>;
  /** Undelivered events by publisher. May reject. */
  readonly undelivered: () => Promise<Readonly<Record<string, number>>>;
}

/** The metrics of a process. */
export class Metrics implements RunObserver {
  readonly #registry = new Registry();
  readonly #runs = new Counter({
    name: "marketing_data_runs_total",
    help: "Runs that this process finished",
    labelNames: ["status", "trigger"],
    registers: [this.#registry],
  });
  readonly #seconds = new Histogram({
    name: "marketing_data_run_duration_seconds",
    help: "Duration of runs, from start to event",
    labelNames: ["status"],
    buckets: [0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800],
    registers: [this.#registry],
  });
  readonly #rows = new Counter({
    name: "marketing_data_rows_total",
    help: "Rows that loads wrote to the warehouse",
    labelNames: ["table", "operation"],
    registers: [this.#registry],
  });
  readonly #bytes = new Counter({
    name: "marketing_data_copied_bytes_total",
    help: "Bytes that loads copied from source to warehouse",
    labelNames: ["table"],
    registers: [this.#registry],
  });
  readonly #checks = new Counter({
    name: "marketing_data_checks_total",
    help:
      "Declared checks of loaded tables that held, and loads of tables that a check stopped",
    labelNames: ["table", "outcome"],
    registers: [this.#registry],
  });
  readonly #deliveries = new Counter({
    name: "marketing_data_deliveries_total",
    help: "Attempts of this process to deliver events, by outcome",
    labelNames: ["publisher", "outcome"],
    registers: [this.#registry],
  });
  readonly #http = new Histogram({
    name: "marketing_data_http_request_duration_seconds",
    help: "Duration of HTTP requests by route pattern",
    labelNames: ["method", "route", "status"],
    buckets: [0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10, 60],
    registers: [this.#registry],
  });
  readonly #startedAt = new Map<string, number>();

  constructor(sources: MetricsSources) {
    const registers = [this.#registry];
    new Gauge({
      name: "marketing_data_build_info",
      help: "Always 1. The labels are the versions of the program and of Deno",
      labelNames: ["version", "deno"],
      registers,
    }).set({ version: VERSION, deno: Deno.version.deno }, 1);
    new Gauge({
      name: "process_start_time_seconds",
      help: "Unix time at which the process started",
      registers,
    }).set(performance.timeOrigin / 1000);
    new Gauge({
      name: "process_resident_memory_bytes",
      help: "Memory of the process that is in RAM",
      registers,
      collect() {
        this.set(Deno.memoryUsage().rss);
      },
    });
    new Counter({
      name: "process_cpu_seconds_total",
      help: "Processor time of the process, in user and system mode",
      registers,
      collect() {
        const { user, system } = process.cpuUsage();
        this.reset();
        this.inc((user + system) / 1e6);
      },
    });
    // A rate needs the series to start at 0, or it misses the first run.
    for (const status of ["success", "failure"]) {
      for (const trigger of TRIGGERS) this.#runs.inc({ status, trigger }, 0);
    }
    for (const table of sources.tables) {
      this.#rows.inc({ table, operation: "insert" }, 0);
      this.#rows.inc({ table, operation: "delete" }, 0);
      this.#bytes.inc({ table }, 0);
      this.#checks.inc({ table, outcome: "held" }, 0);
      this.#checks.inc({ table, outcome: "failed" }, 0);
    }
    let last: number | undefined;
    new Gauge({
      name: "marketing_data_last_success_timestamp_seconds",
      help: "Unix time at which a run last succeeded, by any process",
      registers,
      async collect() {
        last = await sources.lastSuccess().catch(() => last);
        // A gauge begins at 0, which would be a success in 1970.
        if (last === undefined) this.remove();
        else this.set(last);
      },
    });
    new Gauge({
      name: "marketing_data_undelivered_events",
      help: "Events that are not delivered to a publisher yet",
      labelNames: ["publisher"],
      registers,
      async collect() {
        const counts = await sources.undelivered().catch(() => ({}));
        for (const [publisher, count] of Object.entries(counts)) {
          this.set({ publisher }, count);
        }
      },
    });
    new Gauge({
      name: "marketing_data_load_in_progress",
      help: "1 while this process loads",
      registers,
      collect() {
        this.set(sources.isLoading() ? 1 : 0);
      },
    });
    new Gauge({
      name: "marketing_data_pool_statements",
      help: "Statements that run or wait for a connection",
      labelNames: ["database"],
      registers,
      collect() {
        for (const [database, pool] of Object.entries(sources.pools)) {
          this.set({ database }, pool.inFlight);
        }
      },
    });
    const size = new Gauge({
      name: "marketing_data_pool_size",
      help: "Maximum number of connections in the pool",
      labelNames: ["database"],
      registers,
    });
    for (const [database, pool] of Object.entries(sources.pools)) {
      size.set({ database }, pool.max);
    }
  }

  runStarted(run: Pick<Run, "id">): void {
    this.#startedAt.set(run.id, performance.now());
  }

  runEnded(event: LoadEvent): void {
    const { status, trigger } = event;
    this.#runs.inc({ status, trigger });
    const startedAt = this.#startedAt.get(event.run_id);
    this.#startedAt.delete(event.run_id);
    if (startedAt !== undefined) {
      this.#seconds.observe({ status }, (performance.now() - startedAt) / 1000);
    }
    for (const entry of entriesOf(event)) {
      const { table } = entry;
      if (entry.status === "failure") {
        if (entry.code === "check_failed") {
          this.#checks.inc({ table, outcome: "failed" });
        }
        continue;
      }
      this.#rows.inc({ table, operation: "insert" }, entry.rows_inserted);
      this.#rows.inc({ table, operation: "delete" }, entry.rows_deleted);
      this.#bytes.inc({ table }, entry.bytes_copied);
    }
    if (event.status === "failure") return;
    for (const { table, checks = [] } of event.results.integrity_checks) {
      this.#checks.inc({ table, outcome: "held" }, checks.length);
    }
  }

  delivery(publisher: string, outcome: string, events: number): void {
    this.#deliveries.inc({ publisher, outcome }, events);
  }

  request(method: string, route: string, status: number, seconds: number) {
    const known = METHODS.has(method) ? method : "other";
    this.#http.observe({ method: known, route, status }, seconds);
  }

  /** Returns the metrics in the text format of Prometheus, and its media type. */
  async text(): Promise<{ body: string; contentType: string }> {
    return {
      body: await this.#registry.metrics(),
      contentType: this.#registry.contentType,
    };
  }
}

const METHODS = new Set(["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]);
