-- Locks that take a right. Any role that may connect can take an advisory lock,
-- and would stop all loads with it.

-- A load holds this table in exclusive mode. Such a lock needs no row, no snapshot
-- and no transaction id, so it does not keep VACUUM or CREATE INDEX CONCURRENTLY waiting.
create table if not exists marketing_data_service.load_lock ();

-- Locked from the moment an event gets its number until that is committed.
create table if not exists marketing_data_service.event_order (
  only_one boolean primary key default true check (only_one),
  -- The server that gave out the last number. A server that was promoted, restored or
  -- restarted may lack the newest events, so its numbers go on far above them.
  server text not null
);

insert into marketing_data_service.event_order (server)
  select system_identifier || '/' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)
    || '/' || extract(epoch from pg_postmaster_start_time())
  from pg_control_system()
  on conflict do nothing;

-- A load of an older program holds an advisory lock. It ends before this commits,
-- and no other one begins: an older program refuses a newer schema.
do $$ begin
  if exists (select from pg_locks join pg_stat_activity using (pid)
      where locktype = 'advisory' and objid = 5714290 and granted
        and database = (select oid from pg_database where datname = current_database())
        and usename = session_user) then
    perform pg_advisory_xact_lock(5714290);
  end if;
end $$;
