/** What the HTTP edge is handed. */
import type { Pool } from "../db.ts";
import type { Dispatcher } from "../dispatcher.ts";
import type { LiveRuns } from "../live_runs.ts";
import type { Service } from "../service.ts";
import type { Metrics } from "../metrics.ts";

/** The parts of the process that requests work with. */
export interface HttpContext {
  readonly service: Service;
  readonly source: Pool;
  readonly dispatcher: Dispatcher;
  readonly live: LiveRuns;
  readonly metrics: Metrics;
  /** False until the warehouse's schema is up to date. */
  readonly isReady: () => boolean;
  /** Ends what never ends by itself. */
  readonly shutdown: AbortSignal;
}
