-- An index entry has at most 2,704 bytes, which the names of many tables exceed.
drop index marketing_data_service.run_queued_once;

create unique index run_queued_once on marketing_data_service.run
  (pg_catalog.hash_array_extended(tables, 0::bigint), mode, atomic, recreate)
  where state = 'queued';
