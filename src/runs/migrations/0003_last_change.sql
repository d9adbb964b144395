-- The last write to a table. Most loads write nothing, so without this index the
-- dashboard would read all of them.

create index table_load_written on marketing_data_service.table_load (table_name, finished_at desc)
  where state = 'succeeded' and result ->> 'mode' <> 'unchanged';
