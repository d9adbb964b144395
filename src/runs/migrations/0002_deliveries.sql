-- Deliveries of events to a file and a webhook.

create table marketing_data_service.publisher (
  name text primary key check (name in ('file', 'webhook')),
  -- Events up to here are settled: delivered, given up, or older than the publisher.
  -- Numbers are in the order of commits, so no earlier event can appear later.
  cursor bigint not null check (cursor >= 0),
  -- Digest of the destination: its address can contain a secret.
  target text,
  -- Failures since the last success. They determine the delay of the next attempt.
  failures int not null default 0 check (failures >= 0),
  failing_since timestamptz,
  next_attempt_at timestamptz,
  last_error text,
  -- The receiver answered 410: nothing is sent until it is changed or resumed.
  stopped_at timestamptz,
  check ((failing_since is null) = (failures = 0))
);

create table marketing_data_service.delivery (
  seq bigint not null references marketing_data_service.event on delete cascade,
  publisher text not null check (publisher in ('file', 'webhook')),
  attempts int not null default 1 check (attempts >= 0),
  delivered_at timestamptz,
  given_up_at timestamptz,
  last_error text,
  primary key (seq, publisher),
  check (delivered_at is null or given_up_at is null)
);

-- Keep the state of the file. It was filled in order, so it has all events before the first missing one.
insert into marketing_data_service.delivery (seq, publisher, delivered_at)
  select seq, 'file', file_delivered_at from marketing_data_service.event
  where file_delivered_at is not null;

insert into marketing_data_service.publisher (name, cursor)
  select 'file', coalesce(min(seq) filter (where file_delivered_at is null) - 1, max(seq))
  from marketing_data_service.event having count(file_delivered_at) > 0;

drop index marketing_data_service.event_not_in_file;
alter table marketing_data_service.event drop column file_delivered_at;
