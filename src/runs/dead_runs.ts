/** Closes runs without a load. */
import type { Logger } from "@logtape/logtape";
import { endBackends } from "../postgres/backends.ts";
import type { Queryable, Row } from "../postgres/sql.ts";
import { hasCode, ServiceError } from "../errors.ts";
import {
  failedEntry,
  failedEvent,
  failureLine,
  type LoadEvent,
  subjectOf,
} from "./event.ts";
import {
  closeRun,
  eventTime,
  IS_UNWANTED,
  loadedByRun,
  NOW,
} from "./record.ts";
import type { Config } from "../config/config.ts";

/** SQL of the columns of a run that {@linkcode closeUnfinished} needs. */
export const UNFINISHED =
  `id, trigger, state, to_json(tables) as tables, source_snapshot_at, ${NOW} as now,
  ${eventTime("started_at")} as "startedAt"`;

/**
 * Closes abandoned runs, each with its event. A queued run is abandoned when no
 * caller waits for it. A `running` one is abandoned when this caller holds the
 * service's lock, because then no process runs it.
 *
 * @param awaited ids of the runs that callers of this process wait for. A queued one
 * stays, also when its deadline is over.
 * @returns ids of the runs that were closed.
 */
export async function closeAbandonedRuns(
  queryable: Queryable,
  log: Logger,
  states: "queued" | "queued and running",
  config: Pick<Config, "tables" | "publicUrl">,
  awaited: readonly string[],
): Promise<readonly string[]> {
  const abandoned = await queryable.query(
    `select ${UNFINISHED} from marketing_data_service.run
     where state = 'queued' and ${IS_UNWANTED} and id <> all ($1::uuid[]) ${
      states === "queued" ? "" : "or state = 'running'"
    }
     order by seq`,
    [awaited],
  );
  const closed: string[] = [];
  for (const run of abandoned) {
    // A backend of the ended process may still commit. Its result is known when it ends.
    if (run.state === "running") await endBackends(queryable, run.id);
    const error = new ServiceError(
      "interrupted",
      run.state === "queued"
        ? `Run ${run.id} did not start before the maximum wait of its callers was over`
        : `Run ${run.id} was interrupted: the process that ran it ended or was suspended`,
    );
    if (!await closeUnfinished(queryable, run, error, 1, config)) continue;
    closed.push(run.id);
    log.warn("Run {run_id} was abandoned and is now interrupted", {
      run_id: run.id,
    });
  }
  return closed;
}

/**
 * Closes a run that fails for this reason. The tables that it has committed stay
 * successful.
 *
 * @param run the columns {@linkcode UNFINISHED}.
 * @returns its event, or `undefined` when its process has closed it, or another
 * caller has joined it.
 */
export async function closeUnfinished(
  queryable: Queryable,
  run: Row,
  error: ServiceError,
  attempts: number,
  config: Pick<Config, "tables" | "publicUrl">,
): Promise<LoadEvent | undefined> {
  const loaded = await loadedByRun(queryable, run.id);
  const entries = (run.tables as string[]).map((table) =>
    loaded.find((entry) => entry.table === table) ??
      failedEntry(config.tables, table, error, attempts)
  );
  const { now: timestamp, source_snapshot_at: sourceSnapshotAt } = run;
  const event = failedEvent(
    subjectOf(config, run, { timestamp, sourceSnapshotAt }),
    failureLine(entries),
    entries,
  );
  try {
    await closeRun(queryable, run.id, run.state, event);
    return event;
  } catch (error) {
    if (hasCode(error, "run_lost")) return undefined;
    throw error;
  }
}
