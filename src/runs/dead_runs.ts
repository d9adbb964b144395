/** Closes runs that no process will end. */
import type { Logger } from "@logtape/logtape";
import { endBackends } from "../postgres/backends.ts";
import type { Queryable, Row } from "../postgres/sql.ts";
import { ServiceError } from "../errors.ts";
import {
  failedEntry,
  failedEvent,
  failureLine,
  runUrlOf,
  type TableEntry,
} from "./event.ts";
import {
  closeRun,
  eventTime,
  IS_UNWANTED,
  loadedByRun,
  NOW,
} from "./record.ts";
import type { Config } from "../config/config.ts";

/**
 * Closes abandoned runs, each with its event. A queued run is abandoned when no
 * caller waits for it. A `running` one is abandoned when this caller holds the
 * service's lock, because then no process runs it.
 *
 * @returns ids of the runs that were closed.
 */
export async function closeAbandonedRuns(
  queryable: Queryable,
  log: Logger,
  states: "queued" | "queued and running",
  config: Pick<Config, "tables" | "publicUrl">,
): Promise<readonly string[]> {
  const dead = await queryable.query(
    `select id, trigger, state, to_json(tables)::text as tables, source_snapshot_at, ${NOW} as now,
       ${eventTime("started_at")} as started_at
     from marketing_data_service.run
     where state = 'queued' and ${IS_UNWANTED} ${
      states === "queued" ? "" : "or state = 'running'"
    }
     order by seq`,
  );
  const closed: string[] = [];
  for (const row of dead) {
    if (!await interruptRun(queryable, row, config)) continue;
    closed.push(row.id);
    log.warn("Run {run_id} was abandoned and is now interrupted", {
      run_id: row.id,
    });
  }
  return closed;
}

async function interruptRun(
  queryable: Queryable,
  row: Row,
  config: Pick<Config, "tables" | "publicUrl">,
): Promise<boolean> {
  // A backend of the ended process may still commit. Its result is known when it ends.
  if (row.state === "running") await endBackends(queryable, row.id);
  const loaded = await loadedByRun(queryable, row.id);
  const error = new ServiceError(
    "interrupted",
    row.state === "queued"
      ? `Run ${row.id} did not start before its callers were gone`
      : `Run ${row.id} was interrupted: the process that ran it is gone`,
  );
  const entries = (JSON.parse(row.tables) as string[]).map((
    table,
  ): TableEntry =>
    loaded.find((entry) => entry.table === table) ??
      failedEntry(config.tables, table, error, 1)
  );
  try {
    await closeRun(queryable, row.id, row.state, {
      state: "interrupted",
      event: failedEvent(
        {
          runId: row.id,
          trigger: row.trigger,
          timestamp: row.now,
          sourceSnapshotAt: row.source_snapshot_at,
          startedAt: row.started_at,
          runUrl: runUrlOf(config, row.id),
        },
        failureLine(entries),
        entries,
      ),
      code: error.code,
      failed: entries.filter((e) => e.status === "failure"),
      sourceSnapshotAt: row.source_snapshot_at,
    });
    return true;
  } catch (error) {
    // The process of the run has closed it.
    if (error instanceof ServiceError && error.code === "run_lost") {
      return false;
    }
    throw error;
  }
}
