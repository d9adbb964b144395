/**
 * Reads the history, and removes old runs.
 *
 * @module
 */
import { MAX_NAMES } from "../format.ts";
import type { Queryable, Row } from "../postgres/sql.ts";
import { type Tally, tallyOf } from "./describe.ts";
import type {
  FailedEntry,
  IntegrityCheck,
  LoadedEntry,
  LoadEvent,
  PublisherName,
  TableEntry,
  Trigger,
} from "./event.ts";
import type { DifferingRows } from "../diff/differing_rows.ts";
import type { PhaseTiming } from "../sync/progress.ts";
import type { RunState } from "./run.ts";

/** A run in the history. Times are UTC, ISO 8601. */
export interface RunSummary {
  readonly run_id: string;
  readonly status: RunState;
  readonly trigger: Trigger;
  readonly tables: readonly string[];
  readonly mode: "auto" | "full";
  readonly atomic: boolean;
  readonly recreate: boolean;
  readonly allow_shrink: boolean;
  readonly requested_at: string;
  readonly started_at: string | null;
  readonly finished_at: string | null;
  /** Seconds from start to end. */
  readonly duration: number | null;
  readonly source_snapshot_at: string | null;
  readonly error: string | null;
  readonly code: string | null;
  readonly runner: string | null;
}

/** A run with its tables, and its event once there is one. */
export interface RunDetails extends RunSummary {
  readonly table_loads: readonly {
    readonly table: string;
    readonly status: "succeeded" | "failed";
    readonly result: TableEntry;
    readonly integrity_check: IntegrityCheck | null;
    readonly phases: readonly PhaseTiming[];
  }[];
  readonly event: LoadEvent | null;
}

/** The largest cursor of events. */
export const MAX_SEQUENCE = 10 ** 15 - 1;

/** An event with its number and its deliveries. */
export interface StoredEvent {
  /** The number of the event. It is the cursor for later events. */
  readonly seq: number;
  readonly event: LoadEvent;
  /** The delivery to each publisher. */
  readonly deliveries: readonly EventDelivery[];
}

/** The delivery of an event to one publisher. */
interface EventDelivery {
  readonly publisher: PublisherName;
  /** `stopped` means that the receiver refuses events, see {@linkcode resumePublishers}. */
  readonly status: "pending" | "delivered" | "given_up" | "stopped";
  readonly attempts: number;
  readonly delivered_at: string | null;
  readonly next_attempt_at: string | null;
  readonly last_error: string | null;
}

const utcOf = (column: string) =>
  `to_char(${column} at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')`;

const utc = (column: string, name = column) => `${utcOf(column)} as ${name}`;

const SUMMARY =
  `id, state, trigger, to_json(tables) as tables, mode, atomic, recreate, allow_shrink,
  ${utc("requested_at")}, ${utc("started_at")}, ${utc("finished_at")},
  extract(epoch from finished_at - started_at)::float8 as duration,
  source_snapshot_at, error, code, runner`;

function summaryOf({ id, state, tables, ...row }: Row): RunSummary {
  return { run_id: id, status: state, ...row, tables } as RunSummary;
}

/** A selection of runs, newest first. */
export interface RunFilter {
  readonly limit: number;
  /** Only runs that were requested before this one. */
  readonly before?: string | undefined;
  readonly status?: RunState | undefined;
}

/** SQL of the runs of a {@linkcode RunFilter}: limit, status and before. */
const NEWEST = `from marketing_data_service.run
  where ($2::text is null or state = $2)
    and ($3::text is null or seq < (select seq from marketing_data_service.run where id = $3::uuid))
  order by run.seq desc limit $1::int`;

/** Returns the newest runs. */
export async function listRuns(
  queryable: Queryable,
  { limit, before, status }: RunFilter,
): Promise<readonly RunSummary[]> {
  const rows = await queryable.query(
    `select ${SUMMARY} ${NEWEST}`,
    [limit, status ?? null, before ?? null],
  );
  return rows.map(summaryOf);
}

/** A run with its results, for lists and charts. */
export interface RunOutcome extends RunSummary {
  /** The result of each table. Empty where the tables are too many to name. */
  readonly entries: readonly TableEntry[];
  readonly tally: Tally;
}

/** Returns the newest runs, each with its results. */
export async function listOutcomes(
  queryable: Queryable,
  { limit, before, status }: RunFilter,
): Promise<readonly RunOutcome[]> {
  const rows = await queryable.query(
    `select ${SUMMARY},
       case when cardinality(tables) <= ${MAX_NAMES} then (
         select json_agg(result order by table_name)::text
         from marketing_data_service.table_load where run_id = run.id) end as entries,
       case when cardinality(tables) > ${MAX_NAMES} then (
         select json_build_object('unchanged', count(*) filter (where mode = 'unchanged'),
           'changed', count(*) filter (where mode <> 'unchanged'),
           'failed', count(*) filter (where mode is null),
           'unverified', count(*) filter (where mode is not null and result ->> 'checksum' is null),
           'inserted', coalesce(sum((result ->> 'rows_inserted')::bigint) filter (where mode <> 'unchanged'), 0),
           'deleted', coalesce(sum((result ->> 'rows_deleted')::bigint) filter (where mode <> 'unchanged'), 0))::text
         -- Parsed once: most of 500 tables are unchanged.
         from (select result, result ->> 'mode' as mode from marketing_data_service.table_load
           where run_id = run.id offset 0) loads) end as tally
     ${NEWEST}`,
    [limit, status ?? null, before ?? null],
  );
  return rows.map(({ entries: text, tally, ...row }) => {
    const entries = JSON.parse(text ?? "[]") as readonly TableEntry[];
    return {
      ...summaryOf(row),
      entries,
      tally: tally ? JSON.parse(tally) : tallyOf(entries),
    };
  });
}

/** The history of a table. Times are UTC, ISO 8601. */
export interface TableHistory {
  readonly table: string;
  /** The newest committed load. */
  readonly loaded: {
    readonly run_id: string;
    readonly finished_at: string;
    /** Time of the source snapshot that the target contains. */
    readonly source_snapshot_at: string | null;
    readonly entry: LoadedEntry;
  } | null;
  /** The newest failure, where no load has succeeded since. */
  readonly failed: {
    readonly run_id: string;
    readonly finished_at: string;
    readonly entry: FailedEntry;
  } | null;
  /** Time of the last load that wrote to the table. */
  readonly written_at: string | null;
  /** Seconds of the last loads that are committed, the oldest first. */
  readonly durations: readonly number[];
}

/**
 * Returns the last loads and the last failure of each table, in the order of the names.
 *
 * @param durations the maximum number of loads in `durations`.
 */
export async function listTableHistory(
  queryable: Queryable,
  tables: readonly string[],
  durations = 0,
): Promise<readonly TableHistory[]> {
  const rows = await queryable.query(
    `select name, loaded.run_id, ${utc("loaded.finished_at", "finished_at")},
       run.source_snapshot_at, loaded.result::text as result,
       failed.run_id as failed_run, ${
      utc("failed.finished_at", "failed_at")
    }, failed.result::text as failure,
       ${utc("written.finished_at", "written_at")}, to_json(array(
         select (result ->> 'duration')::float8 from marketing_data_service.table_load
         where table_name = name and state = 'succeeded'
         order by finished_at desc limit $2::int)) as durations
     from unnest($1::text[]) with ordinality as wanted (name, place)
       left join lateral (select run_id, finished_at, result from marketing_data_service.table_load
         where table_name = name and state = 'succeeded'
         order by finished_at desc limit 1) loaded on true
       left join marketing_data_service.run on run.id = loaded.run_id
       left join lateral (select run_id, finished_at, result from marketing_data_service.table_load
         where table_name = name and state = 'failed'
           and finished_at > coalesce(loaded.finished_at, '-infinity')
         order by finished_at desc limit 1) failed on true
       left join lateral (select finished_at from marketing_data_service.table_load
         where table_name = name and state = 'succeeded' and result ->> 'mode' <> 'unchanged'
         order by finished_at desc limit 1) written on true
     order by place`,
    [tables, durations],
  );
  return rows.map((row) => ({
    table: row.name,
    loaded: row.result && {
      run_id: row.run_id,
      finished_at: row.finished_at,
      source_snapshot_at: row.source_snapshot_at,
      entry: JSON.parse(row.result),
    },
    failed: row.failure && {
      run_id: row.failed_run,
      finished_at: row.failed_at,
      entry: JSON.parse(row.failure),
    },
    written_at: row.written_at,
    durations: row.durations.reverse(),
  }));
}

/** Returns one run, or `undefined` when the history does not have it. */
export async function findRun(
  queryable: Queryable,
  id: string,
): Promise<RunDetails | undefined> {
  const [run] = await findRuns(queryable, [id]);
  return run;
}

/** Returns the runs with these ids that are in the history. */
export async function findRuns(
  queryable: Queryable,
  ids: readonly string[],
): Promise<readonly RunDetails[]> {
  const rows = await queryable.query(
    `select ${SUMMARY},
       (select payload::text from marketing_data_service.event where run_id = run.id) as event,
       coalesce((select json_agg(json_build_object('table', table_name, 'status', state,
           'result', result, 'integrity_check', integrity_check, 'phases', phases) order by table_name)
         from marketing_data_service.table_load where run_id = run.id), '[]')::text as table_loads
     from marketing_data_service.run
     where id = any ($1::uuid[])`,
    [ids],
  );
  return rows.map(({ event, table_loads, ...row }) => ({
    ...summaryOf(row),
    table_loads: JSON.parse(table_loads).map(withPhases),
    event: event && JSON.parse(event),
  }));
}

/** Returns the stored rows of a run's tables, of at most `limit` tables. */
export async function listDifferingRows(
  queryable: Queryable,
  runId: string,
  limit: number,
): Promise<ReadonlyMap<string, DifferingRows>> {
  const rows = await queryable.query(
    `select table_name, differing_rows::text as rows from marketing_data_service.table_load
     where run_id = $1::uuid and differing_rows is not null order by table_name limit $2::int`,
    [runId, limit],
  );
  return new Map(rows.map((row) => [row.table_name, JSON.parse(row.rows)]));
}

/**
 * Returns the load of a table with the present names of the phases. Version 0.1
 * stored `startedAfter`.
 */
function withPhases(
  { phases, ...load }: {
    phases: readonly (PhaseTiming & { startedAfter?: number })[];
  },
) {
  return {
    ...load,
    phases: phases.map(({ phase, startedAfter, started_after, seconds }) => ({
      phase,
      started_after: started_after ?? startedAfter,
      seconds,
    })),
  };
}

/** Returns the ids of runs that begin with the text, at most two. */
export async function findRunIds(
  queryable: Queryable,
  beginning: string,
): Promise<readonly string[]> {
  const rows = await queryable.query(
    `select id from marketing_data_service.run where starts_with(id::text, $1) limit 2`,
    [beginning],
  );
  return rows.map(({ id }) => id);
}

/** Returns the events after the cursor, in order. 0 returns the oldest first. */
export async function listEvents(
  queryable: Queryable,
  after: number,
  limit: number,
): Promise<readonly StoredEvent[]> {
  const rows = await queryable.query(
    `select seq::text, payload::text,
       coalesce((
         select json_agg(json_build_object(
           'publisher', name,
           'status', case when delivered_at is not null then 'delivered'
             when given_up_at is not null then 'given_up'
             when stopped_at is not null then 'stopped' else 'pending' end,
           'attempts', coalesce(attempts, 0),
           'delivered_at', ${utcOf("delivered_at")},
           'next_attempt_at', case when delivered_at is null and given_up_at is null and attempts > 0
             then ${utcOf("next_attempt_at")} end,
           'last_error', delivery.last_error) order by name)
         from marketing_data_service.publisher left join marketing_data_service.delivery
           on delivery.publisher = name and delivery.seq = event.seq
         where delivery.seq is not null or event.seq > cursor), '[]')::text as deliveries
     from marketing_data_service.event
     where event.seq > $1::bigint order by event.seq limit $2::int`,
    [String(after), limit],
  );
  return rows.map(({ seq, payload, deliveries }) => ({
    seq: Number(seq),
    event: JSON.parse(payload),
    deliveries: JSON.parse(deliveries),
  }));
}

/** Unix time of the last success, in seconds, or `undefined` when there was none. */
export async function lastSuccess(
  queryable: Queryable,
): Promise<number | undefined> {
  const [row] = await queryable.query(
    `select extract(epoch from max(finished_at))::float8 as at
     from marketing_data_service.run where state = 'succeeded'`,
  );
  return row?.at ?? undefined;
}

/**
 * Removes finished runs that are older than `days`, with their events. An
 * undelivered event keeps its run, unless its receiver refuses events. Returns the
 * number of removed runs.
 */
export async function pruneHistory(
  queryable: Queryable,
  days: number,
  publishers: readonly PublisherName[],
): Promise<number> {
  const [row] = await queryable.query(
    `with pruned as (
       delete from marketing_data_service.run
       where finished_at < clock_timestamp() - make_interval(secs => $1::float8)
         and not exists (select from marketing_data_service.event, marketing_data_service.publisher
           where run_id = run.id and event.seq > cursor and stopped_at is null
             and name = any ($2::text[]))
       returning 1)
     select count(*)::int as count from pruned`,
    [days * 86400, publishers],
  );
  return row!.count;
}
