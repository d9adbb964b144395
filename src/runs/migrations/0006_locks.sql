-- Locks that need a privilege. Any role that may connect can take an advisory lock,
-- and could stop all loads with it.

-- A load holds this table in exclusive mode. Such a lock needs no row, no snapshot
-- and no transaction id, so it does not keep VACUUM or CREATE INDEX CONCURRENTLY waiting.
create table if not exists marketing_data_service.load_lock ();

-- Locked from the number of an event until its commit.
create table if not exists marketing_data_service.event_order (
  only_one boolean primary key default true check (only_one),
  -- The server of the last number. A promoted, restored or restarted server may lack
  -- the newest events, so its numbers continue far above them.
  server text not null
);

insert into marketing_data_service.event_order (server)
  select system_identifier || '/' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)
    || '/' || extract(epoch from pg_postmaster_start_time())
  from pg_control_system()
  on conflict do nothing;

-- A load of an older version holds an advisory lock. It ends before this commits.
-- No other one begins, because an older version refuses a newer schema.
do $$ begin
  if exists (select from pg_locks join pg_stat_activity using (pid)
      where locktype = 'advisory' and objid = 5714290 and granted
        and database = (select oid from pg_database where datname = current_database())
        and usename = session_user) then
    perform pg_advisory_xact_lock(5714290);
  end if;
end $$;
