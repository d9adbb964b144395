import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { startPostgres } from "../support/own_server.ts";
import { Dispatcher } from "../../src/service/dispatcher.ts";
import { ServiceError } from "../../src/errors.ts";
import { pruneHistory } from "../../src/runs/history.ts";
import { enqueue } from "../../src/load/load.ts";
import { Worker } from "../../src/load/worker.ts";
import { runTick } from "../../src/service/schedule.ts";
import { namesOf } from "../../src/tables/declaration.ts";
import { MARKETING_TABLES } from "../../src/tables/marketing.ts";
import { contextOf, type Databases } from "../support/databases.ts";
import { startProgram } from "../support/program.ts";
import { findFreePort, type Server, startServer } from "../support/server.ts";
import { killUntilEnded, proxied, watchProgram } from "../support/phases.ts";
import {
  changeSource,
  loadedDatabases,
  loadedOnce,
  recover,
  settle,
} from "../support/fault_scene.ts";
import {
  assertEnded,
  assertOneEndPerRun,
  assertSound,
  until,
} from "../support/soundness.ts";

const SMALL = { deals: 5, leads: 5 };
const copyLoaded = loadedOnce(SMALL);
const GROUP = "The service (`serve`)";
const OPTIONS = {
  tables: namesOf(MARKETING_TABLES),
  mode: "auto",
  atomic: false,
  recreate: false,
  allowShrink: false,
} as const;

async function stateOf(db: Databases, id?: string): Promise<string> {
  const [row] = await db.warehouse.unsafe(
    `select state || coalesce(' ' || code, '') as state from marketing_data_service.run
     where ${id ? `id = '${id}'` : "true"} order by seq desc limit 1`,
  );
  return row!.state;
}

/** Makes the next load wait for its table until the transaction ends. */
async function holdTable(db: Databases) {
  const other = db.connect("warehouse");
  await other.unsafe(
    "begin; lock table m_data.closed_deal in row exclusive mode",
  );
  return other;
}

/**
 * Returns the exit of the process. It has much less time than the settings of the
 * test allow for a statement.
 */
async function endOf(server: Server) {
  let isOver = false;
  server.finished.then(() => isOver = true);
  await until(() => isOver, () => "the process goes on", 60);
  return await server.finished;
}

async function isWaiting(db: Databases): Promise<boolean> {
  const rows = await db.warehouse.unsafe(
    "select from pg_locks where not granted and relation = 'm_data.closed_deal'::regclass",
  );
  return rows.length > 0;
}

Deno.test("serve starts before its databases, and becomes ready when they start", async () => {
  await using postgres = await startPostgres();
  const url = postgres.url();
  await using db = await loadedDatabases(SMALL, {
    servers: { source: url, warehouse: url },
  });
  await postgres.stop("immediate");
  const port = findFreePort();
  const { process, finished } = startProgram(["serve"], {
    ...db.environment,
    PORT: String(port),
    RETRY_ATTEMPTS: "1",
    CONNECT_TIMEOUT: "2",
  });
  const ask = async (path: string, method = "GET") => {
    const response = await fetch(`http://127.0.0.1:${port}${path}`, { method });
    await response.body?.cancel();
    return response.status;
  };
  await until(() => ask("/health/live").then((s) => s === 200, () => false));
  assertEquals(await ask("/health"), 503);
  assertEquals(await ask("/health/ready"), 503);
  assertEquals(await ask("/load", "POST"), 503);
  await postgres.restart();
  await until(async () => await ask("/health/ready") === 200);
  assertEquals(await ask("/load", "POST"), 200);
  assertEquals(await ask("/health"), 200);
  process.kill("SIGTERM");
  assertEnded(await finished, 143);
});

Deno.test("serve ends a load after SHUTDOWN_GRACE with 500, the event, exit 143 and the old rows", async () => {
  await using db = await copyLoaded();
  const scene = await changeSource(db);
  await using other = await holdTable(db);
  await using server = await startServer(db, {
    SHUTDOWN_GRACE: "1",
    LOCK_TIMEOUT: "60",
  });
  const answer = server.json("/load", { method: "POST" });
  await until(() => isWaiting(db));
  server.kill("SIGTERM");
  const { status, body } = await answer;
  assertEquals([status, body.event_type], [500, "marketing-data-load-failed"]);
  assertStringIncludes(body.error, "SHUTDOWN_GRACE");
  const outcome = await server.finished;
  assertEnded(outcome, 143);
  await other.unsafe("rollback");
  assertEquals(await stateOf(db), "interrupted terminated");
  await settle(db, {
    group: GROUP,
    fault: "SIGTERM, and SHUTDOWN_GRACE is over",
    scene,
    outcome,
  });
});

Deno.test("serve ends on SIGTERM long before STALL_TIMEOUT when the warehouse is silent", async (t) => {
  // No timeout ends a statement within minutes.
  const giveUpAfter = { CONNECT_TIMEOUT: "300", STALL_TIMEOUT: "300" };

  await t.step("with no load running", async () => {
    await using db = await copyLoaded();
    await using proxies = proxied(db);
    const file = await Deno.makeTempFile();
    await using server = await startServer(db, {
      ...giveUpAfter,
      ...proxies.environment,
      SHUTDOWN_GRACE: "1",
      EVENT_PUBLISHER_TYPE: "file",
      EVENT_FILE: file,
    });
    proxies.warehouse.faults = { stalled: ["up", "down"] };
    // The worker of the queue, and a request.
    const answer = server.fetch("/runs").then(
      (r) => r.body?.cancel(),
      () => {},
    );
    await until(() => proxies.warehouse.held >= 2);
    server.kill("SIGTERM");
    assertEnded(await endOf(server), 143);
    await answer;
    await assertOneEndPerRun(db);
    await Deno.remove(file);
  });

  await t.step(
    "with a load running, whose run the next load closes",
    async () => {
      await using db = await copyLoaded();
      const scene = await changeSource(db);
      await using other = await holdTable(db);
      await using proxies = proxied(db);
      await using server = await startServer(db, {
        ...giveUpAfter,
        ...proxies.environment,
        SHUTDOWN_GRACE: "1",
        LOCK_TIMEOUT: "300",
      });
      const answer = server.fetch("/load", { method: "POST" })
        .then((r) => r.body?.cancel(), () => {});
      await until(() => isWaiting(db));
      proxies.warehouse.faults = { stalled: ["up", "down"] };
      server.kill("SIGTERM");
      const outcome = await endOf(server);
      assertEnded(outcome, 143, /The next load records its end/);
      await answer;
      await proxies[Symbol.asyncDispose]();
      await other.unsafe("rollback");
      await settle(db, {
        group: GROUP,
        fault: "SIGTERM while the warehouse is silent",
        scene,
        outcome,
        mayHaveDeadRun: true,
      });
      const rows = await db.warehouse.unsafe(
        "select state from marketing_data_service.run order by seq",
      );
      assertEquals(rows.map((row) => row.state), [
        "succeeded",
        "interrupted",
        "succeeded",
      ]);
    },
  );
});

Deno.test("serve ends at once on a second SIGTERM after more than a second", async () => {
  await using db = await copyLoaded();
  const scene = await changeSource(db);
  await using other = await holdTable(db);
  await using server = await startServer(db, { LOCK_TIMEOUT: "60" });
  const answer = server.fetch("/load", { method: "POST" })
    .then((response) => response.body?.cancel(), () => {});
  await until(() => isWaiting(db));
  server.kill("SIGTERM");
  await until(async () => (await server.json("/health/ready")).status === 503);
  const outcome = await killUntilEnded(server, "SIGTERM");
  assertEnded(outcome, 143);
  await answer;
  await other.unsafe("rollback");
  await settle(db, {
    group: GROUP,
    fault: "SIGTERM again after more than a second",
    scene,
    outcome,
    mayHaveDeadRun: true,
  });
  const [row] = await db.warehouse.unsafe(
    "select count(*)::int as n from marketing_data_service.run where state = 'interrupted'",
  );
  assertEquals(row!.n, 1);
});

Deno.test("a slow request body gets 408 and starts no load", async () => {
  await using db = await copyLoaded();
  await using server = await startServer(db);
  const { hostname, port } = new URL(server.url);
  using connection = await Deno.connect({ hostname, port: Number(port) });
  await connection.write(
    new TextEncoder().encode(
      `POST /load HTTP/1.1\r\nHost: localhost\r\nContent-Length: 20\r\n\r\n{"mode":`,
    ),
  );
  const bytes = new Uint8Array(4096);
  const count = await connection.read(bytes);
  const text = new TextDecoder().decode(bytes.subarray(0, count ?? 0));
  assertStringIncludes(text, "HTTP/1.1 408");
  const [row] = await db.warehouse.unsafe(
    "select count(*)::int as n from marketing_data_service.run",
  );
  assertEquals(row!.n, 1);
});

Deno.test("events --follow survives lost connections, prints each event once, and ends with 143", async () => {
  await using db = await copyLoaded();
  const follower = watchProgram(["events", "--follow"], db.environment);
  const ids = async () => {
    const rows = await db.warehouse.unsafe(
      "select event_id::text as id from marketing_data_service.event order by seq",
    );
    return rows.map((row) => row.id as string);
  };
  for (let n = 0; n < 3; n++) {
    const [last] = (await ids()).slice(-1);
    await until(() => follower.stdout().includes(last!));
    await db.warehouse.unsafe(
      `select pg_terminate_backend(pid, 5000) from pg_stat_activity
       where datname = current_database() and application_name = 'marketing-data-service'`,
    );
    await recover(db);
  }
  const [last] = (await ids()).slice(-1);
  await until(() => follower.stdout().includes(last!));
  follower.kill("SIGTERM");
  const finished = await follower.finished;
  assertEnded(finished, 143);
  assertEquals(
    finished.stdout.trimEnd().split("\n").map((l) => JSON.parse(l).event_id),
    await ids(),
  );
});

Deno.test("runs are kept for RUN_RETENTION_DAYS, and longer while their event is undelivered", async () => {
  await using db = await copyLoaded();
  await recover(db);
  await db.warehouse.unsafe(
    `update marketing_data_service.run set finished_at = finished_at - interval '3 days'
     where seq = (select min(seq) from marketing_data_service.run);
     insert into marketing_data_service.publisher (name, cursor) values ('file', 0)`,
  );
  await using context = contextOf(db);
  assertEquals(await pruneHistory(context.warehouse, 4, []), 0);
  assertEquals(await pruneHistory(context.warehouse, 2, ["file"]), 0);
  assertEquals(await pruneHistory(context.warehouse, 2, []), 1);
  assertEquals(
    [
      ...await db.warehouse.unsafe(
        `select (select count(*)::int from marketing_data_service.run) as runs,
         (select count(*)::int from marketing_data_service.event) as events,
         (select count(*)::int from marketing_data_service.table_load) as loads`,
      ),
    ].map((row) => ({ ...row })),
    [{ runs: 1, events: 1, loads: 2 }],
  );
});

/** Statements of the worker before a run starts, what they wait for, and how the test finds them. */
const BEFORE_THE_START = {
  "before the claim": {
    hold: "lock table marketing_data_service.run in access exclusive mode",
    // The server shows the beginning of a long statement only.
    waiting: "select id, trigger, state,",
  },
  "while it claims": {
    hold: "select from marketing_data_service.run for update",
    waiting: "set state = 'running'",
  },
};

Deno.test("a stop before the run begins prevents the run", async (t) => {
  await using db = await copyLoaded();
  await using context = contextOf(db);
  const reason = new ServiceError("draining", "The service is shutting down");

  for (const waitSeconds of [5, null]) {
    const expected = waitSeconds === null ? "queued" : "interrupted draining";
    for (const [name, { hold, waiting }] of Object.entries(BEFORE_THE_START)) {
      await t.step(`${name}, ${expected}`, async () => {
        const scene = await changeSource(db);
        const stop = new AbortController();
        const worker = new Worker(context, {
          observer: {},
          stop: stop.signal,
          abort: new AbortController().signal,
          unattendedTables: OPTIONS.tables,
        });
        const request = { ...OPTIONS, trigger: "http" } as const;
        const run = await enqueue(context, request, waitSeconds);
        await using other = db.connect("warehouse");
        await other.unsafe(`begin; ${hold}`);
        const outcome = worker.wait(run)
          .then((event) => event.status, (error) => error.code);
        await until(async () =>
          (await db.warehouse.unsafe(
            `select from pg_stat_activity where wait_event_type = 'Lock'
               and datname = current_database() and query like $1`,
            [`%${waiting}%`],
          )).length > 0
        );
        stop.abort(reason);
        await other.unsafe("commit");
        assertEquals(await outcome, "draining");
        await worker.finished;
        assertEquals(await stateOf(db, run.id), expected);
        await assertSound(db, {
          contents: [scene.old],
          mayHaveDeadRun: waitSeconds === null,
        });
        await recover(db);
      });
    }
  }
});

Deno.test("a late replica does not run a tick that another replica skipped", async () => {
  await using db = await copyLoaded();
  await using one = contextOf(db, { LOCK_TIMEOUT: "60" });
  await using two = contextOf(db);
  const [first, late] = [one, two].map((context) => ({
    config: context.config,
    log: context.log,
    dispatcher: new Dispatcher(context),
  }));
  const [row] = await db.warehouse.unsafe("select clock_timestamp() as now");
  const tick = new Date(row!.now);
  await using other = await holdTable(db);
  const running = first!.dispatcher.load("http", OPTIONS);
  await until(() => isWaiting(db));
  await runTick(first!, tick);
  await other.unsafe("rollback");
  assertEquals((await running).status, "success");
  await runTick(late!, tick);
  const [count] = await db.warehouse.unsafe(
    "select count(*)::int as n from marketing_data_service.run where trigger = 'schedule'",
  );
  assertEquals(count!.n, 0);
  for (const { dispatcher } of [first!, late!]) await dispatcher.drain(5);
});

Deno.test("a tick without the warehouse has its event when the warehouse is back", async () => {
  await using db = await copyLoaded();
  await using context = contextOf(db, {
    DWH_DB_PORT: "1",
    RETRY_ATTEMPTS: "1",
  });
  const dispatcher = new Dispatcher(context);
  await runTick(
    { config: context.config, log: context.log, dispatcher },
    new Date(),
  );
  await recover(db);
  const rows = await db.warehouse.unsafe(
    `select code, payload::text from marketing_data_service.run
     join marketing_data_service.event on run_id = run.id where run.trigger = 'schedule'`,
  );
  assertEquals(rows.map((row) => row.code), ["connection_failed"]);
  assert(JSON.parse(rows[0]!.payload).error.includes("(dwh)"));
});

for (
  const [signal, code] of [["SIGHUP", 129], ["SIGINT", 130]] as const
) {
  Deno.test(`serve gives the running load SHUTDOWN_GRACE on ${signal}, also when it arrives twice`, async () => {
    await using db = await copyLoaded();
    const scene = await changeSource(db);
    await using other = await holdTable(db);
    await using server = await startServer(db, { LOCK_TIMEOUT: "60" });
    const answer = server.json("/load", { method: "POST" });
    await until(() => isWaiting(db));
    server.kill(signal);
    await until(async () =>
      (await server.json("/health/ready")).status === 503
    );
    server.kill(signal);
    await other.unsafe("rollback");
    const { status } = await answer;
    assertEquals(status, 200);
    const outcome = await server.finished;
    assertEnded(outcome, code);
    assertEquals(await stateOf(db), "succeeded");
    await settle(db, {
      group: GROUP,
      fault: `${signal} twice, and the load ends within SHUTDOWN_GRACE`,
      scene: { ...scene, old: scene.new },
      outcome,
    });
  });
}
