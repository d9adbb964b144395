-- The start of the next load's search. The number of all writes shows a change, but
-- not its place.

alter table marketing_data_service.table_load
  drop column source_writes,
  -- {"deletions", "xid"} of the source table at that time: a hint.
  add column source_mark json;
