/** Writes a long history of runs into the warehouse. */
import type { Databases } from "./databases.ts";

/**
 * Writes finished runs as the service does. Most runs changed a few rows or none.
 * The oldest one is full, every 17th one failed, and every 101st one was
 * interrupted. They are at most six hours apart, so that none is older than the
 * retention.
 */
export async function writeHistory(
  { warehouse }: Databases,
  runs: number,
): Promise<void> {
  await warehouse.unsafe(`
    create temporary table made as
    with spread as (select least(interval '6 h', interval '80 d' / ${runs}) as step)
    select i, gen_random_uuid() as id, gen_random_uuid() as event_id,
      case when i % 101 = 37 then 'interrupted' when i % 17 = 11 then 'failed' else 'succeeded' end as state,
      clock_timestamp() - (${runs} - i) * step - interval '20 min' as at,
      case when i = 0 then 2.4 else 0.16 + (i * 7919 % 83) / 260.0 end as took,
      (array['schedule', 'schedule', 'schedule', 'http', 'cli', 'notify'])[1 + i % 6] as trigger
    from spread, generate_series(0, ${runs - 1}) i`);
  await warehouse.unsafe(`
    create temporary table made_table as
    select made.*, name, failed,
      case when failed then json_build_object('table', name, 'status', 'failure',
        'error', message || ' ' || remedy, 'code', code, 'attempts', 1)
      else json_build_object('table', name, 'status', 'success',
        'records_loaded', base + i * 3, 'duration', round((took * share)::numeric, 3), 'mode', mode,
        'rows_inserted', inserted, 'rows_deleted', deleted, 'bytes_copied', inserted * 118,
        'checksum', (i * 7046318043367 - 904631804336)::text, 'attempts', 1, 'warnings', '[]'::json) end as result
    from made, lateral (values
      ('closed_deal', 842, 0.6, i * 13 % 7, state <> 'succeeded',
        'Cannot load closed_deal: column "won_date" is missing in marketing.closed_deals.',
        'Add the column to the source table, or restore its name.', 'source_column_missing'),
      ('marketing_qualified_lead', 8000, 0.9, i * 29 % 11, state = 'interrupted',
        'Run was interrupted: the process that ran it ended or was suspended.',
        'The process that ran the load ended before it was done; load again.', 'interrupted')
    ) t (name, base, share, kind, failed, message, remedy, code),
    lateral (select case when i = 0 then 'full' when kind < 3 then 'unchanged' else 'delta' end as mode) m,
    lateral (select case mode when 'full' then base when 'delta' then kind * kind * 4 + i % 5 else 0 end as inserted,
      case mode when 'delta' then kind * 3 + i % 3 else 0 end as deleted) n`);
  await warehouse.unsafe(`
    insert into marketing_data_service.run (id, state, trigger, tables, mode, atomic, recreate,
      requested_at, started_at, finished_at, runner, source_snapshot_at, error, code)
    select id, state, trigger, array['closed_deal', 'marketing_qualified_lead'], 'auto', false, false,
      at, at + interval '30 ms', at + interval '30 ms' + took * interval '1 s', 'marketing-data-service 1',
      to_char(at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
      errors,
      case state when 'failed' then 'source_column_missing' when 'interrupted' then 'interrupted' end
    from made left join (select i, string_agg(result ->> 'error', ' ') as errors
      from made_table where failed group by i) e using (i) order by i`);
  await warehouse.unsafe(`
    insert into marketing_data_service.table_load
      (run_id, table_name, state, result, integrity_check, phases, finished_at)
    select id, name, case when failed then 'failed' else 'succeeded' end, result,
      case when not failed then json_build_object('table', name, 'integrity_ok', true,
        'source_count', result -> 'records_loaded', 'target_count', result -> 'records_loaded') end,
      case when failed then '[]'::json else json_build_array(
        json_build_object('phase', 'lock', 'started_after', 0, 'seconds', took * 0.1),
        json_build_object('phase', 'compare', 'started_after', took * 0.1, 'seconds', took * 0.4),
        json_build_object('phase', 'verify', 'started_after', took * 0.5, 'seconds', took * 0.1)) end,
      at + took * interval '1 s'
    from made_table order by i`);
  await warehouse.unsafe(`
    insert into marketing_data_service.event (event_id, run_id, event_type, payload, created_at)
    select event_id, id,
      case state when 'succeeded' then 'marketing-data-loaded' else 'marketing-data-load-failed' end,
      case state when 'succeeded' then json_build_object('event_type', 'marketing-data-loaded',
        'status', 'success', 'timestamp', to_char(at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US'),
        'results', json_build_object('results', results), 'event_id', event_id, 'run_id', id, 'trigger', trigger)
      else json_build_object('event_type', 'marketing-data-load-failed',
        'status', 'failure', 'timestamp', to_char(at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US'),
        'details', json_build_object('results', results), 'event_id', event_id, 'run_id', id, 'trigger', trigger) end,
      at
    from (select i, json_agg(result) as results from made_table group by i) r join made using (i) order by i`);
  await warehouse.unsafe("drop table made_table, made");
  await warehouse.unsafe("analyze");
}
