/**
 * Creates the source tables in the database that `OLIST_DB_*` names, and fills them
 * with sample data. Changes nothing if the tables exist.
 *
 * @module
 */
import postgres from "postgres";
import { parseConfig } from "../src/config/config.ts";
import { fillSource, SOURCE_TABLES } from "./sample_data.ts";

/** The numbers of rows of the published data set. */
const ROWS = { deals: 842, leads: 8000 };

if (import.meta.main) Deno.exit(await main());

async function main(): Promise<number> {
  const { olist } = parseConfig(
    Deno.env.toObject(),
    (path) => Deno.readTextFileSync(path),
  );
  const sql = postgres({
    host: olist.servers[0]!.host,
    port: olist.servers[0]!.port,
    database: olist.database,
    username: olist.user,
    password: olist.password.read() ?? "",
    max: 1,
    fetch_types: false,
    onnotice: () => {},
  });
  try {
    const done = await sql.begin(async (sql) => {
      await sql`create schema if not exists marketing`;
      const [found] = await sql`
        select from pg_tables where schemaname = 'marketing'
          and tablename in ('closed_deals', 'marketing_qualified_leads')`;
      if (found) return "The source tables exist. Nothing is changed.";
      await sql.unsafe(SOURCE_TABLES);
      await fillSource(sql, ROWS);
      return `Filled the source with ${ROWS.deals} deals and ${ROWS.leads} leads.`;
    });
    print(done);
    return 0;
  } catch (error) {
    print(`Cannot fill the source: ${(error as Error).message}`);
    return 1;
  } finally {
    await sql.end({ timeout: 1 });
  }
}

function print(text: string): void {
  Deno.stdout.writeSync(new TextEncoder().encode(`${text}\n`));
}
