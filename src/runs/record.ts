/**
 * Records the results of a run: its tables, its end and its event.
 *
 * @module
 */
import type { Queryable } from "../postgres/sql.ts";
import type { Session } from "../postgres/session.ts";
import { type ErrorCode, hasSqlstate, ServiceError } from "../errors.ts";
import {
  EVENT_CHANNEL,
  type IntegrityCheck,
  type LoadedEntry,
  type LoadEvent,
} from "./event.ts";
import type { PhaseTiming } from "../sync/progress.ts";
import type { DifferingRows } from "../diff/differing_rows.ts";
import type { LastLoad } from "../sync/sync_table.ts";
import type { RunState } from "./run.ts";

/** Names a server until it is promoted, restored or restarted. */
const SERVER = `(select system_identifier
    || '/' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)
    || '/' || extract(epoch from pg_postmaster_start_time())
  from pg_control_system())`;

/**
 * Minimum gap between the numbers of events after a change of the server. A standby
 * may lack the newest events, and their numbers must not be reused. The clock is for
 * a backup that is restored twice.
 */
const SEQUENCE_JUMP = 1_000_000;

/** Returns SQL for a time in the format of an event. */
export const eventTime = (time: string) =>
  `to_char(${time} at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US')`;

/** SQL for the time of the database in the format of an event. */
export const NOW = eventTime("clock_timestamp()");

/**
 * SQL that is true for a queued run that no caller waits for. A process that ends
 * withdraws its wait. The wait of one that crashes ends some seconds after its deadline.
 */
export const IS_UNWANTED = "wait_until < clock_timestamp() - interval '5 s'";

/** Codes of a run that was stopped. */
const STOPPED: readonly ErrorCode[] = ["interrupted", "terminated", "draining"];

/**
 * Returns the value with a question mark for each letter that the encoding of the
 * warehouse cannot represent. It would refuse a record with such a letter.
 *
 * @param warehouse must not be in a transaction, which the first such letter would end.
 */
export async function representable<T>(
  warehouse: Queryable,
  value: T,
): Promise<T> {
  const text = JSON.stringify(value ?? null);
  const letters = new Set(text.match(/[^\0-\x7f]/gu));
  if (letters.size === 0) return value;
  const accepts = async (letter: string) => {
    try {
      await warehouse.query("select $1::text", [letter]);
      return true;
    } catch (error) {
      if (hasSqlstate(error, "22P05")) return false;
      throw error;
    }
  };
  if (await accepts([...letters].join(""))) return value;
  const refused = new Set<string>();
  for (const letter of letters) {
    if (!await accepts(letter)) refused.add(letter);
  }
  return JSON.parse(
    text.replace(
      /[^\0-\x7f]/gu,
      (letter) => refused.has(letter) ? "?" : letter,
    ),
  );
}

/**
 * Closes a run in one statement: state, failed tables, event and notification.
 * Closes a queued run only while no caller waits for it.
 *
 * @param written the event. In a transaction, it must be {@linkcode representable}.
 * @param code code of the failure. Events of version 0.1 lack it.
 * @throws {ServiceError} `run_lost` when the run is already closed, or a caller waits for it again.
 */
export async function closeRun(
  queryable: Queryable,
  runId: string,
  from: "queued" | "running",
  written: LoadEvent,
  code = written.status === "failure" ? written.code : undefined,
): Promise<void> {
  const event = await representable(queryable, written);
  const state: RunState = event.status === "success"
    ? "succeeded"
    : code && STOPPED.includes(code)
    ? "interrupted"
    : "failed";
  const failed = event.status === "success"
    ? []
    : event.details.results.filter(({ status }) => status === "failure");
  const notification = {
    event_id: event.event_id,
    run_id: event.run_id,
    event_type: event.event_type,
    status: event.status,
  };
  const [row] = await queryable.query(
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
       from closed, json_array_elements($7::json) entry
       on conflict do nothing),
     announced as (
       insert into marketing_data_service.event (seq, event_id, run_id, event_type, payload)
       overriding system value
       select coalesce(moved.seq, nextval('marketing_data_service.event_seq_seq')),
         $8::uuid, closed.id, $9, $10::json
       from closed left join moved on true returning seq)
     select seq::text, pg_notify('${EVENT_CHANNEL}', $11) from announced`,
    [
      runId,
      from,
      state,
      event.status === "failure" ? event.error : null,
      code ?? null,
      event.source_snapshot_at ?? null,
      JSON.stringify(failed),
      event.event_id,
      event.event_type,
      JSON.stringify(event),
      JSON.stringify(notification),
    ],
  );
  if (!row) throw closedElsewhere(runId);
}

function closedElsewhere(runId: string): ServiceError {
  return new ServiceError("run_lost", `Another process closed run ${runId}`);
}

/**
 * Checks that no other process has closed the run, and prevents that until the
 * transaction ends. Returns the time of the database.
 *
 * @throws {ServiceError} `run_lost`.
 */
export async function confirmRun(
  queryable: Queryable,
  runId: string,
): Promise<string> {
  const [row] = await queryable.query(
    `select ${NOW} as now from marketing_data_service.run
     where id = $1::uuid and state = 'running' for share`,
    [runId],
  );
  if (!row) throw closedElsewhere(runId);
  return row.now;
}

/** Returns the database's time in the format of an event. */
export async function databaseTime(queryable: Queryable): Promise<string> {
  const [row] = await queryable.query(`select ${NOW} as now`);
  return row!.now;
}

/**
 * Checks that this transaction has not changed the history's tables themselves.
 * Functions that a target calls run with the privileges of the service. A trigger
 * that they add to the history would run after the verification.
 *
 * @throws {ServiceError} `target_incompatible`.
 */
export async function checkHistoryTables(session: Session): Promise<void> {
  // No earlier subtransaction has a greater number than a new one, which writes this row.
  const [made] = await session.query(
    "savepoint newest; select lo_create(0) as oid",
  );
  const [newest] = await session.query(
    `select xmin::text as xid from pg_largeobject_metadata where oid = ${
      made!.oid
    }`,
  );
  // Frozen rows keep their numbers, and those of old rows seem to be of the future.
  const isWritten = `age(xmin) between age('${newest!.xid}'::xid) and 0`;
  const [row] = await session.query(
    `rollback to savepoint newest; release savepoint newest;
     with history as materialized (
       select c.oid, c.xmin from pg_class c
       where c.relnamespace = 'marketing_data_service'::regnamespace)
     select exists (
       select from (
         select xmin from pg_namespace where oid = 'marketing_data_service'::regnamespace
         union all select xmin from history
         ${
      Object.entries(PARTS).map(([catalog, relation]) =>
        `union all select part.xmin from pg_${catalog} part join history on history.oid = part.${relation}`
      ).join("\n")
    }) rows where ${isWritten}) or exists (
       -- The next load trusts these rows. Other transactions may have added some.
       select from marketing_data_service.table_load where ${isWritten} and 'in progress' = txid_status(
         txid_current() - (age(xmin) - age((txid_current() % 4294967296)::text::xid)))) as changed`,
  );
  if (!row!.changed) return;
  throw new ServiceError(
    "target_incompatible",
    "a function that the target calls, as in a trigger, changes the tables of the service",
    { remedy: "Remove that statement from the function." },
  );
}

/** The catalogs of the parts of a table, with the column that refers to the table. */
const PARTS = {
  attribute: "attrelid",
  attrdef: "adrelid",
  constraint: "conrelid",
  index: "indrelid",
  inherits: "inhparent",
  policy: "polrelid",
  rewrite: "ev_class",
  trigger: "tgrelid",
};

/** Records the load of a table, in the same transaction. */
export async function recordTableLoad(
  session: Session,
  runId: string,
  entry: LoadedEntry,
  check: IntegrityCheck,
  phases: readonly PhaseTiming[],
  mark: LastLoad | undefined,
  differingRows: DifferingRows | undefined,
): Promise<void> {
  await session.query(
    `insert into marketing_data_service.table_load
       (run_id, table_name, state, result, integrity_check, phases, source_mark, differing_rows)
     values ($1::uuid, $2, 'succeeded', $3::json, $4::json, $5::json, $6::json, $7::json)`,
    [
      runId,
      entry.table,
      JSON.stringify(entry),
      JSON.stringify(check),
      JSON.stringify(phases),
      mark ? JSON.stringify(mark) : null,
      differingRows ? JSON.stringify(differingRows) : null,
    ],
  );
}

/**
 * Deletes the records of tables from a lost snapshot. They are loaded again with all
 * the others from the next snapshot.
 */
export async function forgetTableLoads(
  queryable: Queryable,
  runId: string,
): Promise<void> {
  await queryable.query(
    "delete from marketing_data_service.table_load where run_id = $1::uuid",
    [runId],
  );
}

/** Returns the last load of each table, where it is known. */
export async function lastLoadsOf(
  queryable: Queryable,
  tables: readonly string[],
): Promise<ReadonlyMap<string, LastLoad>> {
  const rows = await queryable.query(
    `select name, source_mark as mark
     from unnest($1::text[]) name,
       lateral (select source_mark from marketing_data_service.table_load
         where table_name = name and state = 'succeeded'
         order by finished_at desc limit 1) latest
     where source_mark is not null`,
    [tables],
  );
  return new Map(
    rows.map(({ name, mark }) => [name, mark]),
  );
}

/** Returns the entries of the tables that a run has loaded and committed. */
export async function loadedByRun(
  queryable: Queryable,
  runId: string,
): Promise<LoadedEntry[]> {
  const rows = await queryable.query(
    `select result::text from marketing_data_service.table_load
     where run_id = $1::uuid and state = 'succeeded'`,
    [runId],
  );
  return rows.map((row) => JSON.parse(row.result));
}

/** Returns the event of a run, or `undefined` while it has none. */
export async function eventOf(
  queryable: Queryable,
  runId: string,
): Promise<LoadEvent | undefined> {
  const [row] = await queryable.query(
    `select payload::text from marketing_data_service.event where run_id = $1::uuid`,
    [runId],
  );
  return row && JSON.parse(row.payload);
}
