/** What the HTTP edge is handed. */
import type { Dispatcher } from "../service/dispatcher.ts";
import type { LiveRuns } from "../service/live_runs.ts";
import type { Service } from "../context.ts";
import type { Health } from "../service/health.ts";
import type { Metrics } from "../service/metrics.ts";

/** The parts of the process that requests work with. */
export interface HttpContext {
  readonly service: Service;
  /** Checks both databases. Requests that ask at the same time share one check. */
  readonly health: () => Promise<Health>;
  readonly dispatcher: Dispatcher;
  readonly live: LiveRuns;
  readonly metrics: Metrics;
  /** False until the warehouse's schema is up to date. */
  readonly isReady: () => boolean;
  /** Ends what never ends by itself. */
  readonly shutdown: AbortSignal;
}
