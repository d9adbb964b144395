/**
 * A source with many small tables, and the file that declares them.
 *
 * @module
 */
import type { Databases } from "./databases.ts";
import { type TablesFile, writeTablesFile } from "./tables_file.ts";

/**
 * Creates the tables `many.t1` to `many.t{count}` in the source, in one statement,
 * and declares them. Each has a few rows.
 */
export async function createManyTables(
  db: Databases,
  count: number,
  prefix = "t",
): Promise<TablesFile> {
  await db.source.unsafe(
    `create schema many;
     do $$ begin
       for i in 1..${count} loop
         execute format('create table many.t%s as select i as id, ''x'' || i as name from generate_series(1, %s) i', i, 10 + i % 7);
       end loop;
     end $$;
     grant usage on schema many to "${db.reader}";
     grant select on all tables in schema many to "${db.reader}"`,
  );
  return await declareManyTables(count, prefix);
}

/** Declares the tables `many.t1` to `many.t{count}`, in two groups, under names with the prefix. */
export async function declareManyTables(
  count: number,
  prefix = "t",
): Promise<TablesFile> {
  return await writeTablesFile(
    `tables:\n${
      Array.from({ length: count }, (_, i) =>
        `  - { source: many.t${i + 1}, target: raw.t${i + 1}, name: ${prefix}${
          i + 1
        }, group: ${i % 2 === 0 ? "odd" : "even"} }\n`).join("")
    }`,
  );
}

/**
 * Writes finished runs of these tables into the history. A tenth of the loads
 * changes rows. In the newest run, the table t7 fails.
 *
 * @returns id of the newest run.
 */
export async function writeManyRuns(
  { warehouse }: Databases,
  count: number,
  runs: number,
): Promise<string> {
  await warehouse.unsafe(`
    create temporary table made as
    select i, gen_random_uuid() as id, clock_timestamp() - interval '6 h' * (${runs} - i) - interval '1 h' as at
    from generate_series(1, ${runs}) i;
    insert into marketing_data_service.run (id, state, trigger, tables, mode, atomic, recreate,
      requested_at, started_at, finished_at, runner, source_snapshot_at, error, code)
    select id, case when i = ${runs} then 'failed' else 'succeeded' end, 'schedule',
      array(select 't' || n from generate_series(1, ${count}) n), 'auto', false, false,
      at, at, at + interval '14 s', 'test', to_char(at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US'),
      case when i = ${runs} then 'Cannot load t7: it is missing.' end,
      case when i = ${runs} then 'source_table_missing' end
    from made order by i;
    insert into marketing_data_service.table_load
      (run_id, table_name, state, result, integrity_check, phases, finished_at)
    select id, name, case when failed then 'failed' else 'succeeded' end,
      case when failed then json_build_object('table', name, 'status', 'failure',
        'error', 'Cannot load t7: it is missing. Create it.', 'message', 'Cannot load t7: it is missing.',
        'remedy', 'Create it.', 'code', 'source_table_missing', 'attempts', 1)
      else json_build_object('table', name, 'status', 'success', 'records_loaded', n * 7919 % 1000000,
        'duration', round((0.05 + (n * i) % 83 / 260.0)::numeric, 3),
        'mode', case when (n + i) % 10 = 0 then 'delta' else 'unchanged' end,
        'rows_inserted', case when (n + i) % 10 = 0 then n else 0 end, 'rows_deleted', 0, 'bytes_copied', 118,
        'checksum', n::text, 'attempts', 1, 'warnings', '[]'::json) end,
      case when not failed then json_build_object('table', name, 'integrity_ok', true,
        'source_count', n, 'target_count', n) end,
      case when failed then '[]'::json else json_build_array(
        json_build_object('phase', 'compare', 'started_after', 0, 'seconds', 0.04)) end,
      at + interval '10 s'
    from made, generate_series(1, ${count}) n, lateral (select 't' || n as name, i = ${runs} and n = 7 as failed) t;
    analyze`);
  const [newest] = await warehouse.unsafe(
    `select id from made order by i desc limit 1`,
  );
  return newest!.id;
}
