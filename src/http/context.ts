/** The context of HTTP requests. */
import type { Dispatcher } from "../service/dispatcher.ts";
import type { LiveRuns } from "../service/live_runs.ts";
import type { AppContext } from "../context.ts";
import type { ServiceError } from "../errors.ts";
import type { Health } from "../service/health.ts";
import type { Metrics } from "../service/metrics.ts";

/** The parts of the process that requests use. */
export interface HttpContext extends AppContext {
  /** Checks both databases. Callers at the same time share one check. */
  readonly health: () => Promise<Health>;
  readonly dispatcher: Dispatcher;
  readonly live: LiveRuns;
  readonly metrics: Metrics;
  /** Returns whether the schema of the history is up to date. */
  readonly isReady: () => boolean;
  /** Returns the last failure to update that schema, until it is up to date. */
  readonly startFailure: () => ServiceError | undefined;
  /** Ends the streams. */
  readonly shutdown: AbortSignal;
}
