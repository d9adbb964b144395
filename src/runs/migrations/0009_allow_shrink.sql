-- A request that allows a load to remove most rows shares no run with one that does not.
alter table marketing_data_service.run
  add column if not exists allow_shrink boolean not null default false;

drop index if exists marketing_data_service.run_queued_once;

create unique index run_queued_once on marketing_data_service.run
  (pg_catalog.hash_array_extended(tables, 0::bigint), mode, atomic, recreate, allow_shrink)
  where state = 'queued';
