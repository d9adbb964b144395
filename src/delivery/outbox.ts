/**
 * The outbox: the cursor of each publisher, and the outcome of each event there.
 *
 * The row of a publisher holds its cursor. Events are numbered in the order of
 * their commits: events up to the cursor are settled, later ones are not. The row
 * is locked from reading the next event until marking it. So several processes
 * deliver one event at a time, in order. If a process ends in between, the event
 * is delivered again.
 */
import type { Session } from "../postgres/session.ts";
import { literal, type Queryable } from "../postgres/sql.ts";
import type { Outcome, OutgoingEvent, Publisher } from "./publisher.ts";
import type { PublisherName } from "../runs/event.ts";
import { representable } from "../runs/record.ts";

/**
 * Records new publishers. The file receives every event of the history. The
 * others receive only later events.
 */
export async function registerPublishers(
  queryable: Queryable,
  names: readonly PublisherName[],
): Promise<void> {
  if (names.length === 0) return;
  // No update: it would wait for a running delivery.
  await queryable.query(
    `insert into marketing_data_service.publisher (name, cursor)
     select name, case name when 'file' then 0
       else (select coalesce(max(seq), 0) from marketing_data_service.event) end
     from unnest($1::text[]) name
     on conflict do nothing`,
    [names],
  );
}

/** The state of a publisher. */
type Backlog =
  | { readonly state: "nothing" }
  | { readonly state: "stopped"; readonly error: string }
  /** Seconds before the next attempt. 0 means now. */
  | { readonly state: "pending"; readonly dueSeconds: number };

/** Returns the state of a publisher, without a lock. */
export async function backlogOf(
  queryable: Queryable,
  { name, target }: Publisher,
): Promise<Backlog> {
  const [row] = await queryable.query(
    `select stopped_at is not null as stopped, last_error, target is not distinct from $2 as same,
       exists (select from marketing_data_service.event where event.seq > cursor) as pending,
       greatest(0, extract(epoch from next_attempt_at - clock_timestamp()))::float8 as due
     from marketing_data_service.publisher where name = $1`,
    [name, target],
  );
  if (row?.stopped && row.same) {
    return { state: "stopped", error: row.last_error };
  }
  if (!row?.pending) return { state: "nothing" };
  return { state: "pending", dueSeconds: row.same ? row.due ?? 0 : 0 };
}

/** One attempt and its consequences. */
export interface Attempt {
  readonly eventId: string;
  /** Number of attempts for this event, including this one. */
  readonly attempts: number;
  readonly outcome: Outcome;
  /** Seconds before the next attempt, after a failure. */
  readonly delaySeconds: number;
  /** Number of events that are given up after this failure. */
  readonly givenUp: number;
}

/**
 * Delivers the next event, in a transaction that marks it.
 *
 * @returns `undefined` when no event can be delivered now.
 * @throws {ServiceError} with SQLSTATE 55P03 when other processes deliver for
 * longer than `lockTimeoutSeconds`. When it is aborted, or the warehouse is lost,
 * the event is not marked and is delivered again.
 */
export async function deliverNext(
  session: Session,
  publisher: Publisher,
  options: {
    signal: AbortSignal;
    lockTimeoutSeconds: number;
    /** Must not use `session`, which is in a transaction. */
    warehouse: Queryable;
  },
): Promise<Attempt | undefined> {
  const next = await claimNext(session, publisher, options.lockTimeoutSeconds);
  if (!next) {
    await session.commit();
    return undefined;
  }
  const outcome = await publisher.publish(
    next,
    AbortSignal.any([options.signal, session.signal]),
  );
  const attempt = outcome.kind === "skipped"
    ? await recordSkip(session, publisher, next)
    : outcome.kind === "delivered"
    ? await recordDelivery(session, publisher, next, outcome)
    : await recordFailure(
      session,
      publisher,
      next,
      // An error of the event file contains its path.
      await representable(options.warehouse, outcome),
    );
  await session.commit();
  return { eventId: next.eventId, outcome, ...attempt };
}

interface ClaimedEvent extends OutgoingEvent {
  readonly failures: number;
}

/** Locks the row of the publisher. Reads the first unsettled event, if an attempt is due. */
async function claimNext(
  session: Session,
  { name, target }: Publisher,
  lockTimeoutSeconds: number,
): Promise<ClaimedEvent | undefined> {
  const own = `name = ${literal(name)}`;
  const aim = target === null ? "null" : literal(target);
  // A new receiver starts without the failures of the old one. A separate statement
  // reads the event: it must see the row under the lock.
  const [row] = await session.begin(
    { mode: "read committed", lockTimeoutSeconds },
    `select from marketing_data_service.publisher where ${own} for update;
     update marketing_data_service.publisher
       set target = ${aim}, stopped_at = null, failures = 0, failing_since = null,
         next_attempt_at = null, last_error = null
       where ${own} and target is distinct from ${aim};
     select event.seq::text as seq, event_id as "eventId", run_id as "runId",
       event_type as "eventType", payload ->> 'timestamp' as timestamp,
       payload ->> 'traceparent' as traceparent, payload::text, failures,
       failing_tables as "failingTables"
     from marketing_data_service.publisher, marketing_data_service.event
     where ${own} and stopped_at is null and event.seq > cursor
       and (next_attempt_at is null or next_attempt_at <= clock_timestamp())
     order by event.seq limit 1`,
  );
  return row as ClaimedEvent | undefined;
}

/** Moves the cursor. The event gets no delivery. */
async function recordSkip(
  session: Session,
  { name }: Publisher,
  { seq }: ClaimedEvent,
) {
  await session.query(
    "update marketing_data_service.publisher set cursor = $1::bigint where name = $2",
    [seq, name],
  );
  return { attempts: 0, delaySeconds: 0, givenUp: 0 };
}

async function recordDelivery(
  session: Session,
  { name }: Publisher,
  { seq }: ClaimedEvent,
  { failingTables }: Extract<Outcome, { kind: "delivered" }>,
) {
  const [row] = await session.query(
    `with done as (
       insert into marketing_data_service.delivery as d (seq, publisher, delivered_at)
       values ($1::bigint, $2, clock_timestamp())
       on conflict (seq, publisher) do update
         set attempts = d.attempts + 1, delivered_at = excluded.delivered_at, given_up_at = null
       returning attempts)
     update marketing_data_service.publisher
     set cursor = $1::bigint, failures = 0, failing_since = null, next_attempt_at = null, last_error = null,
       failing_tables = coalesce($3::json, failing_tables)
     from done where name = $2 returning attempts`,
    [seq, name, failingTables ? JSON.stringify(failingTables) : null],
  );
  return { attempts: row!.attempts as number, delaySeconds: 0, givenUp: 0 };
}

async function recordFailure(
  session: Session,
  publisher: Publisher,
  { seq, failures }: ClaimedEvent,
  outcome: Extract<Outcome, { kind: "failed" | "gone" }>,
) {
  const { name, giveUpAfter } = publisher;
  const isGone = outcome.kind === "gone";
  const delaySeconds = isGone ? 0 : Math.max(
    publisher.delaySeconds(failures + 1),
    outcome.retryAfterSeconds ?? 0,
  );
  const [row] = await session.query(
    `with tried as (
       insert into marketing_data_service.delivery as d (seq, publisher, last_error)
       values ($1::bigint, $2, $3)
       on conflict (seq, publisher) do update
         set attempts = d.attempts + 1, last_error = excluded.last_error
       returning attempts)
     update marketing_data_service.publisher
     set failures = failures + 1, failing_since = coalesce(failing_since, clock_timestamp()), last_error = $3,
       next_attempt_at = clock_timestamp() + make_interval(secs => $4::float8),
       stopped_at = case when $5 then clock_timestamp() end
     from tried where name = $2
     returning attempts, failures, extract(epoch from clock_timestamp() - failing_since)::float8 as failing_seconds`,
    [
      seq,
      name,
      outcome.error,
      publisher.isRemote && !isGone ? delaySeconds : null,
      isGone,
    ],
  );
  const isOver = giveUpAfter !== undefined && !isGone &&
    row!.failing_seconds > giveUpAfter.seconds &&
    row!.failures >= giveUpAfter.failures;
  return {
    attempts: row!.attempts as number,
    delaySeconds,
    givenUp: isOver ? await giveUp(session, name, giveUpAfter.seconds) : 0,
  };
}

/** Gives up events older than the limit, so that the backlog stays limited. */
async function giveUp(
  session: Session,
  name: PublisherName,
  limitSeconds: number,
): Promise<number> {
  const [row] = await session.query(
    `with bounds as (
       select cursor as low, coalesce((select min(seq) from marketing_data_service.event
           where seq > cursor and created_at >= clock_timestamp() - make_interval(secs => $2::float8)),
         9223372036854775807) as high
       from marketing_data_service.publisher where name = $1),
     given_up as (
       insert into marketing_data_service.delivery (seq, publisher, attempts, given_up_at)
       select seq, $1, 0, clock_timestamp() from marketing_data_service.event, bounds
       where seq > low and seq < high
       on conflict (seq, publisher) do update set given_up_at = excluded.given_up_at
       returning seq),
     total as (select count(*)::int as count, max(seq) as last from given_up),
     moved as (
       update marketing_data_service.publisher set cursor = last from total
       where name = $1 and count > 0)
     select count from total`,
    [name, limitSeconds],
  );
  return row!.count;
}

/**
 * Resumes the publishers that their receivers stopped. All waiting events follow.
 *
 * @returns their names.
 */
export async function resumePublishers(
  queryable: Queryable,
): Promise<readonly PublisherName[]> {
  const rows = await queryable.query(
    `update marketing_data_service.publisher
     set stopped_at = null, failures = 0, failing_since = null, next_attempt_at = null, last_error = null
     where stopped_at is not null returning name`,
  );
  return rows.map(({ name }) => name);
}

/** Returns the number of unsettled events by publisher. */
export async function undeliveredEvents(
  queryable: Queryable,
  names: readonly PublisherName[],
): Promise<Readonly<Record<string, number>>> {
  const rows = await queryable.query(
    `select name, (select count(*) from marketing_data_service.event where seq > cursor)::int as count
     from marketing_data_service.publisher
     where name = any ($1::text[])`,
    [names],
  );
  return Object.fromEntries(rows.map(({ name, count }) => [name, count]));
}
