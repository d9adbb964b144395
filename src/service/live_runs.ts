/**
 * The current state of the runs of this process, for streams and pages. Only the
 * newest state is kept, so a slow reader costs nothing.
 */
import type { LoadEvent } from "../runs/event.ts";
import type { Run } from "../runs/run.ts";
import type { RunObserver } from "../runs/run_observer.ts";
import type { Progress } from "../sync/progress.ts";

/** Maximum number of runs. Finished runs stay for readers that have not seen the end. */
const MAX_RUNS = 20;

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
export class LiveRuns implements RunObserver {
  readonly #runs = new Map<string, MutableRun>();

  runStarted(run: Pick<Run, "id">): void {
    this.#runs.set(run.id, {
      tables: new Map(),
      event: undefined,
      change: Promise.withResolvers(),
    });
    for (const [id, run] of this.#runs) {
      if (this.#runs.size <= MAX_RUNS) break;
      if (run.event) this.#runs.delete(id);
    }
  }

  progress(runId: string, progress: Progress): void {
    this.#change(runId, (run) => run.tables.set(progress.table, progress));
  }

  runEnded(event: LoadEvent): void {
    this.#change(event.run_id, (run) => run.event = event);
  }

  /** Returns the newest state, or `undefined` for a run of another process. */
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
