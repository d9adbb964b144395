/** Looks up watched runs in the history. All streams share one statement a second. */
import { abortable } from "@std/async/abortable";
import { delay } from "@std/async/delay";
import type { Pool } from "../../postgres/pool.ts";
import { findRun, findRuns, type RunDetails } from "../../runs/history.ts";

/** Milliseconds between two lookups. */
const POLL_MILLISECONDS = 1000;

/** A watched run, or `"deleted"`, or `undefined` while the warehouse does not answer. */
type Found = RunDetails | "deleted" | undefined;

/** The runs that streams watch. */
export class StoredRuns {
  readonly #warehouse: Pool;
  #waiting = new Map<string, PromiseWithResolvers<Found>>();
  #isPolling = false;

  constructor(warehouse: Pool) {
    this.#warehouse = warehouse;
  }

  /** Waits for the next lookup, or for the signal. Returns the result. */
  async next(runId: string, signal: AbortSignal): Promise<Found> {
    const waiting = this.#waiting.get(runId) ??
      Promise.withResolvers<Found>();
    this.#waiting.set(runId, waiting);
    void this.#poll();
    return await abortable(waiting.promise, signal).catch(() => undefined);
  }

  /** Looks up a run now. Returns `undefined` without a run or without an answer of the warehouse. */
  async find(runId: string): Promise<RunDetails | undefined> {
    return await findRun(this.#warehouse, runId).catch(() => undefined);
  }

  /** Looks up all watched runs until no stream waits. */
  async #poll(): Promise<void> {
    if (this.#isPolling) return;
    this.#isPolling = true;
    while (this.#waiting.size > 0) {
      const waiting = this.#waiting;
      this.#waiting = new Map();
      const runs = await findRuns(this.#warehouse, [...waiting.keys()])
        .catch(() => undefined);
      for (const [id, { resolve }] of waiting) {
        resolve(
          runs && (runs.find((run) => run.run_id === id) ?? "deleted"),
        );
      }
      await delay(POLL_MILLISECONDS);
    }
    this.#isPolling = false;
  }
}
