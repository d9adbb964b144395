/**
 * Observers of the runs of a process, such as metrics, traces and the dashboard.
 *
 * @module
 */
import type { Logger } from "@logtape/logtape";
import { asServiceError } from "../errors.ts";
import type { Progress } from "../sync/progress.ts";
import type { LoadEvent } from "./event.ts";
import type { Run } from "./run.ts";

/** Observes the runs of a process. Its methods must not wait. */
export interface RunObserver {
  runStarted?(run: Run): void;
  progress?(runId: string, progress: Progress): void;
  /** Does the work of a run as a part of its trace. */
  within?<T>(runId: string, work: () => T): T;
  /** Returns the W3C Trace Context of a run that this observer traces. */
  traceparent?(runId: string): string | undefined;
  runEnded?(event: LoadEvent): void;
}

/**
 * Returns one observer that calls all others in order. An observer that throws
 * affects neither the run nor the other observers. Its first failure is logged.
 */
export function combineObservers(
  observers: readonly RunObserver[],
  log: Logger,
): Required<RunObserver> {
  const failed = new Set<RunObserver>();
  const notify = (call: (observer: RunObserver) => void) => {
    for (const observer of observers) {
      try {
        call(observer);
      } catch (error) {
        if (failed.has(observer)) continue;
        failed.add(observer);
        log.error("{observer} cannot observe a run: {error}", {
          observer: observer.constructor.name,
          error: asServiceError(error).message,
        });
      }
    }
  };
  return {
    runStarted: (run) => notify((observer) => observer.runStarted?.(run)),
    within: (runId, work) =>
      observers.reduce(
        (inner, observer) =>
          observer.within ? () => observer.within!(runId, inner) : inner,
        work,
      )(),
    traceparent: (runId) => {
      let found: string | undefined;
      notify((observer) => found ??= observer.traceparent?.(runId));
      return found;
    },
    progress: (runId, progress) =>
      notify((observer) => observer.progress?.(runId, progress)),
    runEnded: (event) => notify((observer) => observer.runEnded?.(event)),
  };
}
