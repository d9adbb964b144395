/**
 * Measures `verify --rows` and `verify` in turn, on a table with few differences. Checks
 * that exactly the planted differences are named.
 * Usage: `deno task bench:rows [--rows N] [--rounds N]`.
 *
 * @module
 */
import postgres from "postgres";
import { findInstalledPostgres, startPostgres } from "../demo/postgres.ts";
import { measure, parseFlags, print, ROOT } from "./main.ts";

/** One change in this many rows: updates in the source, and rows that only one side has. */
const DISTANCE = 10_000;

const { rows, rounds } = parseFlags(
  "deno task bench:rows [--rows N] [--rounds N]",
  { rows: 1_000_000, rounds: 5 },
);

const binDirectory = findInstalledPostgres();
await using server = await startPostgres({
  settings: { shared_buffers: "512MB", max_wal_size: "8GB" },
  ...(binDirectory ? { binDirectory } : {}),
});
const clientOf = (database?: string) =>
  postgres(server.url(database), {
    max: 1,
    fetch_types: false,
    onnotice: () => {},
  });
const admin = clientOf();
await admin.unsafe("create database olist");
await admin.unsafe("create database dwh");
await admin.end();
const source = clientOf("olist");
await source.unsafe(
  `create schema shop;
   create table shop.item as
     select i::bigint as id, md5(i::text) as code, 'name ' || i as name, i % 7 as kind, i / 3.0 as price,
       timestamptz '2024-01-01' + i * interval '1 minute' as sold, i % 2 = 0 as active, md5((i % 1000)::text) as city, i * 1.5::float8 as ratio
     from generate_series(1, ${rows}) i;
   create view shop.seen as select * from shop.item`,
);
const tables = await Deno.makeTempFile({ suffix: ".yaml" });
await Deno.writeTextFile(
  tables,
  `tables:
  - { source: shop.item, target: d.keyed, key: [id] }
  - { source: shop.item, target: d.keyless }
  - { source: shop.seen, target: d.view, key: [id] }
`,
);
const environment: Record<string, string> = {
  LOG_LEVEL: "ERROR",
  TABLES_FILE: tables,
  OLIST_DB_NAME: "olist",
  DWH_DB_NAME: "dwh",
};
for (const side of ["OLIST_DB", "DWH_DB"]) {
  environment[`${side}_HOST`] = server.host;
  environment[`${side}_PORT`] = String(server.port);
  environment[`${side}_USER`] = server.superuser;
}
const TASK = ["task", "--quiet", "cli"];
await measure(Deno.execPath(), [...TASK, "load", "--quiet"], environment);

// Every distance has a changed row, a row of the source only, and a row of the target only.
await source.unsafe(
  `update shop.item set city = city || '!' where id % ${DISTANCE} = 1;
   delete from shop.item where id % ${DISTANCE} = 2;
   insert into shop.item (id) select -i from generate_series(1, ${
    rows / DISTANCE
  }) i`,
);
await source.unsafe("vacuum analyze");
const warehouse = clientOf("dwh");
await warehouse.unsafe("vacuum analyze");
await source.end();
await warehouse.end();
const planted = {
  changed: Math.ceil((rows - 1) / DISTANCE),
  source: Math.floor(rows / DISTANCE),
  target: Math.ceil((rows - 2) / DISTANCE),
};

for (const table of ["keyed", "keyless", "view"]) {
  const { json } = await verified(table);
  const found = json.tables[0].differing_rows.rows as {
    source: number;
    target: number;
  }[];
  const sizeOf = (of: string) =>
    found.filter(({ source, target }) => `${source}:${target}` === of).length;
  const changed = sizeOf("1:1");
  const unpaired = table === "keyless" ? planted.changed : 0;
  const named = [changed, sizeOf("1:0"), sizeOf("0:1")].join();
  const expected = [
    planted.changed - unpaired,
    planted.source + unpaired,
    planted.target + unpaired,
  ].join();
  if (named !== expected) throw new Error(`${named} instead of ${expected}`);
  const times: { plain: number; named: number }[] = [];
  for (let round = 0; round < rounds; round++) {
    const plain = (await verified(table, false)).seconds;
    times.push({ plain, named: (await verified(table)).seconds });
  }
  const median = (of: (time: typeof times[number]) => number) =>
    times.map(of).sort((a, b) => a - b)[rounds >> 1]!;
  // Pair by pair, because the speed of the machine changes.
  print(
    `${table.padEnd(8)} verify ${
      median(({ plain }) => plain).toFixed(3)
    } s, --rows 1000 ${median(({ named }) => named).toFixed(3)} s, ratio ${
      median(({ plain, named }) => named / plain).toFixed(2)
    }`,
  );
}

/** Runs verify of a table. It exits with 1, because the table differs. */
async function verified(table: string, hasRows = true) {
  const started = performance.now();
  const { code, stdout } = await new Deno.Command(Deno.execPath(), {
    args: [
      ...TASK,
      ...["verify", "--json", "--table", table],
      ...hasRows ? ["--rows", "1000"] : [],
    ],
    env: environment,
    cwd: ROOT,
    stderr: "inherit",
  }).output();
  const seconds = (performance.now() - started) / 1000;
  if (code !== 1) throw new Error(`verify exited with ${code}`);
  return { seconds, json: JSON.parse(new TextDecoder().decode(stdout)) };
}
