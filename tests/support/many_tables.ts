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
  return await writeTablesFile(
    `tables:\n${
      Array.from(
        { length: count },
        (_, i) => `  - { source: many.t${i + 1}, target: raw.t${i + 1} }\n`,
      ).join("")
    }`,
  );
}
