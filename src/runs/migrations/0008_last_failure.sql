-- The last failure of a table. Without this, the list of tables would read back through
-- all loads of each table that has never failed.

create index if not exists table_load_failed on marketing_data_service.table_load (table_name, finished_at desc)
  where state = 'failed';
