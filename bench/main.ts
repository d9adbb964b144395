/**
 * The benchmark: loads and two parallel `psql | psql` pipes, in turn, between two servers.
 * Prints medians, ratios to the pipes, processor time, peak memory, rows and WAL.
 *
 * Usage: `deno task bench [--rows N] [--rounds N] [--only PATTERN] [--postgres DIR]`.
 * Three quarters of the N rows are leads. PATTERN is a regular expression over the names
 * of the cases. DIR holds the programs of a server. Default: the newest one that Debian
 * has installed. `embedded` is the server from npm.
 *
 * Needs `psql` on the PATH. Other peers are `pgcopydb` on the PATH, and Kitchen Sync,
 * whose program `ks` the variable KITCHEN_SYNC names. Its tables have keys.
 *
 * Processor time includes the server's. It says more than the clock on a busy machine.
 *
 * @module
 */
import { existsSync } from "node:fs";
import { delay } from "@std/async/delay";
import { parseArgs } from "@std/cli/parse-args";
import postgres from "postgres";
import {
  findInstalledPostgres,
  type PostgresServer,
  startPostgres,
} from "../demo/postgres.ts";
import { fillSource, SOURCE_TABLES } from "../demo/sample_data.ts";

const SETTINGS = {
  shared_buffers: "512MB",
  max_wal_size: "8GB",
  checkpoint_timeout: "30min",
};
export const ROOT = new URL("..", import.meta.url);
const USAGE =
  "deno task bench [--rows N] [--rounds N] [--only PATTERN] [--postgres DIR]";
const MIN_ROWS = 100;

interface Measured {
  readonly seconds: number;
  /** Processor time of its processes and of the server, in seconds. 0 when the system does not report it. */
  readonly processorSeconds: number;
  /** Peak resident memory in MB, or 0 when the system does not report it. */
  readonly peak: number;
  /** Bytes of WAL that the server wrote. */
  readonly walBytes: number;
  /** Rows that a load deleted and inserted. */
  readonly writtenRows?: number;
}

/** A contender. `prepare` is not measured. */
interface Case {
  readonly name: string;
  readonly prepare?: () => Promise<void>;
  readonly run: () => Promise<Measured>;
}

const PIPES = "two psql | psql pipes";
const NEW_TABLES = "two psql | psql pipes into new tables";
const MANY_PIPES = "200 psql | psql pipes, two at once";
const SMALL_TABLES = Array.from({ length: 200 }, (_, i) => `many.table_${i}`);

/** Returns the name of the contender to which another one is compared. */
function peerOf(name: string): string {
  if (/first|new tables|pgcopydb/.test(name)) return NEW_TABLES;
  return name.includes("200 ") ? MANY_PIPES : PIPES;
}

/**
 * Returns the values of the flags. A number must be a whole one of at least 1. Ends the
 * process with 64 and the usage for an unknown flag or a wrong number.
 */
export function parseFlags<T extends Record<string, number | string>>(
  usage: string,
  defaults: T,
): T {
  const refuse = () => Deno.exit(printUsage(usage));
  const flags = parseArgs(Deno.args, {
    string: Object.keys(defaults),
    unknown: refuse,
  });
  const values = Object.entries(defaults).map(([name, fallback]) => {
    const given = flags[name] ?? fallback;
    if (typeof fallback === "string") return [name, given];
    const number = Number(given);
    return [name, Number.isInteger(number) && number > 0 ? number : refuse()];
  });
  return Object.fromEntries(values);
}

/** Prints the usage, and returns the exit code for it. */
export function printUsage(usage: string): number {
  print(`Usage: ${usage}`);
  return 64;
}

/** Prints that a program is missing, and returns the exit code for it. */
export function printAbsent(program: string, debianPackage: string): number {
  print(
    `Cannot measure: ${program} is not on the PATH. Install the Debian package ${debianPackage}.`,
  );
  return 69;
}

function patternOf(text: string): RegExp | undefined {
  try {
    return new RegExp(text);
  } catch {
    return undefined;
  }
}

async function main(): Promise<number> {
  const flags = parseFlags(USAGE, {
    rows: 100_000,
    rounds: 3,
    only: "",
    postgres: "",
  });
  const { rows, rounds } = flags;
  const only = patternOf(flags.only);
  if (rows < MIN_ROWS || !only) return printUsage(USAGE);
  if (!hasProgram("psql")) return printAbsent("psql", "postgresql-client");
  const binDirectory = flags.postgres === "embedded"
    ? undefined
    : flags.postgres
    ? flags.postgres
    : findInstalledPostgres();
  const start = () =>
    startPostgres({
      settings: SETTINGS,
      ...(binDirectory ? { binDirectory } : {}),
    });
  await using from = await start();
  await using to = await start();
  const connect = (server: PostgresServer, database?: string) =>
    postgres(server.url(database), {
      max: 1,
      fetch_types: false,
      onnotice: () => {},
    });
  const admins = [connect(from), connect(to)] as const;
  await admins[0].unsafe("create database olist");
  await admins[1].unsafe("create database dwh");
  const filled = connect(from, "olist");
  await filled.unsafe("create schema marketing");
  await filled.unsafe(SOURCE_TABLES);
  const deals = Math.round(rows / 4);
  await fillSource(filled, { deals, leads: rows - deals });
  await filled.unsafe("vacuum analyze");
  await filled.end();
  await admins[1].unsafe("create database copydb");
  await admins[0].unsafe("create database many");
  await admins[1].unsafe("create database many");
  const kitchenSync = Deno.env.get("KITCHEN_SYNC");
  if (kitchenSync) {
    await admins[0].unsafe("create database ks_from template olist");
    await admins[1].unsafe("create database ks_to");
    const copy = connect(to, "ks_to");
    await copy.unsafe(`create schema marketing; ${SOURCE_TABLES}`);
    for (const database of [connect(from, "ks_from"), copy]) {
      for (const table of SOURCE_NAMES) {
        await database.unsafe(`alter table ${table} add primary key (mql_id)`);
      }
      await database.end();
    }
  }
  for (const admin of admins) await admin.end();
  const source = connect(from, "olist");
  const keyed = connect(from, "ks_from");
  const warehouse = connect(to, "dwh");
  const many = { source: connect(from, "many"), target: connect(to, "many") };
  await many.source.unsafe(createTables(1000));
  await many.source.unsafe("vacuum analyze");
  await many.target.unsafe(createTables(0));
  await using tablesFile = await temporaryFile(
    `tables:\n${
      SMALL_TABLES.map((name) => `  - { source: ${name}, target: ${name} }\n`)
        .join("")
    }`,
  );

  const environment: Record<string, string> = {
    LOG_LEVEL: "ERROR",
    OLIST_DB_NAME: "olist",
    DWH_DB_NAME: "dwh",
  };
  for (const [prefix, server] of [["OLIST", from], ["DWH", to]] as const) {
    environment[`${prefix}_DB_HOST`] = server.host;
    environment[`${prefix}_DB_PORT`] = String(server.port);
    environment[`${prefix}_DB_USER`] = server.superuser;
  }

  const postmasters = [from, to].map(({ dataDirectory }) =>
    Number(
      Deno.readTextFileSync(`${dataDirectory}/postmaster.pid`).split("\n")[0],
    )
  );
  const serverSeconds = () =>
    postmasters.reduce((sum, pid) => sum + processorSeconds(pid), 0);
  const run = async (
    command: string,
    args: string[],
    env: Record<string, string> = {},
  ): Promise<Measured> => {
    const wal = async () =>
      Number(
        (await warehouse.unsafe(
          "select pg_current_wal_insert_lsn() - '0/0' as bytes",
        ))[0]!.bytes,
      );
    const before = { wal: await wal(), server: serverSeconds() };
    const measured = await measure(command, args, env);
    // A backend counts when it has ended.
    await delay(200);
    return {
      ...measured,
      walBytes: await wal() - before.wal,
      processorSeconds: measured.processorSeconds +
        serverSeconds() - before.server,
    };
  };
  const load = async (
    extra: Record<string, string> = {},
    ...args: string[]
  ): Promise<Measured> => {
    const measured = await run(
      Deno.execPath(),
      ["task", "--quiet", "cli", "load", "--quiet", ...args],
      { ...environment, ...extra },
    );
    const target = extra.DWH_DB_NAME ? many.target : warehouse;
    const [written] = await target.unsafe(
      `select sum((result ->> 'rows_inserted')::int8 + (result ->> 'rows_deleted')::int8)::float8 as rows
       from marketing_data_service.table_load where run_id = (
         select id from marketing_data_service.run order by started_at desc limit 1)`,
    );
    return { ...measured, writtenRows: written!.rows };
  };
  const loadMany = () =>
    load({
      OLIST_DB_NAME: "many",
      DWH_DB_NAME: "many",
      TABLES_FILE: tablesFile.path,
    });
  const pipe = (isNew: boolean) => () =>
    run("sh", ["-c", pipes(from, to, isNew)]);
  const drop = async () => {
    await warehouse.unsafe("drop schema if exists m_data cascade");
  };
  const dropAndCreate = async () => {
    await drop();
    await warehouse.unsafe(TARGET_TABLES);
  };
  const forget = async () => {
    await warehouse.unsafe(
      "update marketing_data_service.table_load set source_mark = null",
    );
  };
  const change = async (sql: Change["sql"], database: typeof source) => {
    for (const table of SOURCE_NAMES) await database.unsafe(sql(table));
    // Otherwise the first reader would clean the pages.
    await database.unsafe("vacuum analyze");
  };
  const withKitchenSync = (name: string, sql?: Change["sql"]): Case[] =>
    kitchenSync
      ? [{
        name: `${name}, Kitchen Sync`,
        ...(sql ? { prepare: () => change(sql, keyed) } : {}),
        run: () =>
          // deno-fmt-ignore
          run(kitchenSync, ["--from", from.url("ks_from"), "--to", to.url("ks_to"), "--workers", "2"]
            .map((word) => word.replace("postgres:", "postgresql:")), { PGOPTIONS: "-c search_path=marketing" }),
      }]
      : [];
  // It needs the pg_dump of the server.
  const hasPgcopydb = hasProgram("pgcopydb") &&
    existsSync(`${from.binDirectory}/pg_dump`);
  const cases: Case[] = [
    { name: NEW_TABLES, prepare: dropAndCreate, run: pipe(true) },
    {
      name: "first load, VERIFY=count",
      prepare: drop,
      run: () => load({ VERIFY: "count" }),
    },
    { name: "first load, content", prepare: drop, run: () => load() },
    ...(hasPgcopydb
      ? [{
        name: "pgcopydb clone",
        async run() {
          const dir = await Deno.makeTempDir();
          try {
            // deno-fmt-ignore
            return await run("pgcopydb", ["clone", "--source", from.url("olist"), "--target", to.url("copydb"),
              "--dir", `${dir}/state`, "--drop-if-exists", "--table-jobs", "2", "--index-jobs", "2"]);
          } finally {
            await Deno.remove(dir, { recursive: true });
          }
        },
      }]
      : []),
    { name: PIPES, run: pipe(false) },
    {
      name: "load --mode full, VERIFY=count",
      run: () => load({ VERIFY: "count" }, "--mode", "full"),
    },
    {
      name: "load --mode full, content",
      run: () => load({}, "--mode", "full"),
    },
    {
      name: "load, nothing changed, read by content",
      prepare: forget,
      run: () => load(),
    },
    // The load before leaves the state that this one needs.
    {
      name: "load, nothing changed",
      prepare: async () => void await load(),
      run: () => load(),
    },
    {
      // New rows go behind the others, as in a table that only grows.
      name: "load, 0.1 % of the rows appended",
      async prepare() {
        await source.unsafe("vacuum full");
        await warehouse.unsafe("vacuum full");
        await load();
        await change(
          (table) => inserted(table, "random() < 0.001"),
          source,
        );
      },
      run: () => load(),
    },
    ...withKitchenSync("nothing changed"),
    ...changes().flatMap(({ name, sql, hasHint }): Case[] => [
      {
        name,
        async prepare() {
          await change(sql, source);
          if (!hasHint) await forget();
        },
        run: () => load(),
      },
      ...(hasHint ? withKitchenSync(name, sql) : []),
    ]),
    {
      name: MANY_PIPES,
      run: () => run("sh", ["-c", manyPipes(from, to)]),
    },
    {
      name: "load of 200 tables, nothing changed",
      prepare: async () => void await loadMany(),
      run: loadMany,
    },
    {
      name: "load of 200 tables, one row of each",
      prepare: async () =>
        void await many.source.unsafe(
          SMALL_TABLES.map((name) =>
            `update ${name} set name = random()::text where id = 500`
          ).join(";"),
        ),
      run: loadMany,
    },
  ];
  const wanted = cases.filter(({ name }) => only.test(name));
  if (wanted.length === 0) {
    const names = cases.map(({ name }) => name).join("\n  ");
    print(`No case matches --only ${flags.only}. The cases are:\n  ${names}`);
    return 64;
  }
  await load();
  const peers = new Set(wanted.map(({ name }) => peerOf(name)));
  const chosen = cases.filter((c) => wanted.includes(c) || peers.has(c.name));
  const times = new Map(chosen.map(({ name }) => [name, [] as Measured[]]));
  for (let round = 0; round < rounds; round++) {
    for (const { name, prepare, run } of chosen) {
      await prepare?.();
      await warehouse.unsafe("checkpoint");
      times.get(name)!.push(await run());
      // Each contender begins with tables without dead rows.
      const isWhole = /pipes$|full/.test(name);
      for (const table of ["closed_deal", "marketing_qualified_lead"]) {
        if (isWhole) await warehouse.unsafe(`vacuum full m_data.${table}`);
        await warehouse.unsafe(`vacuum analyze m_data.${table}`);
      }
    }
  }
  await source.end({ timeout: 1 });
  await keyed.end({ timeout: 1 });
  await warehouse.end({ timeout: 1 });
  await many.source.end({ timeout: 1 });
  await many.target.end({ timeout: 1 });
  report(rows, rounds, from.version, times);
  if (!hasPgcopydb) print("absent: pgcopydb, or the pg_dump of this server");
  if (!kitchenSync) print("absent: Kitchen Sync");
  return 0;
}

/** A change of a share of the rows of a source table. */
interface Change {
  readonly name: string;
  readonly sql: (table: string) => string;
  /** Whether the load knows the statistics of the source at the last load. */
  readonly hasHint: boolean;
}

/** Rows with new ids, so that the column stays unique. */
const inserted = (table: string, where: string) =>
  `insert into ${table} (mql_id, ${
    table.endsWith("deals") ? "seller_id" : "landing_page_id"
  }) select 'new ' || random(), md5(mql_id) from ${table} where ${where}`;

function changes(): Change[] {
  const kinds = {
    updated: (table: string, where: string) =>
      `update ${table} set ${
        table.endsWith("deals") ? "has_gtin" : "origin"
      } = 'changed ' || random() where ${where}`,
    deleted: (table: string, where: string) =>
      `delete from ${table} where ${where}`,
    inserted,
  };
  const scattered = (share: number) => () =>
    `hashtextextended(mql_id, ${
      crypto.getRandomValues(new Int32Array(1))[0]
    }) & 65535 < ${Math.round(share * 65_536)}`;
  const clustered = (share: number) => (table: string) => {
    const start = Math.random() * (1 - share);
    // A subselect is evaluated once. The table grows while its rows are updated.
    const block = (at: number) =>
      `(select ('(' || (pg_relation_size('${table}') / 8192 * ${at})::int8 || ',0)')::tid)`;
    return `ctid >= ${block(start)} and ctid < ${block(start + share)}`;
  };
  const all: Change[] = [];
  for (const share of [0.0001, 0.002, 0.01, 0.05]) {
    for (const [place, at] of Object.entries({ scattered, clustered })) {
      for (const hasHint of [true, false]) {
        const name = (kind: string) =>
          `${100 * share} % ${kind}, ${place}${hasHint ? "" : ", no hint"}`;
        const where = at(share);
        for (const [kind, sql] of Object.entries(kinds)) {
          all.push({
            name: name(kind),
            hasHint,
            sql: (table) => sql(table, where(table)),
          });
        }
        const third = at(share / 3);
        all.push({
          name: name("mixed"),
          hasHint,
          sql: (table) =>
            Object.values(kinds).map((sql) => sql(table, third(table)))
              .join(";"),
        });
      }
    }
  }
  return all;
}

const SOURCE_NAMES = [
  "marketing.closed_deals",
  "marketing.marketing_qualified_leads",
];

/** The tables of the peer. */
const TARGET_TABLES = `create schema m_data; ${
  SOURCE_TABLES.replaceAll("marketing.", "m_data.")
}`
  .replace("closed_deals", "closed_deal")
  .replace("qualified_leads", "qualified_lead")
  .replace("date date", "date timestamptz");

/** The peer: delete and copy each table in one transaction, both in parallel. */
function pipes(
  from: PostgresServer,
  to: PostgresServer,
  isNew: boolean,
): string {
  const pipe = (select: string, table: string) =>
    `${psql(from)} -d olist -c "copy (${select}) to stdout (format binary)" |
     ${psql(to)} -1 -d dwh ${
      isNew ? "" : `-c "delete from m_data.${table}"`
    } -c "copy m_data.${table} from stdin (format binary)"`;
  return `(${pipe("select * from marketing.closed_deals", "closed_deal")}) &
    (${
    pipe(
      "select mql_id, first_contact_date::timestamptz, landing_page_id, origin from marketing.marketing_qualified_leads",
      "marketing_qualified_lead",
    )
  }) &
    wait`;
}

/** Creates the small tables with so many rows each. */
function createTables(rows: number): string {
  return `create schema many;` +
    SMALL_TABLES.map((table) =>
      `create table ${table} (id int4 primary key, name text, at timestamptz);
       insert into ${table} select n, md5(n::text), now() from generate_series(1, ${rows}) n;`
    ).join("\n");
}

/** The peer for many small tables. */
function manyPipes(from: PostgresServer, to: PostgresServer): string {
  const half = (tables: readonly string[]) =>
    `(for table in ${tables.join(" ")}; do
      ${psql(from)} -d many -c "copy $table to stdout (format binary)" |
      ${
      psql(to)
    } -1 -d many -c "delete from $table" -c "copy $table from stdin (format binary)"
    done) &`;
  return `${half(SMALL_TABLES.slice(0, 100))} ${
    half(SMALL_TABLES.slice(100))
  } wait`;
}

const psql = ({ host, port }: PostgresServer) =>
  `psql -qX -h ${host} -p ${port} -U postgres`;

async function temporaryFile(text: string) {
  const path = await Deno.makeTempFile({ suffix: ".yaml" });
  await Deno.writeTextFile(path, text);
  return { path, [Symbol.asyncDispose]: () => Deno.remove(path) };
}

export function hasProgram(name: string): boolean {
  return (Deno.env.get("PATH") ?? "").split(":").some((folder) =>
    existsSync(`${folder}/${name}`)
  );
}

export async function measure(
  command: string,
  args: string[],
  env: Record<string, string> = {},
): Promise<Omit<Measured, "walBytes">> {
  const started = performance.now();
  const process = new Deno.Command(command, {
    args,
    env,
    cwd: ROOT,
    stdin: "null",
    stdout: "null",
  }).spawn();
  let peak = 0;
  let processorSeconds = 0;
  const timer = setInterval(() => {
    const family = resourcesOf(process.pid);
    peak = Math.max(peak, family.peak);
    processorSeconds = Math.max(processorSeconds, family.processorSeconds);
  }, 20);
  const { success } = await process.status;
  clearInterval(timer);
  if (!success) throw new Error(`${command} ${args.join(" ")} failed`);
  const seconds = (performance.now() - started) / 1000;
  return { seconds, peak, processorSeconds };
}

/**
 * Returns the peak memory in MB of the largest process among this one and its
 * children, and the processor time of all of them. Linux only.
 */
function resourcesOf(pid: number): { peak: number; processorSeconds: number } {
  try {
    const status = Deno.readTextFileSync(`/proc/${pid}/status`);
    const own = Number(/VmHWM:\s+(\d+)/.exec(status)?.[1] ?? 0) / 1024;
    const children = Deno.readTextFileSync(`/proc/${pid}/task/${pid}/children`)
      .split(" ").filter(Boolean).map((child) => resourcesOf(Number(child)));
    return {
      peak: Math.max(own, ...children.map(({ peak }) => peak)),
      processorSeconds: children.reduce(
        (sum, child) => sum + child.processorSeconds,
        processorSeconds(pid) + processorSeconds(pid, true),
      ),
    };
  } catch {
    return { peak: 0, processorSeconds: 0 }; // It has just ended, or this is not Linux.
  }
}

/** Clock ticks of Linux per second. */
const TICKS = 100;

/** Returns the processor time of the ended children of a process, or its own, in seconds. */
function processorSeconds(pid: number, own = false): number {
  try {
    const fields = Deno.readTextFileSync(`/proc/${pid}/stat`).split(") ")[1]!
      .split(" ");
    const first = own ? 11 : 13;
    return (Number(fields[first]) + Number(fields[first + 1])) / TICKS;
  } catch {
    return 0;
  }
}

function report(
  rows: number,
  rounds: number,
  version: number,
  times: ReadonlyMap<string, readonly Measured[]>,
): void {
  const median = (name: string, of: (measured: Measured) => number) => {
    const values = times.get(name)!.map(of).sort((a, b) => a - b);
    return values[values.length >> 1]!;
  };
  print(
    `${rows} rows in two tables, PostgreSQL ${Math.floor(version / 10_000)}, ` +
      `median of ${rounds} rounds, ratios to the pipes of the same run:`,
  );
  print(
    `${
      "".padEnd(40)
    }   clock  ratio      cpu  ratio     peak     written       WAL`,
  );
  for (const [name, measured] of times) {
    const peer = peerOf(name);
    const column = (of: (measured: Measured) => number) => {
      const value = median(name, of);
      return `${value.toFixed(2).padStart(6)} s  ${
        (value / median(peer, of)).toFixed(2).padStart(5)
      }`;
    };
    print(
      `${name.padEnd(40)} ${column((m) => m.seconds)} ${
        column((m) => m.processorSeconds)
      } ${Math.max(...measured.map((m) => m.peak)).toFixed(0).padStart(5)} MB ${
        String(median(name, (m) => m.writtenRows ?? 0)).padStart(11)
      } ${(median(name, (m) => m.walBytes) / 1e6).toFixed(1).padStart(6)} MB`,
    );
  }
}

export function print(text: string): void {
  Deno.stdout.writeSync(new TextEncoder().encode(`${text}\n`));
}

if (import.meta.main) Deno.exit(await main());
