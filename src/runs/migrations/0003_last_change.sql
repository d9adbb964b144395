-- When a table was last written to. Most loads find nothing to write, so without
-- this every look at the dashboard would read back through all of them.

create index table_load_written on marketing_data_service.table_load (table_name, finished_at desc)
  where state = 'succeeded' and result ->> 'mode' <> 'unchanged';
