/**
 * The queue: how a run is enqueued, claimed, put back and withdrawn.
 *
 * @module
 */
import type { Queryable, Row } from "../postgres/sql.ts";
import { hasSqlstate, type ServiceError } from "../errors.ts";
import { closeUnfinished, UNFINISHED } from "./dead_runs.ts";
import type { LoadEvent } from "./event.ts";
import { eventTime, IS_UNWANTED } from "./record.ts";
import type { QueuedRun, Run, RunState } from "./run.ts";
import type { Config } from "../config/config.ts";

/**
 * Queues a run, or joins the one with equal options that is queued already.
 *
 * A queued run has not started, so a caller that joins it gets a load that starts
 * after the request. A repeated request does no harm: it joins its own run.
 *
 * @param waitSeconds the caller's maximum wait for the start. With `null`, the run is
 * unattended: it starts even if no caller waits for it.
 * @param workerId the calling process. It has one entry for all its callers, with the
 * latest deadline.
 */
export async function enqueueRun(
  queryable: Queryable,
  request: Run,
  waitSeconds: number | null,
  workerId: string,
  tick: Date | null = null,
): Promise<QueuedRun> {
  const queued = queryable.query(
    `insert into marketing_data_service.run as run
       (id, trigger, tables, mode, atomic, recreate, allow_shrink, wait_until, askers, tick)
     select $1::uuid, $2, $3::text[], $4, $5, $6, $10,
       coalesce(until, 'infinity'),
       case when until is null then '{}' else jsonb_build_object($8::text, extract(epoch from until)) end,
       $9::timestamptz
     from (select clock_timestamp() + make_interval(secs => $7::float8) as until) wait
     on conflict (pg_catalog.hash_array_extended(tables, 0::bigint), mode, atomic, recreate, allow_shrink) where state = 'queued'
       do update set wait_until = greatest(run.wait_until, excluded.wait_until),
         askers = run.askers || excluded.askers, tick = coalesce(run.tick, excluded.tick)
     returning id, trigger, (askers ->> $8)::float8 as deadline`,
    [
      request.id,
      request.trigger,
      request.tables,
      request.mode,
      request.atomic,
      request.recreate,
      waitSeconds,
      workerId,
      tick,
      request.allowShrink,
    ],
  );
  let row: Row | undefined;
  try {
    [row] = await queued;
  } catch (error) {
    // 23505: an earlier attempt, whose answer was lost, has queued it, and it has begun.
    if (tick || !hasSqlstate(error, "23505")) throw error;
    return { ...request, deadline: null };
  }
  return {
    ...request,
    id: row!.id,
    trigger: row!.trigger,
    deadline: waitSeconds === null ? null : row!.deadline,
  };
}

/**
 * Queues the unattended run of a schedule's tick.
 *
 * A tick during a run is skipped. A late replica must skip it, too. So a tick is also
 * skipped when a run finished after the tick. That run must have finished within the
 * last minute by the clock of the database. Otherwise a replica with a slow clock
 * would skip every tick.
 *
 * @returns `running` when the tick is skipped, or `taken` when another process has it.
 */
export async function enqueueTick(
  queryable: Queryable,
  request: Run,
  tick: Date,
): Promise<"queued" | "running" | "taken"> {
  const [other] = await queryable.query(
    `select tick is not distinct from $1::timestamptz as taken
     from marketing_data_service.run
     where state = 'running' or tick = $1::timestamptz
       or started_at is not null and finished_at > $1::timestamptz
         and finished_at > clock_timestamp() - interval '1 min'
     order by taken desc limit 1`,
    [tick.toISOString()],
  );
  if (other) return other.taken ? "taken" : "running";
  try {
    await enqueueRun(queryable, request, null, "", tick);
    return "queued";
  } catch (error) {
    // 23505: a replica with the same schedule was faster.
    if (hasSqlstate(error, "23505")) return "taken";
    throw error;
  }
}

/** SQL that is true for an unattended run of tables that the process declares. */
const isUnattended = (tables: string) =>
  `wait_until = 'infinity' and tables <@ ${tables}::text[]`;

/**
 * Claims the oldest queued run that a caller of the process waits for, or that is
 * unattended. The process holds the service's lock and runs nothing. A second claim
 * returns the same run, because the answer to the first one may be lost. So `workerId`
 * must be unique to the process.
 *
 * @param awaited ids of the runs that callers wait for.
 * @param tables tables whose unattended runs the process claims.
 */
export async function claimRun(
  queryable: Queryable,
  workerId: string,
  awaited: readonly string[],
  tables: readonly string[],
): Promise<Run | undefined> {
  const [row] = await queryable.query(
    `update marketing_data_service.run
     set state = 'running', started_at = coalesce(started_at, clock_timestamp()), runner = $1
     where (state = 'queued' or state = 'running' and runner = $1) and id = (
       select id from marketing_data_service.run
       where state = 'running' and runner = $1 or state = 'queued' and (
         id = any ($2::uuid[]) or ${isUnattended("$3")})
       order by state = 'running' desc, seq limit 1)
     returning id, trigger, to_json(tables) as tables, mode, atomic, recreate,
       allow_shrink as "allowShrink", ${
      eventTime("started_at")
    } as "startedAt"`,
    [workerId, awaited, tables],
  );
  return row as Run | undefined;
}

/** Returns whether an unattended run of the tables is queued. */
export async function hasUnattendedRuns(
  queryable: Queryable,
  tables: readonly string[],
): Promise<boolean> {
  const [row] = await queryable.query(
    `select from marketing_data_service.run
     where state = 'queued' and ${isUnattended("$1")} limit 1`,
    [tables],
  );
  return row !== undefined;
}

/**
 * Puts a claimed run that has not begun back into the queue. When a run with equal
 * options was queued meanwhile, the claimed one stays and is abandoned.
 */
export async function requeueRun(
  queryable: Queryable,
  runId: string,
  runner: string,
): Promise<void> {
  await queryable.query(
    `update marketing_data_service.run r
     set state = 'queued', started_at = null, runner = null
     where id = $1::uuid and state = 'running' and runner = $2
       and not exists (select from marketing_data_service.run q where q.state = 'queued'
         and (q.tables, q.mode, q.atomic, q.recreate, q.allow_shrink)
           = (r.tables, r.mode, r.atomic, r.recreate, r.allow_shrink))`,
    [runId, runner],
  );
}

interface RunProgress {
  readonly state: RunState;
  /** The event of a finished run. */
  readonly event: LoadEvent | undefined;
}

/** Returns the progress of those of the runs that exist, by id. */
export async function progressOf(
  queryable: Queryable,
  ids: readonly string[],
): Promise<ReadonlyMap<string, RunProgress>> {
  const rows = await queryable.query(
    `select id, state, (select payload::text from marketing_data_service.event where run_id = run.id) as event
     from marketing_data_service.run
     where id = any ($1::uuid[])`,
    [ids],
  );
  return new Map(
    rows.map(({ id, state, event }) => [
      id,
      { state, event: event ? JSON.parse(event) : undefined },
    ]),
  );
}

/**
 * Keeps those of the runs that are queued, although their deadlines are over. Their
 * callers wait on, because the lock is free, or this process has just taken it.
 */
export async function renewWaits(
  queryable: Queryable,
  ids: readonly string[],
): Promise<void> {
  await queryable.query(
    `update marketing_data_service.run set wait_until = clock_timestamp()
     where id = any ($1::uuid[]) and state = 'queued' and wait_until < clock_timestamp()`,
    [ids],
  );
}

/**
 * Withdraws a process's wait for a queued run, unless a later caller of the same
 * process has joined the run. Returns the run if the process had such a wait.
 */
export async function withdrawWait(
  queryable: Queryable,
  { id, deadline }: Pick<QueuedRun, "id" | "deadline">,
  workerId: string,
): Promise<Row | undefined> {
  const [row] = await queryable.query(
    `update marketing_data_service.run
     set askers = askers - $2, wait_until = case when wait_until = 'infinity' then wait_until
       else coalesce((select max(to_timestamp(value::float8)) from jsonb_each(askers - $2)), '-infinity') end
     where id = $1::uuid and state = 'queued' and (askers ->> $2)::float8 <= $3::float8
     returning ${UNFINISHED}, ${IS_UNWANTED} as is_unwanted`,
    [id, workerId, deadline],
  );
  return row;
}

/**
 * Withdraws a process's wait for a queued run. Closes the run with `error` if no other
 * caller waits for it and it is not unattended.
 *
 * @returns its event, or `undefined` when the run stays queued or has begun.
 */
export async function withdrawRun(
  queryable: Queryable,
  run: Pick<QueuedRun, "id" | "deadline">,
  workerId: string,
  error: ServiceError,
  config: Pick<Config, "tables" | "publicUrl">,
): Promise<LoadEvent | undefined> {
  const row = await withdrawWait(queryable, run, workerId);
  return row?.is_unwanted
    ? await closeUnfinished(queryable, row, error, 0, config)
    : undefined;
}
