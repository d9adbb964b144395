-- The first rows of a delta, with SHOW_ROWS. They are part of no result, because results
-- become events.
alter table marketing_data_service.table_load
  add column if not exists differing_rows json;
