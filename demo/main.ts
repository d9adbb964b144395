/**
 * The demo: a real server, both databases with minimal roles, sample data, and three
 * loads. Then a load of another table, which a file declares. `--keep` keeps the server
 * running and prints the variables for other commands.
 *
 * @module
 */
import postgres from "postgres";
import { type PostgresServer, startPostgres } from "./postgres.ts";
import { formatCount } from "../src/format.ts";
import { fillSource, SOURCE_TABLES } from "./sample_data.ts";

const ROWS = { deals: 842, leads: 8000 };
const SOURCE = "olist_ecommerce";
const WAREHOUSE = "example_project_1_dwh";
const CHANGED_ROWS = 5;

/** A declared table, with a renamed column, an expression and a condition. */
const TABLES_FILE = `tables:
  - source: shop.customers
    target: shop_data.customer
    columns:
      id: bigint
      zip_code: { type: text, from: customer_zip_code }
      city: { type: text, expression: "initcap(customer_city)" }
    where: "deleted_at is null"
`;

/** The source of {@linkcode TABLES_FILE}. */
const SHOP = `create schema shop;
  create table shop.customers (id int, customer_zip_code text, customer_city text, deleted_at timestamptz);
  insert into shop.customers
    select i, lpad(i::text, 5, '0'), 'sao paulo', case when i % 10 = 0 then now() end
    from generate_series(1, 1000) i;
  grant usage on schema shop to reader;
  grant select on all tables in schema shop to reader`;

/** Ends the demonstration after a command that printed why it failed. */
class StepFailed extends Error {}

if (import.meta.main) Deno.exit(await main(Deno.args));

async function main(args: string[]): Promise<number> {
  const unknown = args.find((word) => word !== "--keep");
  if (unknown) {
    say(`Unknown flag ${unknown}. Usage: deno task demo [--keep]`);
    return 64;
  }
  // Only this function disposes of the server, so that Ctrl-C cleans up, too.
  const ended = Promise.withResolvers<number>();
  Deno.addSignalListener("SIGINT", () => ended.resolve(130));
  Deno.addSignalListener("SIGTERM", () => ended.resolve(143));
  say("Starting PostgreSQL (downloaded the first time) …");
  await using server = await startPostgres();
  return await Promise.race([
    ended.promise,
    demonstrate(server, args.includes("--keep")).catch((error) => {
      if (!(error instanceof StepFailed)) throw error;
      say("\nThe step above failed. The server is removed.");
      return 1;
    }),
  ]);
}

async function demonstrate(
  server: PostgresServer,
  keeps: boolean,
): Promise<number> {
  const environment = await setUp(server);
  say(
    `\nPostgreSQL ${
      server.version / 10000 | 0
    } runs on ${server.host}:${server.port}. ` +
      `The source has ${formatCount(ROWS.deals)} closed deals and ${
        formatCount(ROWS.leads)
      } leads. The warehouse is empty.`,
  );
  const step = async (title: string, args: string[]) => {
    say(`\n${title}\n$ deno task cli ${args.join(" ")}`);
    const { success } = await run(args, environment);
    if (!success) throw new StepFailed();
  };
  await step("1. The first load copies everything:", ["load"]);
  await step("2. The second load finds no difference and writes nothing:", [
    "load",
  ]);
  await changeSource(server);
  await step(
    `3. ${CHANGED_ROWS} leads changed in the source. The load copies only these:`,
    ["load"],
  );
  await step("4. Source and warehouse hold the same rows:", ["verify"]);
  await showEvent(server);
  const file = await Deno.makeTempFile({ suffix: ".yaml" });
  try {
    await Deno.writeTextFile(file, TABLES_FILE);
    environment.TABLES_FILE = file;
    say(`\nA file declares another table:\n\n${TABLES_FILE}`);
    await step("5. The load of the declared table:", ["load"]);
  } finally {
    delete environment.TABLES_FILE;
    await Deno.remove(file);
  }
  if (keeps) await keepUp(environment);
  say("\nDone. The server is removed.");
  return 0;
}

function connect(server: PostgresServer, database?: string) {
  return postgres(server.url(database), {
    max: 1,
    fetch_types: false,
    onnotice: () => {},
  });
}

/** Creates databases, roles and rows. Returns the variables for the program. */
async function setUp(server: PostgresServer): Promise<Record<string, string>> {
  const admin = connect(server);
  await admin.unsafe(`create role reader login`);
  await admin.unsafe(`create role loader login`);
  await admin.unsafe(`create database ${SOURCE}`);
  await admin.unsafe(`create database ${WAREHOUSE}`);
  // The service needs no other right in the warehouse.
  await admin.unsafe(`grant create on database ${WAREHOUSE} to loader`);
  await admin.end();
  await inSource(server, async (sql) => {
    await sql.unsafe("create schema marketing");
    await sql.unsafe(SOURCE_TABLES);
    await fillSource(sql, ROWS);
    // The service needs no other right in the source.
    await sql.unsafe("grant usage on schema marketing to reader");
    await sql.unsafe(
      "grant select on all tables in schema marketing to reader",
    );
    await sql.unsafe(SHOP);
  });
  const address = { HOST: server.host, PORT: String(server.port) };
  return {
    ...prefixed("OLIST_DB", { ...address, USER: "reader", NAME: SOURCE }),
    ...prefixed("DWH_DB", { ...address, USER: "loader", NAME: WAREHOUSE }),
  };
}

function prefixed(
  prefix: string,
  values: Record<string, string>,
): Record<string, string> {
  return Object.fromEntries(
    Object.entries(values).map(([k, v]) => [`${prefix}_${k}`, v]),
  );
}

async function inSource(
  server: PostgresServer,
  work: (sql: ReturnType<typeof connect>) => Promise<unknown>,
): Promise<void> {
  const sql = connect(server, SOURCE);
  await work(sql);
  await sql.end();
}

async function changeSource(server: PostgresServer): Promise<void> {
  await inSource(server, (sql) =>
    sql.unsafe(
      `update marketing.marketing_qualified_leads set origin = 'referral'
       where ctid in (select ctid from marketing.marketing_qualified_leads
         where origin is distinct from 'referral' limit ${CHANGED_ROWS})`,
    ));
}

/** Runs the program as a user would, with its output on this terminal. */
function run(
  args: string[],
  environment: Record<string, string>,
): Promise<Deno.CommandStatus> {
  return new Deno.Command(Deno.execPath(), {
    args: ["task", "--quiet", "cli", ...args, "--quiet"],
    cwd: new URL("..", import.meta.url),
    env: environment,
    stdin: "null",
  }).spawn().status;
}

async function showEvent(server: PostgresServer): Promise<void> {
  const sql = connect(server, WAREHOUSE);
  const [row] = await sql.unsafe(
    "select payload from marketing_data_service.event order by seq desc limit 1",
  );
  await sql.end();
  say(
    `\nThe event of the last load:\n${JSON.stringify(row!.payload, null, 2)}`,
  );
}

async function keepUp(environment: Record<string, string>): Promise<void> {
  const lines = Object.entries(environment).map(([name, value]) =>
    `export ${name}=${value}`
  );
  say(
    `\nThe server runs until Ctrl-C. In another terminal:\n\n${
      lines.join("\n")
    }\n` +
      "deno task load\n",
  );
  await new Promise<never>(() => {
    // A pending promise alone does not keep the process alive.
    setInterval(() => {}, 60_000);
  });
}

function say(text: string): void {
  Deno.stdout.writeSync(new TextEncoder().encode(`${text}\n`));
}
