/**
 * The history in the warehouse: runs, their results per table, and how a run is
 * queued, claimed and closed.
 *
 * @module
 */
import type { Logger } from "@logtape/logtape";
import { delay } from "@std/async/delay";
import { APPLICATION_NAME } from "../identity.ts";
import type { Pool } from "../postgres/pool.ts";
import type { Session } from "../postgres/session.ts";
import type { Parameter, Row } from "../postgres/sql.ts";
import { type ErrorCode, ServiceError } from "../errors.ts";
import {
  EVENT_CHANNEL,
  type FailedEntry,
  failedEntry,
  failedEvent,
  failureLine,
  type IntegrityCheck,
  type LoadedEntry,
  type LoadEvent,
  type TableEntry,
  type Trigger,
} from "./event.ts";
import type { PhaseTiming } from "../sync/progress.ts";
import type { SourceWatermark } from "../sync/snapshot.ts";
import type { LastLoad } from "../sync/sync_table.ts";

/** State of a run, stored verbatim. */
export type RunState =
  | "queued"
  | "running"
  | "succeeded"
  | "failed"
  | "interrupted";

/** Options of a run. Requests with equal options can share one run. */
export interface RunOptions {
  readonly tables: readonly string[];
  readonly mode: "auto" | "full";
  readonly atomic: boolean;
  readonly recreate: boolean;
}

/** A run: who asked for it, and for what. */
export interface Run extends RunOptions {
  readonly id: string;
  readonly trigger: Trigger;
}

/** A pool, or a session with its transaction. */
export type Executor = Pick<Pool | Session, "query">;

/** Names a server until it is promoted, restored or restarted. */
const SERVER = `(select system_identifier
    || '/' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)
    || '/' || extract(epoch from pg_postmaster_start_time())
  from pg_control_system())`;

/**
 * How far above the last number the next one is after a change of the server,
 * at least. A standby may lack the newest events, and their numbers must not
 * come again. The clock is for a backup that is restored twice.
 */
const SEQUENCE_JUMP = 1_000_000;

/** SQL of the database's time in the format of an event. */
const NOW =
  `to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US')`;

/** A run in the queue, and how long a caller of this process waits for its start. */
export interface QueuedRun extends Run {
  /**
   * End of the wait as Unix time of the warehouse, in seconds. Null when the run
   * happens in any case.
   */
  readonly deadline: number | null;
}

/**
 * SQL that is true for a queued run that no caller waits for. A process that ends
 * withdraws its wait. One that crashes has some seconds on top.
 */
const IS_UNWANTED = "wait_until < clock_timestamp() - interval '5 s'";

/**
 * Queues a run, or joins the one with equal options that is queued already.
 *
 * A queued run has not started, so a caller that joins it gets a load that starts
 * after the request. `waitSeconds` is how long the caller waits for the start;
 * with `null` the run happens in any case. `workerId` is the calling process. It
 * has one entry for all its callers, with the latest deadline.
 */
export async function enqueueRun(
  executor: Executor,
  request: Omit<Run, "id">,
  waitSeconds: number | null,
  workerId: string,
  tick: Date | null = null,
): Promise<QueuedRun> {
  const [row] = await executor.query(
    `insert into marketing_data_service.run as run
       (id, trigger, tables, mode, atomic, recreate, wait_until, askers, tick)
     select $1::uuid, $2, (select array_agg(t) from json_array_elements_text($3::text::json) t), $4, $5, $6,
       coalesce(until, 'infinity'),
       case when until is null then '{}' else jsonb_build_object($8::text, extract(epoch from until)) end,
       $9::text::timestamptz
     from (select clock_timestamp() + make_interval(secs => $7::float8) as until) wait
     on conflict (tables, mode, atomic, recreate) where state = 'queued'
       do update set wait_until = greatest(run.wait_until, excluded.wait_until),
         askers = run.askers || excluded.askers, tick = coalesce(run.tick, excluded.tick)
     returning id, trigger, (askers ->> $8)::float8 as deadline`,
    [
      crypto.randomUUID(),
      request.trigger,
      JSON.stringify(request.tables),
      request.mode,
      request.atomic,
      request.recreate,
      waitSeconds,
      workerId,
      tick,
    ],
  );
  return {
    ...request,
    id: row!.id,
    trigger: row!.trigger,
    deadline: waitSeconds === null ? null : row!.deadline,
  };
}

/**
 * Claims the oldest of the queued runs that the process's callers wait for, and
 * with `unattended` of those that happen in any case. The process holds the
 * service's lock and runs nothing. Claiming twice has no further effect, because
 * the answer to the first claim may be lost. So `workerId` must be unique to the
 * process.
 */
export async function claimRun(
  executor: Executor,
  workerId: string,
  awaited: readonly string[],
  unattended: boolean,
): Promise<Run | undefined> {
  const [row] = await executor.query(
    `update marketing_data_service.run
     set state = 'running', started_at = coalesce(started_at, clock_timestamp()), runner = $1
     where (state = 'queued' or state = 'running' and runner = $1) and id = (
       select id from marketing_data_service.run
       where state = 'running' and runner = $1 or state = 'queued' and (
         id in (select value::uuid from json_array_elements_text($2::text::json))
         or $3 and wait_until = 'infinity')
       order by state = 'running' desc, seq limit 1)
     returning id, trigger, to_json(tables)::text as tables, mode, atomic, recreate`,
    [workerId, JSON.stringify(awaited), unattended],
  );
  return row && { ...row, tables: JSON.parse(row.tables) } as Run | undefined;
}

/** Reports whether a run is queued that happens in any case. */
export async function hasUnattendedRuns(executor: Executor): Promise<boolean> {
  const [row] = await executor.query(
    `select from marketing_data_service.run
     where state = 'queued' and wait_until = 'infinity' limit 1`,
  );
  return row !== undefined;
}

/**
 * Puts a claimed run that has not begun back into the queue. When a run with equal
 * options was queued meanwhile, the claimed one stays and is abandoned.
 */
export async function requeueRun(
  executor: Executor,
  runId: string,
  runner: string,
): Promise<void> {
  await executor.query(
    `update marketing_data_service.run r
     set state = 'queued', started_at = null, runner = null
     where id = $1::uuid and state = 'running' and runner = $2
       and not exists (select from marketing_data_service.run q where q.state = 'queued'
         and (q.tables, q.mode, q.atomic, q.recreate) = (r.tables, r.mode, r.atomic, r.recreate))`,
    [runId, runner],
  );
}

/** How a run ended. */
export interface RunEnd {
  readonly state: "succeeded" | "failed" | "interrupted";
  readonly event: LoadEvent;
  /** Code of the failure, or `null`. */
  readonly code: ErrorCode | null;
  /** Tables that were not loaded. */
  readonly failed: readonly FailedEntry[];
  readonly sourceSnapshotAt: string | null;
}

/**
 * Closes a run in one statement: state, failed tables, event and notification.
 * Closes a queued run only while no caller waits for it.
 *
 * @throws {ServiceError} `run_lost` when the run is already closed, or a caller waits for it again.
 */
export async function closeRun(
  executor: Executor,
  runId: string,
  from: "queued" | "running",
  end: RunEnd,
): Promise<void> {
  const { event } = end;
  const notification = {
    event_id: event.event_id,
    run_id: event.run_id,
    event_type: event.event_type,
    status: event.status,
  };
  const [row] = await executor.query(
    `with ordered as materialized (
       select server from marketing_data_service.event_order where only_one for update),
     closed as (
       update marketing_data_service.run
       set state = $3, finished_at = clock_timestamp(), error = $4, code = $5, source_snapshot_at = $6
       from ordered where id = $1::uuid and state = $2 and (state = 'running' or ${IS_UNWANTED})
       returning id),
     moved as (
       update marketing_data_service.event_order set server = ${SERVER}
       from closed where server <> ${SERVER}
       returning setval('marketing_data_service.event_seq_seq', greatest(
         (select last_value from marketing_data_service.event_seq_seq) + ${SEQUENCE_JUMP},
         (extract(epoch from clock_timestamp()) * 1000)::bigint)) as seq),
     failures as (
       insert into marketing_data_service.table_load (run_id, table_name, state, result)
       select closed.id, entry ->> 'table', 'failed', entry
       from closed, json_array_elements($7::text::json) entry
       on conflict do nothing),
     announced as (
       insert into marketing_data_service.event (seq, event_id, run_id, event_type, payload)
       overriding system value
       select coalesce(moved.seq, nextval('marketing_data_service.event_seq_seq')),
         $8::uuid, closed.id, $9, $10::text::json
       from closed left join moved on true returning seq)
     select seq::text, pg_notify('${EVENT_CHANNEL}', $11) from announced`,
    [
      runId,
      from,
      end.state,
      event.status === "failure" ? event.error : null,
      end.code,
      end.sourceSnapshotAt,
      JSON.stringify(end.failed),
      event.event_id,
      event.event_type,
      JSON.stringify(event),
      JSON.stringify(notification),
    ],
  );
  if (!row) {
    throw new ServiceError(
      "run_lost",
      `Run ${runId} was closed by another process`,
    );
  }
}

/**
 * Bounds the waits for locks on the history in a load's transaction, whose own
 * limit is for locks on targets.
 */
export async function limitHistoryLocks(session: Session): Promise<void> {
  await session.query("set local lock_timeout = '10s'");
}

/** Records the load of a table, in the same transaction. */
export async function recordTableLoad(
  session: Session,
  runId: string,
  entry: LoadedEntry,
  check: IntegrityCheck,
  phases: readonly PhaseTiming[],
  mark: SourceWatermark | undefined,
): Promise<void> {
  await session.query(
    `insert into marketing_data_service.table_load
       (run_id, table_name, state, result, integrity_check, phases, source_mark)
     values ($1::uuid, $2, 'succeeded', $3::text::json, $4::text::json, $5::text::json, $6::text::json)`,
    [
      runId,
      entry.table,
      JSON.stringify(entry),
      JSON.stringify(check),
      JSON.stringify(phases),
      mark ? JSON.stringify(mark) : null,
    ],
  );
}

/**
 * Forgets the tables that a run has loaded from a snapshot that is lost. They
 * are loaded again with all the others, from the next one.
 */
export async function forgetTableLoads(
  executor: Executor,
  runId: string,
): Promise<void> {
  await executor.query(
    "delete from marketing_data_service.table_load where run_id = $1::uuid",
    [runId],
  );
}

/** Returns the last load of each table, where it is known. */
export async function lastLoads(
  executor: Executor,
  tables: readonly string[],
): Promise<ReadonlyMap<string, LastLoad>> {
  const rows = await executor.query(
    `select name, source_mark::text as mark, (result ->> 'records_loaded')::float8 as rows
     from json_array_elements_text($1::text::json) name,
       lateral (select source_mark, result from marketing_data_service.table_load
         where table_name = name and state = 'succeeded'
         order by finished_at desc limit 1) latest
     where source_mark is not null`,
    [JSON.stringify(tables)],
  );
  return new Map(
    rows.map((
      { name, mark, rows },
    ) => [name, { mark: JSON.parse(mark) as SourceWatermark, rows }]),
  );
}

/**
 * Checks that no other process has closed the run, and keeps it until the
 * transaction ends. Returns the time of the database.
 *
 * @throws {ServiceError} `run_lost`.
 */
export async function confirmRun(
  executor: Executor,
  runId: string,
): Promise<string> {
  const [row] = await executor.query(
    `select ${NOW} as now from marketing_data_service.run
     where id = $1::uuid and state = 'running' for share`,
    [runId],
  );
  if (!row) {
    throw new ServiceError(
      "run_lost",
      `Run ${runId} was closed by another process`,
    );
  }
  return row.now;
}

/** Returns the database's time in the format of an event. */
export async function databaseTime(executor: Executor): Promise<string> {
  const [row] = await executor.query(`select ${NOW} as now`);
  return row!.now;
}

/** Ends the warehouse backends of a run's sessions and waits until they have ended. */
export async function endBackends(
  executor: Executor,
  runId: string,
): Promise<void> {
  await terminate(executor, "application_name = $1", [
    `${APPLICATION_NAME}/${runId}`,
  ]);
}

/**
 * Ends one backend of ours and waits until it has ended. A connection that is
 * closed here may live on at the server, with its locks and perhaps a commit.
 */
export async function endBackend(
  executor: Executor,
  pid: number,
  applicationName: string,
): Promise<void> {
  await terminate(executor, "pid = $1 and application_name = $2", [
    pid,
    applicationName,
  ]);
}

/** The maximum number of attempts to end a backend. */
const MAX_ATTEMPTS = 20;

async function terminate(
  executor: Executor,
  condition: string,
  parameters: readonly Parameter[],
): Promise<void> {
  for (let look = 1;; look++) {
    try {
      await executor.query(
        // A role that switched to another role at login may not end its own sessions.
        `with itself as materialized (select set_config('role', 'none', true))
         select pg_terminate_backend(pid, 5000) from itself, pg_stat_activity
         where ${condition} and pid <> pg_backend_pid()
           -- Any role can give its session our name.
           and usename = session_user`,
        parameters,
      );
      return;
    } catch (error) {
      // 42501: a backend that is ending has no role, so it does not look like ours.
      const isGoing = error instanceof ServiceError &&
        error.sqlstate === "42501";
      if (!isGoing || look === MAX_ATTEMPTS) throw error;
      await delay(50);
    }
  }
}

/** Returns the entries of the tables that a run has loaded and committed. */
export async function loadedByRun(
  executor: Executor,
  runId: string,
): Promise<LoadedEntry[]> {
  const rows = await executor.query(
    `select result::text from marketing_data_service.table_load
     where run_id = $1::uuid and state = 'succeeded'`,
    [runId],
  );
  return rows.map((row) => JSON.parse(row.result));
}

/** Returns the tables whose load by this run is committed. */
export async function committedTables(
  executor: Executor,
  runId: string,
): Promise<readonly string[]> {
  return (await loadedByRun(executor, runId)).map((entry) => entry.table);
}

/** Returns the event of a run, or `undefined` while it has none. */
export async function eventOf(
  executor: Executor,
  runId: string,
): Promise<LoadEvent | undefined> {
  const [row] = await executor.query(
    `select payload::text from marketing_data_service.event where run_id = $1::uuid`,
    [runId],
  );
  return row && JSON.parse(row.payload);
}

/** Progress of a run. */
interface RunProgress {
  readonly state: RunState;
  /** The event of a finished run. */
  readonly event: LoadEvent | undefined;
}

/** Returns the progress of those of the runs that exist, by id. */
export async function progressOf(
  executor: Executor,
  ids: readonly string[],
): Promise<ReadonlyMap<string, RunProgress>> {
  const rows = await executor.query(
    `select id, state, (select payload::text from marketing_data_service.event where run_id = run.id) as event
     from marketing_data_service.run
     where id in (select value::uuid from json_array_elements_text($1::text::json))`,
    [JSON.stringify(ids)],
  );
  return new Map(
    rows.map(({ id, state, event }) => [
      id,
      { state, event: event ? JSON.parse(event) : undefined },
    ]),
  );
}

/**
 * Queues the run of a schedule's tick. It happens in any case.
 *
 * A tick during a run is skipped. A replica that is some seconds late must skip it
 * too, so a tick is also skipped when a run finished after the tick. That run must
 * have finished within the last minute by the clock of the database: otherwise a
 * replica whose clock is behind would skip every tick.
 *
 * @returns `running` when the tick is skipped, or `taken` when another process
 * has it.
 */
export async function enqueueTick(
  executor: Executor,
  options: RunOptions,
  tick: Date,
): Promise<"queued" | "running" | "taken"> {
  const [other] = await executor.query(
    `select tick is not distinct from $1::text::timestamptz as taken
     from marketing_data_service.run
     where state = 'running' or tick = $1::text::timestamptz
       or started_at is not null and finished_at > $1::text::timestamptz
         and finished_at > clock_timestamp() - interval '1 min'
     order by taken desc limit 1`,
    [tick.toISOString()],
  );
  if (other) return other.taken ? "taken" : "running";
  try {
    const request = { ...options, trigger: "schedule" } as const;
    await enqueueRun(executor, request, null, "", tick);
    return "queued";
  } catch (error) {
    // 23505: a replica with the same schedule was faster.
    if (error instanceof ServiceError && error.sqlstate === "23505") {
      return "taken";
    }
    throw error;
  }
}

/**
 * Closes abandoned runs, each with its event. A queued run is abandoned when no
 * caller waits for it. A `running` one is abandoned when this caller holds the
 * service's lock, because then no process runs it.
 *
 * @returns ids of the runs that were closed.
 */
export async function closeAbandonedRuns(
  executor: Executor,
  log: Logger,
  states: "queued" | "queued and running",
): Promise<readonly string[]> {
  const dead = await executor.query(
    `select id, trigger, state, to_json(tables)::text as tables, source_snapshot_at, ${NOW} as now
     from marketing_data_service.run
     where state = 'queued' and ${IS_UNWANTED} ${
      states === "queued" ? "" : "or state = 'running'"
    }
     order by seq`,
  );
  const closed: string[] = [];
  for (const row of dead) {
    if (!await interruptRun(executor, row)) continue;
    closed.push(row.id);
    log.warn("Run {run_id} was abandoned and is now interrupted", {
      run_id: row.id,
    });
  }
  return closed;
}

async function interruptRun(executor: Executor, row: Row): Promise<boolean> {
  // A backend of the ended process may still commit. Its result is known when it ends.
  if (row.state === "running") await endBackends(executor, row.id);
  const loaded = await loadedByRun(executor, row.id);
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
      failedEntry(table, error, 1)
  );
  try {
    await closeRun(executor, row.id, row.state, {
      state: "interrupted",
      event: failedEvent(
        {
          runId: row.id,
          trigger: row.trigger,
          timestamp: row.now,
          sourceSnapshotAt: row.source_snapshot_at,
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
    // Its own process closed it.
    if (error instanceof ServiceError && error.code === "run_lost") {
      return false;
    }
    throw error;
  }
}

/**
 * Withdraws a process's wait for a queued run, unless a later caller of the same
 * process has joined the run. Returns the run if the process had such a wait.
 */
export async function withdrawWait(
  executor: Executor,
  { id, deadline }: Pick<QueuedRun, "id" | "deadline">,
  workerId: string,
): Promise<Row | undefined> {
  const [row] = await executor.query(
    `update marketing_data_service.run
     set askers = askers - $2, wait_until = case when wait_until = 'infinity' then wait_until
       else coalesce((select max(to_timestamp(value::float8)) from jsonb_each(askers - $2)), '-infinity') end
     where id = $1::uuid and state = 'queued' and (askers ->> $2)::float8 <= $3::float8
     returning id, trigger, to_json(tables)::text as tables, ${NOW} as now, ${IS_UNWANTED} as is_unwanted`,
    [id, workerId, deadline],
  );
  return row;
}

/**
 * Withdraws a process's wait for a queued run. Closes the run with `error` when
 * no other caller waits for it and it does not happen in any case.
 *
 * @returns its event, or `undefined` when the run stays queued or has begun.
 */
export async function withdrawRun(
  executor: Executor,
  run: Pick<QueuedRun, "id" | "deadline">,
  workerId: string,
  error: ServiceError,
): Promise<LoadEvent | undefined> {
  const row = await withdrawWait(executor, run, workerId);
  if (!row?.is_unwanted) return undefined;
  const entries = (JSON.parse(row.tables) as string[]).map((table) =>
    failedEntry(table, error, 0)
  );
  const event = failedEvent(
    {
      runId: row.id,
      trigger: row.trigger,
      timestamp: row.now,
      sourceSnapshotAt: null,
    },
    error.line,
    entries,
  );
  const isStop = error.code === "terminated" || error.code === "draining";
  try {
    await closeRun(executor, row.id, "queued", {
      state: isStop ? "interrupted" : "failed",
      event,
      code: error.code,
      failed: entries,
      sourceSnapshotAt: null,
    });
    return event;
  } catch (error) {
    // Another caller has joined it.
    if (error instanceof ServiceError && error.code === "run_lost") {
      return undefined;
    }
    throw error;
  }
}
