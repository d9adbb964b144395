-- What the next load can begin its search with. A count of all writes said that
-- there is a change, not where.

alter table marketing_data_service.table_load
  drop column source_writes,
  -- {"deletions", "xid"} of the source table at that time: a hint.
  add column source_mark json;
