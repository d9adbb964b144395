-- The history of the service: runs, the result of each table, and events.
-- The constraints hold for every program that writes here.

create table marketing_data_service.run (
  -- Order of requests, for paging. Ids have no order.
  seq bigint generated always as identity unique,
  id uuid primary key,
  state text not null default 'queued'
    check (state in ('queued', 'running', 'succeeded', 'failed', 'interrupted')),
  trigger text not null check (trigger in ('http', 'cli', 'schedule', 'notify')),
  tables text[] not null check (cardinality(tables) > 0),
  mode text not null check (mode in ('auto', 'full')),
  atomic boolean not null,
  recreate boolean not null,
  requested_at timestamptz not null default clock_timestamp(),
  -- Deadline of the last caller. Infinity means that the run always runs.
  wait_until timestamptz not null default 'infinity',
  -- The tick of the schedule: replicas with one schedule run one load per tick.
  tick timestamptz unique,
  started_at timestamptz,
  finished_at timestamptz,
  -- application_name and host of the process that runs it.
  runner text,
  source_snapshot_at text,
  error text,
  code text,
  check (state <> 'queued' or started_at is null),
  check (state <> 'running' or started_at is not null),
  check ((finished_at is not null) = (state in ('succeeded', 'failed', 'interrupted'))),
  check ((error is not null) = (state in ('failed', 'interrupted')))
);

-- Waiting requests with equal options share one run.
create unique index run_queued_once on marketing_data_service.run (tables, mode, atomic, recreate)
  where state = 'queued';

create index run_unfinished on marketing_data_service.run (state)
  where state in ('queued', 'running');

create index run_finished on marketing_data_service.run (finished_at);

create table marketing_data_service.table_load (
  run_id uuid not null references marketing_data_service.run on delete cascade,
  table_name text not null,
  state text not null check (state in ('succeeded', 'failed')),
  -- The entry of the results in the event.
  result json not null,
  integrity_check json,
  phases json not null default '[]',
  -- Number of writes to the source table at that time: a hint for the next load.
  source_writes text,
  finished_at timestamptz not null default clock_timestamp(),
  primary key (run_id, table_name),
  check ((integrity_check is not null) = (state = 'succeeded'))
);

create index table_load_latest on marketing_data_service.table_load (table_name, finished_at desc)
  where state = 'succeeded';

create table marketing_data_service.event (
  -- Order of commits: a lock is held from the number until the commit.
  seq bigint generated always as identity primary key,
  event_id uuid not null unique,
  -- Each run has exactly one event.
  run_id uuid not null unique references marketing_data_service.run on delete cascade,
  event_type text not null
    check (event_type in ('marketing-data-loaded', 'marketing-data-load-failed')),
  -- json, not jsonb: consumers see the order of the fields.
  payload json not null,
  created_at timestamptz not null default clock_timestamp(),
  file_delivered_at timestamptz
);

create index event_not_in_file on marketing_data_service.event (seq)
  where file_delivered_at is null;
