import { assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import type { PostgresServer } from "../../demo/postgres.ts";
import { startPostgres } from "../support/own_server.ts";
import { connectAs, createDatabases } from "../support/databases.ts";
import { startProgram } from "../support/program.ts";
import { runJson, runProgram } from "../support/program_here.ts";
import { until } from "../support/server.ts";

/** Makes `standby` follow `primary`, from a copy of its files. */
async function follow(
  standby: PostgresServer,
  primary: PostgresServer,
): Promise<void> {
  await primary.stop();
  await standby.stop();
  const own = ["postgresql.conf", "pg_hba.conf"];
  const { uid, gid } = Deno.statSync(standby.dataDirectory);
  for (const { name } of Deno.readDirSync(standby.dataDirectory)) {
    if (own.includes(name)) continue;
    await Deno.remove(`${standby.dataDirectory}/${name}`, { recursive: true });
  }
  for (const { name } of Deno.readDirSync(primary.dataDirectory)) {
    if (own.includes(name)) continue;
    const { success } = await new Deno.Command("cp", {
      args: ["-a", `${primary.dataDirectory}/${name}`, standby.dataDirectory],
    }).output();
    assertEquals(success, true);
  }
  const signal = `${standby.dataDirectory}/standby.signal`;
  await Deno.writeTextFile(signal, "");
  if (Deno.uid() === 0) Deno.chownSync(signal, uid!, gid!);
  await Deno.writeTextFile(
    `${standby.dataDirectory}/postgresql.conf`,
    `primary_conninfo = 'host=127.0.0.1 port=${primary.port} user=postgres'
     max_standby_streaming_delay = 0\n`,
    { append: true },
  );
  await primary.restart();
  await standby.restart();
}

Deno.test("load from a standby names max_standby_streaming_delay when recovery ends its sessions", async () => {
  const hba = [
    "host replication all 127.0.0.1/32 trust",
    "host all all 127.0.0.1/32 trust",
  ];
  await using primary = await startPostgres({ hba });
  await using standby = await startPostgres({ hba });
  await using warehouse = await startPostgres();
  await using db = await createDatabases({
    rows: { deals: 20, leads: 2000 },
    servers: { source: primary.url(), warehouse: warehouse.url() },
  });
  await follow(standby, primary);
  const environment = {
    ...db.environment,
    OLIST_DB_PORT: String(standby.port),
    RETRY_ATTEMPTS: "1",
    LOCK_TIMEOUT: "30",
  };
  assertEquals((await runProgram(["load"], environment)).code, 0);

  await using writer = db.connect("warehouse");
  await writer.unsafe(
    "begin; lock table m_data.marketing_qualified_lead in row exclusive mode",
  );
  const running = startProgram(
    ["load", "--json", "--table", "marketing_qualified_lead"],
    environment,
  );
  await until("the load waits for the lock", async () => {
    const [row] = await db.warehouse.unsafe(
      "select 1 as x from pg_locks where not granted and relation = 'm_data.marketing_qualified_lead'::regclass",
    );
    return row !== undefined;
  });
  // The primary removes rows that the snapshot sees, so the standby cannot replay that.
  await db.source.unsafe("delete from marketing.marketing_qualified_leads");
  await db.source.unsafe("vacuum marketing.marketing_qualified_leads");
  const client = connectAs(
    new URL(standby.url()),
    db.environment.OLIST_DB_NAME!,
    1,
  );
  await until("the standby has ended the load's sessions", async () => {
    const [row] = await client.unsafe(
      "select confl_snapshot + confl_lock > 0 as ended from pg_stat_database_conflicts where datname = current_database()",
    );
    return row!.ended;
  });
  await client.end({ timeout: 1 });
  await writer.unsafe("rollback");
  const { code, stdout } = await running.finished;
  assertEquals(code, 1, stdout);
  const [entry] = JSON.parse(stdout).details.results;
  assertMatch(entry.code, /^(snapshot_lost|connection_lost)$/);
  assertStringIncludes(entry.remedy, "max_standby_streaming_delay");
  assertStringIncludes(entry.remedy, "hot_standby_feedback");

  const writes = await runJson(["load"], {
    ...environment,
    DWH_DB_PORT: String(standby.port),
    DWH_DB_USER: db.reader,
    DWH_DB_NAME: db.environment.OLIST_DB_NAME!,
  });
  assertStringIncludes(writes.json.error, "DWH_DB_HOST at the primary");
});
