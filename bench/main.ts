/**
 * The benchmark: loads and two parallel `psql | psql` pipes, in turn, on one server.
 * Prints medians, ratios, and the peak memory of the loads.
 * Usage: `deno task bench [--rows N] [--rounds N]`. Three quarters of the N rows are
 * leads. Needs `psql` on the PATH.
 *
 * @module
 */
import { parseArgs } from "@std/cli/parse-args";
import postgres from "postgres";
import { findInstalledPostgres, startPostgres } from "../demo/postgres.ts";
import { fillSource, SOURCE_TABLES } from "../demo/sample_data.ts";

const SETTINGS = {
  shared_buffers: "512MB",
  max_wal_size: "8GB",
  checkpoint_timeout: "30min",
};
export const ROOT = new URL("..", import.meta.url);

export interface Measured {
  readonly seconds: number;
  /** Peak resident memory in MB, or 0 when the system does not report it. */
  readonly peak: number;
}

if (import.meta.main) Deno.exit(await main());

async function main(): Promise<number> {
  const flags = parseArgs(Deno.args, { string: ["rows", "rounds"] });
  const rows = Number(flags.rows ?? 100_000);
  const rounds = Number(flags.rounds ?? 3);
  if (
    !Number.isInteger(rows) || rows < 100 || !Number.isInteger(rounds) ||
    rounds < 1
  ) {
    print("Usage: deno task bench [--rows N] [--rounds N]");
    return 64;
  }
  const binDirectory = findInstalledPostgres();
  await using server = await startPostgres({
    settings: SETTINGS,
    ...(binDirectory ? { binDirectory } : {}),
  });
  const admin = postgres(server.url(), {
    max: 1,
    fetch_types: false,
    onnotice: () => {},
  });
  await admin.unsafe("create database olist");
  await admin.unsafe("create database dwh");
  await admin.end();
  const source = postgres(server.url("olist"), {
    max: 1,
    fetch_types: false,
    onnotice: () => {},
  });
  const warehouse = postgres(server.url("dwh"), {
    max: 1,
    fetch_types: false,
    onnotice: () => {},
  });
  await source.unsafe("create schema marketing");
  await source.unsafe(SOURCE_TABLES);
  const deals = Math.round(rows / 4);
  await fillSource(source, { deals, leads: rows - deals });
  await source.unsafe("vacuum analyze");

  const address = {
    HOST: server.host,
    PORT: String(server.port),
    USER: server.superuser,
  };
  const environment: Record<string, string> = { LOG_LEVEL: "ERROR" };
  for (const [name, value] of Object.entries(address)) {
    environment[`OLIST_DB_${name}`] = environment[`DWH_DB_${name}`] = value;
  }
  environment.OLIST_DB_NAME = "olist";
  environment.DWH_DB_NAME = "dwh";

  const load = (extra: Record<string, string> = {}, ...args: string[]) =>
    measure(Deno.execPath(), [
      "task",
      "--quiet",
      "cli",
      "load",
      "--quiet",
      ...args,
    ], {
      ...environment,
      ...extra,
    });
  const tidy = async () => {
    // Each contender begins with tables without dead rows.
    await warehouse.unsafe("vacuum full m_data.closed_deal");
    await warehouse.unsafe("vacuum full m_data.marketing_qualified_lead");
    await warehouse.unsafe("vacuum analyze m_data.closed_deal");
    await warehouse.unsafe("vacuum analyze m_data.marketing_qualified_lead");
    await warehouse.unsafe("checkpoint");
  };
  await load();
  const times: Record<string, Measured[]> = {};
  for (let round = 0; round < rounds; round++) {
    const contenders: [string, () => Promise<Measured>][] = [
      [
        "two psql | psql pipes",
        () => measure("sh", ["-c", pipes(server.host, server.port)]),
      ],
      [
        "load --mode full, VERIFY=count",
        () => load({ VERIFY: "count" }, "--mode", "full"),
      ],
      ["load --mode full, VERIFY=content", () => load({}, "--mode", "full")],
      ["load, nothing changed", () => load()],
      ["load, one row in 10,000 changed", async () => {
        await changeSource(source);
        return await load();
      }],
    ];
    for (const [name, run] of contenders) {
      await tidy();
      (times[name] ??= []).push(await run());
    }
  }
  await source.end({ timeout: 1 });
  await warehouse.end({ timeout: 1 });
  report(rows, rounds, server.version, times);
  return 0;
}

/** The peer: delete and copy each table in one transaction, both in parallel. */
function pipes(host: string, port: number): string {
  const pipe = (select: string, table: string) =>
    `psql -qX -h ${host} -p ${port} -U postgres -d olist -c "copy (${select}) to stdout (format binary)" |
     psql -qX -1 -h ${host} -p ${port} -U postgres -d dwh -c "delete from m_data.${table}" \
       -c "copy m_data.${table} from stdin (format binary)"`;
  return `(${pipe("select * from marketing.closed_deals", "closed_deal")}) &
    (${
    pipe(
      "select mql_id, first_contact_date::timestamptz, landing_page_id, origin from marketing.marketing_qualified_leads",
      "marketing_qualified_lead",
    )
  }) &
    wait`;
}

async function changeSource(
  source: ReturnType<typeof postgres>,
): Promise<void> {
  for (
    const [table, column] of [["closed_deals", "has_gtin"], [
      "marketing_qualified_leads",
      "origin",
    ]]
  ) {
    await source.unsafe(
      `update marketing.${table} set ${column} = 'changed ' || random()
       where hashtextextended(mql_id, 42) % 10000 = 0`,
    );
  }
}

export async function measure(
  command: string,
  args: string[],
  env: Record<string, string> = {},
): Promise<Measured> {
  const started = performance.now();
  const process = new Deno.Command(command, {
    args,
    env,
    cwd: ROOT,
    stdin: "null",
    stdout: "null",
  }).spawn();
  let peak = 0;
  const timer = setInterval(
    () => peak = Math.max(peak, peakOfFamily(process.pid)),
    20,
  );
  const { success } = await process.status;
  clearInterval(timer);
  if (!success) throw new Error(`${command} ${args.join(" ")} failed`);
  return { seconds: (performance.now() - started) / 1000, peak };
}

/** Returns the peak memory in MB of the largest process among this one and its children. Linux only. */
function peakOfFamily(pid: number): number {
  try {
    const status = Deno.readTextFileSync(`/proc/${pid}/status`);
    const own = Number(/VmHWM:\s+(\d+)/.exec(status)?.[1] ?? 0) / 1024;
    const children = Deno.readTextFileSync(`/proc/${pid}/task/${pid}/children`)
      .split(" ");
    return Math.max(
      own,
      ...children.filter(Boolean).map((c) => peakOfFamily(Number(c))),
    );
  } catch {
    return 0; // It has just ended, or this is not Linux.
  }
}

function report(
  rows: number,
  rounds: number,
  version: number,
  times: Record<string, Measured[]>,
): void {
  const median = (values: number[]) =>
    values.sort((a, b) => a - b)[values.length >> 1]!;
  const peer = median(Object.values(times)[0]!.map((m) => m.seconds));
  print(
    `${rows} rows in two tables, PostgreSQL ${Math.floor(version / 10_000)}, ` +
      `median of ${rounds} rounds, ratio to the pipes of the same run:`,
  );
  for (const [name, measured] of Object.entries(times)) {
    const seconds = median(measured.map((m) => m.seconds));
    const peak = Math.max(...measured.map((m) => m.peak));
    print(
      `${name.padEnd(34)} ${seconds.toFixed(3).padStart(8)} s  ${
        (seconds / peer).toFixed(2).padStart(5)
      }  peak ${peak.toFixed(0)} MB`,
    );
  }
}

export function print(text: string): void {
  Deno.stdout.writeSync(new TextEncoder().encode(`${text}\n`));
}
