/**
 * A load in the process of the test. A test can pause it at the beginning of a
 * phase. The network then stands still until the test has caused a fault.
 *
 * @module
 */
import { assert } from "@std/assert";
import { delay } from "@std/async/delay";
import { publisherNames } from "../../src/delivery/deliverer.ts";
import { registerPublishers } from "../../src/delivery/outbox.ts";
import { Pool } from "../../src/postgres/pool.ts";
import { asServiceError, ERRORS, type ServiceError } from "../../src/errors.ts";
import type { LoadEvent, Trigger } from "../../src/runs/event.ts";
import { load, type LoadOptions } from "../../src/load/load.ts";
import type { AppContext } from "../../src/context.ts";
import { setUpLogging } from "../../src/log.ts";
import type { RunOptions } from "../../src/runs/run.ts";
import { namesOf } from "../../src/tables/declaration.ts";
import { MARKETING_TABLES } from "../../src/tables/marketing.ts";
import type { Phase } from "../../src/sync/progress.ts";
import { configOf, type Databases, PASSWORD } from "./databases.ts";
import type { Finished } from "./program.ts";
import { proxied, type Proxies } from "./phases.ts";

/** The end of a load: its event, or an error when there is no run. */
export interface Outcome {
  readonly event?: LoadEvent;
  readonly error?: ServiceError;
  /** The log of the load. */
  readonly log: string;
  /** The times of the log records, by `performance.now()`. */
  readonly logged: readonly { readonly line: string; readonly at: number }[];
}

/** A running load. */
interface LocalLoad {
  readonly outcome: Promise<Outcome>;
  /** Stops the load, as SIGTERM does. */
  readonly abort: (reason: ServiceError) => void;
}

/** Starts a load with a separate context, like that of a process. */
export function startLoad(
  db: Pick<Databases, "environment">,
  changes: Readonly<Record<string, string>> = {},
  hooks: Omit<LoadOptions, "signal"> & {
    readonly options?: Partial<RunOptions>;
    readonly trigger?: Trigger;
  } = {},
): LocalLoad {
  const controller = new AbortController();
  const config = configOf(db, changes);
  let text = "";
  const logged: { line: string; at: number }[] = [];
  const log = setUpLogging({
    level: "DEBUG",
    format: "text",
    colors: false,
    mask: (line) => line,
    write: (line) => {
      text += line;
      logged.push({ line, at: performance.now() });
    },
  });
  const run = async (): Promise<Outcome> => {
    await using warehouse = new Pool(config.dwh, { ...config, max: 4 });
    const context: AppContext = {
      config,
      warehouse,
      log,
      workerId: `test ${crypto.randomUUID()}`,
      deliver: () => {},
      registerPublishers: () =>
        registerPublishers(warehouse, publisherNames(config)),
    };
    const outcome: Omit<Outcome, "log" | "logged"> = await load(
      context,
      hooks.trigger ?? "cli",
      {
        tables: namesOf(MARKETING_TABLES),
        mode: config.loadMode,
        atomic: config.loadAtomic,
        recreate: false,
        allowShrink: false,
        ...hooks.options,
      },
      { ...hooks, signal: controller.signal },
    ).then(
      (event) => ({ event }),
      (error) => ({ error: asServiceError(error) }),
    );
    const printed = JSON.stringify(outcome.event ?? "") +
      (outcome.error?.line ?? "") + text;
    assert(!printed.includes(PASSWORD), "the password was told");
    return { ...outcome, log: text, logged };
  };
  return { outcome: run(), abort: (reason) => controller.abort(reason) };
}

/** Runs a load to its end. */
export function loadHere(
  db: Pick<Databases, "environment">,
  changes: Readonly<Record<string, string>> = {},
): Promise<Outcome> {
  return startLoad(db, changes).outcome;
}

/** A paused load. */
export interface PausedLoad extends LocalLoad, AsyncDisposable {
  readonly runId: string;
  readonly network: Proxies;
  /** Resumes the network. */
  resume(): void;
}

/** The point at which a load is paused. */
export interface Moment {
  readonly table: string;
  readonly phase: Phase;
}

/**
 * Starts a load and pauses it at the beginning of the phase. From then on, neither
 * its requests nor the answers of the servers arrive.
 */
export async function pauseLoad(
  db: Databases,
  { table, phase }: Moment,
  changes: Readonly<Record<string, string>> = {},
  atOnce?: (network: Proxies) => void,
): Promise<PausedLoad> {
  const network = proxied(db);
  const reached = Promise.withResolvers<string>();
  const running = startLoad({ environment: network.environment }, changes, {
    progress(runId, progress) {
      if (progress.table !== table || progress.phase !== phase) return;
      if (hasPaused) return;
      hasPaused = true;
      for (const proxy of [network.source, network.warehouse]) {
        proxy.faults = { ...proxy.faults, stalled: ["up", "down"] };
      }
      atOnce?.(network);
      reached.resolve(runId);
    },
  });
  let hasPaused = false;
  const runId = await Promise.race([
    reached.promise,
    running.outcome.then((outcome) => {
      throw new Error(
        `ended before ${table}: ${phase}: ${
          sayOutcome(outcome)
        } ${outcome.log}`,
      );
    }),
  ]);
  return {
    ...running,
    runId,
    network,
    resume() {
      for (const proxy of [network.source, network.warehouse]) {
        proxy.faults = { ...proxy.faults, stalled: [] };
      }
    },
    async [Symbol.asyncDispose]() {
      await network[Symbol.asyncDispose]();
      await running.outcome;
    },
  };
}

/** Returns the exit code of the command line for this outcome. */
export function exitOf({ event, error }: Outcome): number {
  const code = error?.code ?? codeOf(event!);
  return code === undefined ? 0 : ERRORS[code].exit;
}

/** Returns the code of the first table that failed by itself, or `undefined` after a success. */
export function codeOf(event: LoadEvent) {
  if (event.status === "success") return undefined;
  const codes = event.details.results.flatMap((r) =>
    r.status === "failure" ? [r.code] : []
  );
  return codes.find((code) => code !== "rolled_back") ?? codes[0]!;
}

/** Returns the exit and error code of an outcome, as the table in the docs shows them. */
export function sayOutcome(outcome: Outcome | Finished): string {
  if ("stdout" in outcome) {
    const [line] = outcome.stdout.split("\n");
    const json = line?.startsWith("{") ? JSON.parse(line) : {};
    const code = json.code ??
      (json.details ? codeOf(json as LoadEvent) : undefined);
    return [`exit ${outcome.code}`, code].filter(Boolean).join(", ");
  }
  const code = outcome.error?.code ?? codeOf(outcome.event!);
  return [`exit ${exitOf(outcome)}`, code].filter(Boolean).join(", ");
}

/** Polls a condition until it is true or the load has ended. */
export async function duringLoad(
  running: LocalLoad,
  condition: () => Promise<boolean>,
): Promise<void> {
  let ended: Outcome | undefined;
  void running.outcome.then((outcome) => ended = outcome);
  while (!await condition()) {
    if (ended) throw new Error(`it ended: ${sayOutcome(ended)} ${ended.log}`);
    await delay(10);
  }
}
