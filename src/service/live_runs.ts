/**
 * What the runs of this process are doing at this moment, for those who watch.
 * Only the newest state is kept, so a watcher that is slow costs nothing.
 *
 * @module
 */
import type { LoadEvent } from "../runs/event.ts";
import type { Progress } from "../sync/progress.ts";

/** Runs that are over and still remembered, for watchers that have not seen the end. */
const REMEMBERED = 20;

/** The newest state of a run. */
export interface LiveRun {
  readonly tables: ReadonlyMap<string, Progress>;
  readonly event: LoadEvent | undefined;
  /** Settles with the next change. */
  readonly changed: Promise<void>;
}

interface MutableRun {
  tables: Map<string, Progress>;
  event: LoadEvent | undefined;
  change: PromiseWithResolvers<void>;
}

/** The runs of this process. */
export class LiveRuns {
  readonly #runs = new Map<string, MutableRun>();

  begin(runId: string): void {
    this.#runs.set(runId, {
      tables: new Map(),
      event: undefined,
      change: Promise.withResolvers(),
    });
    for (const [id, run] of this.#runs) {
      if (this.#runs.size <= REMEMBERED) break;
      if (run.event) this.#runs.delete(id);
    }
  }

  update(runId: string, progress: Progress): void {
    this.#change(runId, (run) => run.tables.set(progress.table, progress));
  }

  end(event: LoadEvent): void {
    this.#change(event.run_id, (run) => run.event = event);
  }

  /** The newest state, or `undefined` when the run is not one of this process. */
  get(runId: string): LiveRun | undefined {
    const run = this.#runs.get(runId);
    return run &&
      { tables: run.tables, event: run.event, changed: run.change.promise };
  }

  #change(runId: string, apply: (run: MutableRun) => void): void {
    const run = this.#runs.get(runId);
    if (!run) return;
    apply(run);
    run.change.resolve();
    run.change = Promise.withResolvers();
  }
}
