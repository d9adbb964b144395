import { assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { Dispatcher } from "../../src/service/dispatcher.ts";
import { runDue, runTick } from "../../src/service/schedule.ts";
import { contextOf, migratedDatabases } from "../support/databases.ts";
import { runProgram } from "../support/program.ts";
import { startServer, until } from "../support/server.ts";

Deno.test("two replicas with one schedule run one load per tick, and skip a tick during a run", async () => {
  await using db = await migratedDatabases({ rows: { deals: 5, leads: 5 } });
  await using one = contextOf(db);
  await using two = contextOf(db);
  const replicas = [one, two].map((context) => ({
    config: context.config,
    log: context.log,
    dispatcher: new Dispatcher(context),
  }));
  const count = async (condition: string) => {
    const [row] = await db.warehouse.unsafe(
      `select count(*)::int as n from marketing_data_service.run where ${condition}`,
    );
    return row!.n as number;
  };
  const ended = (n: number) =>
    until(
      `${n} runs are over`,
      async () => await count("state = 'succeeded'") === n,
    );
  await runTick(replicas[0]!, new Date("2126-01-01T06:00:10Z"));
  await ended(1);
  // Both replicas repeat the same minute, at once and late.
  await Promise.all(
    replicas.map((r) => runTick(r, new Date("2126-01-01T06:00:59Z"))),
  );
  assertEquals(await count("true"), 1);
  await Promise.all(
    replicas.map((r) => runTick(r, new Date("2126-01-01T06:01:00Z"))),
  );
  await ended(2);
  await using writer = db.connect("warehouse");
  await writer.unsafe(
    "begin; lock table m_data.closed_deal in row exclusive mode",
  );
  await runTick(replicas[0]!, new Date("2126-01-01T06:02:00Z"));
  await until("it runs", async () => await count("state = 'running'") === 1);
  await runTick(replicas[1]!, new Date("2126-01-01T06:03:00Z"));
  assertEquals(await count("true"), 3);
  await writer.unsafe("rollback");
  await ended(3);
  for (const { dispatcher } of replicas) await dispatcher.drain(5);
});

Deno.test("runDue() loads at a tick of the schedule, also when the process was suspended then", async () => {
  await using db = await migratedDatabases({ rows: { deals: 2, leads: 2 } });
  await using context = contextOf(db);
  const dispatcher = new Dispatcher(context);
  const trigger = { config: context.config, log: context.log, dispatcher };
  let since = new Date("2126-01-01T05:58:59Z");
  for (
    const time of [
      ...["01T05:59:59", "01T06:00:59", "01T06:01:00"],
      // Without a wake at three ticks.
      ...["04T07:30:00", "04T07:31:00"],
      // After a change of the clock.
      "02T06:00:10",
    ]
  ) {
    const now = new Date(`2126-01-${time}Z`);
    await runDue(trigger, "0 6 * * *", since, now);
    await until("no run is open", async () => {
      const open = await db.warehouse.unsafe(
        "select from marketing_data_service.run where finished_at is null",
      );
      return open.length === 0;
    });
    since = now;
  }
  await dispatcher.drain(30);
  const rows = await db.warehouse
    .unsafe(
      "select tick::text as tick from marketing_data_service.run order by seq",
    );
  assertEquals(rows.map((row) => row.tick), [
    "2126-01-01 06:00:00+00",
    "2126-01-04 06:00:00+00",
    "2126-01-02 06:00:00+00",
  ]);
});

Deno.test("serve refuses a wrong LOAD_SCHEDULE at startup", async () => {
  const { code, stderr } = await runProgram(["serve"], {
    LOAD_SCHEDULE: "every morning",
  });
  assertEquals(code, 78);
  assertStringIncludes(
    stderr,
    `LOAD_SCHEDULE="every morning" must be a crontab expression`,
  );
});

Deno.test("a late stream sends the phase of each table, then the end", async () => {
  await using db = await migratedDatabases({ rows: { deals: 5, leads: 5 } });
  await using server = await startServer(db, { LOAD_SCHEDULE: "0 0 1 1 *" });
  await server.json("/load", { method: "POST" });
  let stream: Response;
  {
    await using writer = db.connect("warehouse");
    await writer.unsafe(
      "begin; lock table m_data.closed_deal in row exclusive mode",
    );
    const { body } = await server.json("/load-async", { method: "POST" });
    await until("it runs", async () => {
      const run = await server.json(`/runs/${body.run_id}`);
      return run.body.status === "running";
    });
    stream = await server.fetch(`/runs/${body.run_id}/stream`);
    await writer.unsafe("rollback");
  }
  const text = await stream.text();
  assertStringIncludes(text, "closed_deal");
  assertStringIncludes(text, "event: end");
});

Deno.test("a stream sends the end of a run that succeeds while the service stops", async () => {
  await using db = await migratedDatabases({ rows: { deals: 5, leads: 5 } });
  await using server = await startServer(db);
  await server.json("/load", { method: "POST" });
  await using writer = db.connect("warehouse");
  await writer.unsafe(
    "begin; lock table m_data.closed_deal in row exclusive mode",
  );
  const { body } = await server.json("/load-async", { method: "POST" });
  await until("it runs", async () => {
    const run = await server.json(`/runs/${body.run_id}`);
    return run.body.status === "running";
  });
  const stream = await server.fetch(`/runs/${body.run_id}/stream`);
  server.kill("SIGTERM");
  await until("it drains", async () => {
    const ready = await server.json("/health/ready");
    return ready.status === 503;
  });
  await writer.unsafe("rollback");
  assertMatch(await stream.text(), /"status":"succeeded"[^]*\nevent: end\n/);
});

Deno.test("the service survives a restart of its databases", async () => {
  const { startPostgres } = await import("../support/own_server.ts");
  const { SOURCE_TABLES } = await import("../../demo/sample_data.ts");
  const { connectAs } = await import("../support/databases.ts");
  await using postgres = await startPostgres();
  const admin = connectAs(new URL(postgres.url()), "postgres", 1);
  await admin.unsafe("create schema marketing");
  await admin.unsafe(SOURCE_TABLES);
  await admin.end({ timeout: 1 });
  const port = String(postgres.port);
  const environment = {
    OLIST_DB_HOST: "127.0.0.1",
    OLIST_DB_PORT: port,
    OLIST_DB_USER: "postgres",
    OLIST_DB_NAME: "postgres",
    DWH_DB_HOST: "127.0.0.1",
    DWH_DB_PORT: port,
    DWH_DB_USER: "postgres",
    DWH_DB_NAME: "postgres",
    RETRY_DELAY: "0.05",
  };
  await using server = await startServer({ environment });
  assertEquals((await server.json("/load", { method: "POST" })).status, 200);
  await postgres.stop("immediate");
  assertEquals((await server.json("/health")).status, 503);
  const away = await server.json("/load", { method: "POST" });
  assertEquals(away.status, 503);
  assertStringIncludes(away.body.detail, "Check that the server is up");
  await postgres.restart();
  await until("it loads again", async () => {
    const { status } = await server.json("/load", { method: "POST" });
    return status === 200;
  });
});

Deno.test("an idle_session_timeout of the role does not end the listening connection", async () => {
  await using db = await migratedDatabases({ rows: { deals: 3, leads: 3 } });
  await db.warehouse.unsafe(
    `alter role ${db.loader} set idle_session_timeout = '1s'`,
  );
  await using server = await startServer(db, { LISTEN_CHANNEL: "Load now" });
  const listener = async (condition: string) => {
    const [row] = await db.warehouse.unsafe(
      `select pid from pg_stat_activity where datname = current_database()
         and application_name = 'marketing-data-service/listen' and state = 'idle'
         and query ilike '%listen "Load now"%' and ${condition}`,
    );
    return row?.pid as number | undefined;
  };
  const runs = async () => {
    const { body } = await server.json("/runs");
    return body.runs.map((run: { trigger: string; status: string }) =>
      `${run.trigger} ${run.status}`
    );
  };
  let pid: number | undefined;
  await until("it listens", async () => {
    pid = await listener("true");
    return pid !== undefined;
  });
  await until(
    "it has been idle for far longer than the role's sessions may",
    async () =>
      await listener(
        `pid = ${pid} and clock_timestamp() - state_change > interval '3 s'`,
      ) !== undefined,
  );
  assertEquals(await runs(), []);
  await db.warehouse.unsafe(`notify "Load now"`);
  await until(
    "one load has run",
    async () => String(await runs()) === "notify succeeded",
  );
});
