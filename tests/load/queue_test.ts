import {
  assert,
  assertEquals,
  assertMatch,
  assertRejects,
  assertStringIncludes,
} from "@std/assert";
import { delay } from "@std/async/delay";
import {
  ALL,
  configOf,
  contextOf,
  type Databases,
} from "../support/databases.ts";
import { type Started, startProgram } from "../support/program.ts";
import { runProgram } from "../support/program_here.ts";
import { startServer } from "../support/server.ts";
import { proxied } from "../support/phases.ts";
import { Dispatcher } from "../../src/service/dispatcher.ts";
import type { Parameter, Queryable, Row } from "../../src/postgres/sql.ts";
import { ServiceError } from "../../src/errors.ts";
import { closeAbandonedRuns } from "../../src/runs/dead_runs.ts";
import { acquireLock, findBusyError } from "../../src/runs/lock.ts";
import type { AppContext } from "../../src/context.ts";
import { enqueue } from "../../src/load/load.ts";
import { enqueueRun, withdrawRun } from "../../src/runs/queue.ts";
import type { QueuedRun, Run } from "../../src/runs/run.ts";
import { changeSource, loadedOnce, recover } from "../support/fault_scene.ts";
import { assertSound, sourceContent, until } from "../support/soundness.ts";

const copyLoaded = loadedOnce({ deals: 20, leads: 50 });

/** Locks a table, so that the next load waits until this is disposed of. */
async function holdTable(db: Databases): Promise<AsyncDisposable> {
  const writer = db.connect("warehouse");
  await writer.unsafe(
    "begin; lock table m_data.closed_deal in row exclusive mode",
  );
  return {
    async [Symbol.asyncDispose]() {
      await writer.end({ timeout: 0 });
    },
  };
}

/** Returns the sessions that wait for the service's lock. */
async function countWaiting(db: Databases): Promise<number> {
  const [row] = await db.warehouse.unsafe(
    `select count(*)::int as n from pg_locks where relation = to_regclass('marketing_data_service.load_lock')
       and not granted and database = (select oid from pg_database where datname = current_database())`,
  );
  return row!.n;
}

/** Returns the names of the sessions that hold the service's lock, or of all for it, oldest first. */
async function lockSessions(
  db: Databases,
  condition: "held" | "any",
): Promise<string[]> {
  const rows = await db.warehouse.unsafe(
    `select application_name as name from pg_stat_activity
     where datname = current_database() and application_name like '%/lock %'
       and (${condition === "any"} or pid in (
         select pid from pg_locks where granted and mode = 'ExclusiveLock'
           and relation = 'marketing_data_service.load_lock'::regclass))
     order by backend_start`,
  );
  return rows.map(({ name }) => name);
}

/** Counts the processes that wait for the queued run. */
async function countWaiters(db: Databases): Promise<number> {
  const [row] = await db.warehouse.unsafe(
    `select count(*)::int as n from marketing_data_service.run, jsonb_object_keys(askers)
     where state = 'queued'`,
  );
  return row!.n;
}

/** Waits until this number of sessions wait for their turn. */
const waiting = (db: Databases, count: number) =>
  until(
    async () => await countWaiting(db) === count,
    async () => `${await countWaiting(db)} wait, not ${count}`,
  );

/** Starts a load and waits until it waits for its table. */
async function startRunning(db: Databases): Promise<Started> {
  const started = startProgram(["load", "--json"], {
    ...db.environment,
    LOCK_TIMEOUT: "60",
  });
  await until(async () =>
    (await db.warehouse.unsafe(
      "select from pg_locks where not granted and relation = 'm_data.closed_deal'::regclass",
    )).length > 0
  );
  return started;
}

/** Starts loads one after the other, each after the earlier ones wait. */
async function startQueued(
  db: Databases,
  lockTimeouts: readonly number[],
): Promise<Started[]> {
  const started: Started[] = [];
  for (const seconds of lockTimeouts) {
    started.push(startProgram(["load", "--json"], {
      ...db.environment,
      LOCK_TIMEOUT: String(seconds),
    }));
    await waiting(db, started.length);
  }
  const [row] = await db.warehouse.unsafe(
    "select count(*)::int as n from marketing_data_service.run where state = 'queued'",
  );
  assertEquals(row!.n, 1, "they share one run");
  return started;
}

/** Returns states and codes of the runs, newest first, each with its number of events. */
async function states(db: Databases): Promise<string[]> {
  const rows = await db.warehouse.unsafe(
    `select state || coalesce(' ' || code, '') || ' ' || count(event.seq) as state
     from marketing_data_service.run left join marketing_data_service.event on run_id = run.id
     group by run.id order by run.seq desc`,
  );
  return rows.map((row) => row.state);
}

/** Returns a request as a run of its own. */
const asRun = (request: Omit<Run, "id">): Run => ({
  ...request,
  id: crypto.randomUUID(),
});

const codesOf = async (started: readonly Started[]) =>
  (await Promise.all(started.map((s) => s.finished))).map((f) => f.code);

for (const [stopped, which] of [[1, "last"], [0, "first"]] as const) {
  Deno.test(`a run continues for one caller when the ${which} caller is stopped`, async () => {
    await using db = await copyLoaded();
    const scene = await changeSource(db);
    let running: Started;
    let queued: Started[];
    {
      await using _ = await holdTable(db);
      running = await startRunning(db);
      queued = await startQueued(db, [60, 60]);
      queued[stopped]!.process.kill("SIGTERM");
      assertEquals((await queued[stopped]!.finished).code, 143);
    }
    const other = await queued[1 - stopped]!.finished;
    assertEquals(other.code, 0, other.stdout + other.stderr);
    assertEquals((await running.finished).code, 0);
    assertEquals(await states(db), [
      "succeeded 1",
      "succeeded 1",
      "succeeded 1",
    ]);
    await assertSound(db, { contents: [scene.new] });
  });
}

Deno.test("a run is interrupted with one event when all its callers are stopped", async () => {
  await using db = await copyLoaded();
  {
    await using _ = await holdTable(db);
    const running = await startRunning(db);
    const queued = await startQueued(db, [60, 60]);
    for (const { process } of queued) process.kill("SIGTERM");
    assertEquals(await codesOf(queued), [143, 143]);
    assertEquals((await states(db)).slice(0, 2), [
      "interrupted terminated 1",
      "running 0",
    ]);
    running.process.kill("SIGTERM");
    assertEquals((await running.finished).code, 143);
  }
  await recover(db);
});

Deno.test("a run continues for one caller when the other one is killed", async (t) => {
  await using db = await copyLoaded();
  for (const killed of [0, 1]) {
    await t.step(killed === 0 ? "the first" : "the last", async () => {
      const scene = await changeSource(db);
      let queued: Started[];
      {
        await using _ = await holdTable(db);
        const running = await startRunning(db);
        queued = await startQueued(db, [60, 60]);
        queued[killed]!.process.kill("SIGKILL");
        await queued[killed]!.finished;
        running.process.kill("SIGTERM");
        await running.finished;
      }
      const other = await queued[1 - killed]!.finished;
      assertEquals(other.code, 0, other.stdout + other.stderr);
      await assertSound(db, { contents: [scene.new] });
    });
  }
});

Deno.test("a caller of a shared run fails with 1, not 143, when the process that runs it is stopped", async () => {
  await using db = await copyLoaded();
  {
    await using _ = await holdTable(db);
    const running = await startRunning(db);
    const queued = await startQueued(db, [60, 60]);
    const [, ...waiters] = await lockSessions(db, "any");
    assertEquals(waiters.length, 2);
    running.process.kill("SIGTERM");
    await running.finished;
    await until(async () => (await states(db))[0] === "running 0");
    // Each waits with short timeouts, so either may get the lock.
    const [runner] = await lockSessions(db, "held");
    const stopped = queued[waiters.indexOf(runner!)]!;
    const other = queued.find((started) => started !== stopped)!;
    stopped.process.kill("SIGTERM");
    assertEquals((await stopped.finished).code, 143);
    const { code, stdout } = await other.finished;
    assertEquals(code, 1);
    assertStringIncludes(stdout, `"code":"terminated"`);
    assertEquals((await states(db))[0], "interrupted terminated 1");
  }
  await recover(db);
});

Deno.test("a service closes a run after its waiting time when all its callers are killed", async () => {
  await using db = await copyLoaded();
  await using server = await startServer(db);
  {
    await using _ = await holdTable(db);
    const running = await startRunning(db);
    const queued = await startQueued(db, [60, 60]);
    for (const { process } of queued) process.kill("SIGKILL");
    await codesOf(queued);
    running.process.kill("SIGKILL");
    await running.finished;
  }
  // Simulates the passage of a minute.
  await db.warehouse.unsafe(
    `update marketing_data_service.run set wait_until = wait_until - interval '2 min' where state = 'queued'`,
  );
  await until(async () =>
    (await states(db))[0] === "interrupted interrupted 1"
  );
  assertEquals((await server.json("/load", { method: "POST" })).status, 200);
  await assertSound(db, { contents: [await sourceContent(db)] });
});

Deno.test("a caller keeps its LOCK_TIMEOUT when it joins a run with a longer one", async () => {
  await using db = await copyLoaded();
  let running: Started;
  let patient: Started;
  {
    await using _ = await holdTable(db);
    running = await startRunning(db);
    const [first, hasty] = await startQueued(db, [60, 1]);
    patient = first!;
    const { code, stdout, stderr } = await hasty!.finished;
    assertEquals(code, 75, stderr);
    assertEquals(JSON.parse(stdout).code, "busy");
    assertEquals((await states(db))[0], "queued 0");
  }
  assertEquals(await codesOf([running, patient]), [0, 0]);
});

Deno.test("a caller keeps its LOCK_TIMEOUT when it joins a scheduled run, which stays queued", async () => {
  await using db = await copyLoaded();
  await using server = await startServer(db, { LOCK_TIMEOUT: "1" });
  let running: Started;
  let runId: string;
  {
    await using _ = await holdTable(db);
    running = await startRunning(db);
    runId = (await server.json("/load-async", { method: "POST" })).body.run_id;
    await waiting(db, 1);
    const hasty = startProgram(["load", "--json"], {
      ...db.environment,
      LOCK_TIMEOUT: "1",
    });
    const joined = await server.fetch("/load", { method: "POST" });
    assertEquals(joined.status, 503);
    assert(Number(joined.headers.get("retry-after")) > 0);
    assertEquals((await joined.json()).code, "busy");
    const { code, stderr } = await hasty.finished;
    assertEquals(code, 75, stderr);
    assertEquals((await states(db))[0], "queued 0");
  }
  assertEquals((await running.finished).code, 0);
  await until(async () =>
    (await server.json(`/runs/${runId}`)).body.status === "succeeded"
  );
});

Deno.test("a draining service refuses its requests of a shared run, which the other service runs", async (t) => {
  await using db = await copyLoaded();
  for (const drained of [1, 0]) {
    await t.step(drained === 0 ? "the first" : "the last", async () => {
      await using one = await startServer(db, { LOCK_TIMEOUT: "60" });
      await using two = await startServer(db, { LOCK_TIMEOUT: "60" });
      const servers = [one, two];
      let running: Started;
      const answers: Promise<Response>[] = [];
      {
        await using _ = await holdTable(db);
        running = await startRunning(db);
        for (const [index, server] of servers.entries()) {
          answers.push(server.fetch("/load", { method: "POST" }));
          await waiting(db, index + 1);
        }
        servers[drained]!.kill("SIGTERM");
        const away = await answers[drained]!;
        assertEquals(away.status, 503);
        assert(Number(away.headers.get("retry-after")) > 0);
        assertEquals((await away.json()).code, "draining");
        assertEquals((await servers[drained]!.finished).code, 143);
      }
      const other = await answers[1 - drained]!;
      const body = await other.json();
      assertEquals(other.status, 200, JSON.stringify(body));
      assertEquals(body.status, "success");
      assertEquals((await running.finished).code, 0);
    });
  }
});

Deno.test("a queued run of /load-async stays when its service drains, and the other service runs it", async () => {
  await using db = await copyLoaded();
  await using one = await startServer(db, { LOCK_TIMEOUT: "60" });
  await using two = await startServer(db, { LOCK_TIMEOUT: "60" });
  let running: Started;
  let runId: string;
  {
    await using _ = await holdTable(db);
    running = await startRunning(db);
    runId = (await one.json("/load-async", { method: "POST" })).body.run_id;
    await until(async () => await countWaiting(db) >= 1);
    const joined = startProgram(["load", "--json"], {
      ...db.environment,
      LOCK_TIMEOUT: "60",
    });
    // No caller waits for a run of /load-async. The lock may be waited for by the other service.
    await until(async () => await countWaiters(db) === 1);
    joined.process.kill("SIGTERM");
    const { code, stdout } = await joined.finished;
    assertEquals(code, 143);
    assertStringIncludes(stdout, "SIGTERM");
    one.kill("SIGTERM");
    assertEquals((await one.finished).code, 143);
    assertEquals((await states(db))[0], "queued 0");
  }
  assertEquals((await running.finished).code, 0);
  await until(async () =>
    (await two.json(`/runs/${runId}`)).body.status === "succeeded"
  );
});

Deno.test("a caller that joins while the last one leaves keeps the run", async () => {
  await using db = await copyLoaded();
  await using context = contextOf(db);
  const { warehouse } = context;
  const stop = new ServiceError(
    "terminated",
    "The process was ended by SIGTERM",
  );
  const request = { ...ALL, trigger: "cli" } as const;
  const run = await enqueueRun(warehouse, asRun(request), 60, "one");
  const joined: QueuedRun[] = [];
  // The moment between the withdrawal of the wait and the close of the run.
  const slow: Queryable = {
    async query<T extends Row>(
      text: string,
      parameters?: readonly Parameter[],
    ): Promise<T[]> {
      if (text.includes("pg_notify")) {
        joined.push(await enqueueRun(warehouse, asRun(request), 60, "two"));
      }
      return await warehouse.query<T>(text, parameters);
    },
  };
  assertEquals(
    await withdrawRun(slow, run, "one", stop, configOf(db)),
    undefined,
  );
  assertEquals(joined.map(({ id }) => id), [run.id]);
  assertEquals((await states(db))[0], "queued 0");
  const event = await withdrawRun(
    warehouse,
    joined[0]!,
    "two",
    stop,
    configOf(db),
  );
  assertEquals(event?.run_id, run.id);
  assertEquals((await states(db))[0], "interrupted terminated 1");
  // A second time, as after a lost answer.
  assertEquals(
    await withdrawRun(warehouse, joined[0]!, "two", stop, configOf(db)),
    undefined,
  );
});

Deno.test("withdrawRun() keeps the run for a later caller of the same process", async () => {
  await using db = await copyLoaded();
  await using context = contextOf(db);
  const { warehouse } = context;
  const busy = new ServiceError("busy", "another load is running");
  const request = { ...ALL, trigger: "http" } as const;
  const first = await enqueueRun(warehouse, asRun(request), 60, "one");
  const later = await enqueueRun(warehouse, asRun(request), 60, "one");
  assertEquals(later.id, first.id);
  assertEquals(
    await withdrawRun(warehouse, first, "one", busy, configOf(db)),
    undefined,
  );
  assertEquals((await states(db))[0], "queued 0");
  const event = await withdrawRun(
    warehouse,
    later,
    "one",
    busy,
    configOf(db),
  );
  assertEquals(event?.run_id, first.id);
  assertEquals((await states(db))[0], "failed busy 1");
});

Deno.test("a withdrawn run that the warehouse cannot record is spooled, and the next load records it", async () => {
  await using db = await copyLoaded();
  await using other = db.connect("warehouse");
  await other.unsafe(
    "begin; lock table marketing_data_service.load_lock in exclusive mode",
  );
  const [started] = await startQueued(db, [2]);
  const runs = "on marketing_data_service.run";
  await db.warehouse.unsafe(`revoke update ${runs} from ${db.loader}`);
  const { code, stdout, stderr } = await started!.finished;
  assertEquals(code, 75, stderr);
  assertEquals(JSON.parse(stdout).code, "busy");
  assertEquals((await states(db))[0], "queued 0");
  const spool = db.environment.EVENT_SPOOL_FILE!;
  const lines = (await Deno.readTextFile(spool)).trimEnd().split("\n");
  assertEquals(lines.length, 1);
  const { run, event } = JSON.parse(lines[0]!);
  const [row] = await db.warehouse.unsafe(
    "select id from marketing_data_service.run where state = 'queued'",
  );
  assertEquals([run.id, event.run_id], [row!.id, row!.id]);
  await db.warehouse.unsafe(`grant update ${runs} to ${db.loader}`);
  await other.unsafe("rollback");
  // A different request, so that it does not join the run.
  const next = startProgram(["load", "--mode", "full"], db.environment);
  assertEquals((await next.finished).code, 0);
  assertEquals((await states(db)).slice(0, 2), [
    "succeeded 1",
    "failed busy 1",
  ]);
  assertEquals(await Deno.readTextFile(spool), "");
});

/** Executes the next request of a run, calls `meanwhile`, and loses the answer. */
function loseAnswer(
  { warehouse }: AppContext,
  meanwhile: () => Promise<unknown> = () => Promise.resolve(),
): void {
  const query = warehouse.query;
  warehouse.query = async <T extends Row>(
    ...[text, ...rest]: Parameters<typeof query>
  ): Promise<T[]> => {
    const rows = await query.call(warehouse, text, ...rest);
    if (!text.includes("marketing_data_service.run as run")) return rows as T[];
    warehouse.query = query;
    await meanwhile();
    throw new ServiceError("connection_lost", "The answer was lost");
  };
}

Deno.test("a request whose answer is lost is one run, also when another process has begun it", async () => {
  await using db = await copyLoaded();
  await using context = contextOf(db);
  const request = { ...ALL, trigger: "http" } as const;
  loseAnswer(context);
  const queued = await enqueue(context, request, 60);
  assertEquals(await states(db), ["queued 0", "succeeded 1"]);
  await db.warehouse.unsafe(
    `delete from marketing_data_service.run where id = '${queued.id}'`,
  );
  loseAnswer(context, () =>
    db.warehouse.unsafe(
      `update marketing_data_service.run
       set state = 'running', started_at = now(), runner = 'another' where state = 'queued'`,
    ));
  const begun = await enqueue(context, request, 60);
  assertEquals(await states(db), ["running 0", "succeeded 1"]);
  const [row] = await db.warehouse.unsafe(
    "select id from marketing_data_service.run where state = 'running'",
  );
  assertEquals([begun.id, begun.deadline], [row!.id, null]);
});

Deno.test("a run that is queued without an answer ends once, with its spooled failure", async () => {
  await using db = await copyLoaded();
  await using context = contextOf(db, { RETRY_ATTEMPTS: "1" });
  loseAnswer(context);
  const error = await assertRejects(
    () => enqueue(context, { ...ALL, trigger: "http" }, 60),
    ServiceError,
  );
  assertEquals(error.code, "connection_lost");
  const spool = db.environment.EVENT_SPOOL_FILE!;
  const line = await Deno.readTextFile(spool);
  // A different request, so that it does not join the run.
  const loadFull = async () => {
    const { code, stderr } = await runProgram(
      ["load", "--mode", "full"],
      db.environment,
    );
    assertEquals(code, 0, stderr);
    assert(!stderr.includes("spool"), stderr);
  };
  await loadFull();
  // Another caller could still join the run, so it stays queued.
  assertEquals(await states(db), ["succeeded 1", "queued 0", "succeeded 1"]);
  assertEquals(await Deno.readTextFile(spool), line);
  await db.warehouse.unsafe(
    `update marketing_data_service.run set wait_until = now() - interval '6 s'
     where state = 'queued'`,
  );
  await loadFull();
  assertEquals(await states(db), [
    "succeeded 1",
    "succeeded 1",
    "failed connection_lost 1",
    "succeeded 1",
  ]);
  assertEquals(await Deno.readTextFile(spool), "");
});

Deno.test("a caller keeps its run after its deadline while its process holds the lock", async () => {
  await using db = await copyLoaded();
  const away = { ...db.environment, DWH_DB_PORT: "1", RETRY_ATTEMPTS: "1" };
  assertEquals((await runProgram(["load"], away)).code, 69);
  const spool = db.environment.EVENT_SPOOL_FILE!;
  const failure = await Deno.readTextFile(spool);
  const { run, event: { event_id: id } } = JSON.parse(failure);
  const failures = 8;
  for (let count = 1; count < failures; count++) {
    const another = failure.replaceAll(run.id, crypto.randomUUID())
      .replaceAll(id, crypto.randomUUID());
    await Deno.writeTextFile(spool, another, { append: true });
  }
  // Under the lock, the failures are recorded first. Here that takes several seconds.
  await using network = proxied(db, {
    warehouse: { latencyMilliseconds: 60 },
  });
  await using context = contextOf({ ...db, environment: network.environment }, {
    LOCK_TIMEOUT: "0.1",
  });
  const { log, config } = context;
  const dispatcher = new Dispatcher(context);
  const load = dispatcher.load("http", ALL);
  let isDone = false;
  const closed: string[] = [];
  const closing = (async () => {
    await using other = contextOf(db);
    while (!isDone) {
      closed.push(
        ...await closeAbandonedRuns(other.warehouse, log, "queued", config, []),
      );
      await delay(100);
    }
  })();
  const event = await load.finally(() => isDone = true);
  await closing;
  assertEquals([closed, event.status], [[], "success"]);
  await dispatcher.drain(5);
  const ends = await states(db);
  assertEquals(
    ends.filter((end) => end === "failed connection_failed 1").length,
    failures,
  );
});

Deno.test("load runs its own run, and leaves a queued run of /load-async to a service", async () => {
  await using db = await copyLoaded();
  await using context = contextOf(db);
  const request = { ...ALL, mode: "full", trigger: "http" } as const;
  const run = await enqueueRun(
    context.warehouse,
    asRun(request),
    null,
    "a service",
  );
  const { code, stderr } = await startProgram(["load"], db.environment)
    .finished;
  assertEquals(code, 0, stderr);
  assertEquals(await states(db), ["succeeded 1", "queued 0", "succeeded 1"]);
  await using server = await startServer(db);
  await until(async () =>
    (await server.json(`/runs/${run.id}`)).body.status === "succeeded"
  );
});

Deno.test("a service leaves a queued run whose tables it does not declare to a service that does", async () => {
  await using db = await copyLoaded();
  await using context = contextOf(db);
  const request = { ...ALL, trigger: "http" } as const;
  const tables = [...ALL.tables, "declared_elsewhere"];
  await enqueueRun(
    context.warehouse,
    asRun({ ...request, tables }),
    null,
    "another",
  );
  await using server = await startServer(db);
  const { body } = await server.json("/load-async", { method: "POST" });
  await until(async () =>
    (await server.json(`/runs/${body.run_id}`)).body.status === "succeeded"
  );
  assertEquals(await states(db), ["succeeded 1", "queued 0", "succeeded 1"]);
});

Deno.test("a service with several queued runs gives a waiting load its turn between them", async () => {
  await using db = await copyLoaded();
  await using server = await startServer(db, { LOCK_TIMEOUT: "60" });
  await using other = db.connect("warehouse");
  await other.unsafe(
    "begin; lock table marketing_data_service.load_lock in exclusive mode",
  );
  for (const table of ALL.tables) {
    for (const mode of ["auto", "full"]) {
      const body = JSON.stringify({ tables: [table], mode });
      await server.json("/load-async", { method: "POST", body });
    }
  }
  await waiting(db, 1);
  const started = startProgram(["load"], {
    ...db.environment,
    LOCK_TIMEOUT: "60",
  });
  await waiting(db, 2);
  await other.unsafe("rollback");
  assertEquals((await started.finished).code, 0);
  await until(async () =>
    (await states(db)).every((state) => state === "succeeded 1")
  );
  const rows = await db.warehouse.unsafe(
    "select trigger from marketing_data_service.run order by started_at",
  );
  const order = rows.slice(1).map(({ trigger }) => trigger);
  assertEquals(order.length, 5);
  assert(order.at(-1) === "http", order.join());
});

Deno.test("a request is not refused as busy while the lock is free, however slow the network is", async () => {
  await using db = await copyLoaded();
  await using network = proxied(db, {
    warehouse: { latencyMilliseconds: 60 },
  });
  await using context = contextOf({ ...db, environment: network.environment }, {
    LOCK_TIMEOUT: "0.1",
  });
  const dispatcher = new Dispatcher(context);
  assertEquals((await dispatcher.load("http", ALL)).status, "success");
  await dispatcher.drain(5);
});

Deno.test("findBusyError() reports no lock that this process has without knowing it yet", async () => {
  await using db = await copyLoaded();
  await using context = contextOf(db);
  await using other = contextOf(db);
  await using _lock = await acquireLock(context, 1);
  assertEquals(await findBusyError(context, 1, true), undefined);
  for (const [of, isWaiting] of [[context, false], [other, true]] as const) {
    const busy = await findBusyError(of, 1, isWaiting);
    assertMatch(busy!.message, /another load is running in session/);
  }
});

Deno.test("a wait with a lost connection ends at its deadline", async () => {
  await using db = await copyLoaded();
  await using other = db.connect("warehouse");
  await other.unsafe(
    "begin; lock table marketing_data_service.load_lock in exclusive mode",
  );
  const [started] = await startQueued(db, [6]);
  const [queued] = await db.warehouse.unsafe(
    "select wait_until::text as until from marketing_data_service.run where state = 'queued'",
  );
  const isPast = (interval: string) => async () => {
    const [row] = await db.warehouse.unsafe(
      `select clock_timestamp() > '${
        queued!.until
      }'::timestamptz + interval '${interval}' as past`,
    );
    return row!.past as boolean;
  };
  await until(isPast("-3 s"));
  await db.warehouse.unsafe(
    `select pg_terminate_backend(pid) from pg_locks where relation = to_regclass('marketing_data_service.load_lock')
       and not granted and database = (select oid from pg_database where datname = current_database())`,
  );
  // A new limit for the second connection would add the waiting time of the first one.
  const ended = await Promise.race([
    started!.finished,
    until(isPast("2 s")).then(() => undefined),
  ]);
  await other.unsafe("rollback");
  assertEquals(ended?.code, 75, ended?.stderr);
  assertEquals((await states(db))[0], "failed busy 1");
});

Deno.test("the migration of the queue keeps the place of each waiting run", async () => {
  await using db = await copyLoaded();
  const ids = { awaited: crypto.randomUUID(), certain: crypto.randomUUID() };
  await db.warehouse.unsafe(
    `delete from marketing_data_service.migration where version > 3;
     drop table marketing_data_service.load_lock, marketing_data_service.event_order;
     alter table marketing_data_service.run drop column askers;
     alter table marketing_data_service.table_load drop column source_mark, add column source_writes text;
     insert into marketing_data_service.run (id, trigger, tables, mode, atomic, recreate, wait_until) values
       ('${ids.awaited}', 'http', '{closed_deal}', 'auto', false, false, clock_timestamp() + interval '1 min'),
       ('${ids.certain}', 'schedule', '{closed_deal}', 'full', false, false, 'infinity')`,
  );
  // Migrates, joins the run that another process waits for, and withdraws.
  {
    await using _ = await holdTable(db);
    const running = await startRunning(db);
    const joined = startProgram(["load", "--table", "closed_deal"], {
      ...db.environment,
      LOCK_TIMEOUT: "60",
    });
    await waiting(db, 1);
    joined.process.kill("SIGTERM");
    assertEquals((await joined.finished).code, 143);
    running.process.kill("SIGTERM");
    assertEquals((await running.finished).code, 143);
  }
  const stateOf = async (id: string) => {
    const [row] = await db.warehouse.unsafe(
      `select state from marketing_data_service.run where id = '${id}'`,
    );
    return row!.state;
  };
  assertEquals(await stateOf(ids.awaited), "queued");
  // The new version runs the unconditional runs, and closes runs without callers.
  await using context = contextOf(db);
  await using _server = await startServer(db);
  await until(async () => await stateOf(ids.certain) === "succeeded");
  assertEquals(
    await closeAbandonedRuns(
      context.warehouse,
      context.log,
      "queued and running",
      context.config,
      [],
    ),
    [],
  );
  await db.warehouse.unsafe(
    `update marketing_data_service.run set wait_until = clock_timestamp() - interval '1 min' where id = '${ids.awaited}'`,
  );
  await until(async () => await stateOf(ids.awaited) === "interrupted");
});
