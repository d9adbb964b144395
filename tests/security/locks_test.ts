import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { createDatabases, type Databases } from "../support/databases.ts";
import { loadedDatabases } from "../support/fault_scene.ts";
import { startProgram } from "../support/program.ts";
import { runJson, runProgram } from "../support/program_here.ts";

const ROWS = { deals: 3, leads: 3 };

/** A session of a role that may only connect to the warehouse. */
async function connectGuest(db: Databases) {
  const role = `${db.loader}_guest`;
  await db.warehouse.unsafe(`create role ${role}`);
  const session = db.connect("warehouse");
  await session.unsafe(`set session authorization ${role}`);
  return {
    role,
    session,
    async [Symbol.asyncDispose]() {
      await session.end({ timeout: 1 });
      await db.warehouse.unsafe(`drop role ${role}`);
    },
  };
}

Deno.test("load takes no lock that a role without privileges can hold", async () => {
  await using db = await createDatabases({ rows: ROWS });
  await using guest = await connectGuest(db);
  await guest.session.unsafe(
    "select pg_advisory_lock(key) from generate_series(5714280, 5714300) key",
  );
  // The first load migrates the warehouse.
  for (let i = 0; i < 2; i++) {
    const { code, stderr } = await runProgram(["load"], {
      ...db.environment,
      LOCK_TIMEOUT: "2",
    });
    assertEquals(code, 0, stderr);
  }
});

Deno.test("load migrates the warehouse while a role without privileges holds the lock of version 5", async () => {
  await using db = await loadedDatabases(ROWS);
  await db.warehouse.unsafe(
    `delete from marketing_data_service.migration where version > 5;
     drop table marketing_data_service.load_lock, marketing_data_service.event_order`,
  );
  await using guest = await connectGuest(db);
  await guest.session.unsafe("select pg_advisory_lock(5714290)");
  const { code, stderr } = await runProgram(["load"], db.environment);
  assertEquals(code, 0, stderr);
});

Deno.test("a role without privileges cannot take the locks of the service", async () => {
  await using db = await loadedDatabases(ROWS);
  await db.warehouse.unsafe(
    "grant usage on schema marketing_data_service to public; grant select on all tables in schema marketing_data_service to public",
  );
  await using guest = await connectGuest(db);
  for (
    const sql of [
      "lock table marketing_data_service.load_lock in exclusive mode",
      "lock table marketing_data_service.load_lock in row share mode",
      "lock table marketing_data_service.migration in share mode",
      "select from marketing_data_service.event_order for update",
      "select from marketing_data_service.event_order for key share",
    ]
  ) {
    const outcome = await guest.session.unsafe(`begin; ${sql}`).then(
      () => "locked",
      (error) => error.code,
    );
    await guest.session.unsafe("rollback");
    assertEquals(outcome, "42501", sql);
  }
});

Deno.test("load does not end a session of another role with the application_name of a dead run", async () => {
  await using db = await loadedDatabases(ROWS);
  const id = crypto.randomUUID();
  await db.warehouse.unsafe(
    `insert into marketing_data_service.run (id, state, trigger, tables, mode, atomic, recreate, started_at)
     values ('${id}', 'running', 'cli', '{closed_deal}', 'auto', false, false, now())`,
  );
  await using guest = await connectGuest(db);
  await guest.session.unsafe(
    `set application_name = 'marketing-data-service/${id}'`,
  );
  const { code, stderr } = await runProgram(["load"], db.environment);
  assertEquals(code, 0, stderr);
  const [run] = await db.warehouse.unsafe(
    `select state from marketing_data_service.run where id = '${id}'`,
  );
  assertEquals(run!.state, "interrupted");
  assertEquals((await guest.session.unsafe("select 1 as one"))[0]!.one, 1);
});

Deno.test("load names the session that holds its lock", async () => {
  await using db = await loadedDatabases(ROWS);
  await using other = db.connect("warehouse");
  await other.unsafe(
    "set application_name = 'a forgotten psql'; begin; lock table marketing_data_service.load_lock in exclusive mode",
  );
  const [{ pid }] = await other.unsafe(
    "select pg_backend_pid() as pid",
  ) as unknown as [{ pid: number }];
  const { code, json } = await runJson(["load"], {
    ...db.environment,
    LOCK_TIMEOUT: "0.3",
  });
  assertEquals(code, 75);
  assertEquals(json.code, "busy");
  assertStringIncludes(json.detail ?? JSON.stringify(json), `session ${pid} (`);
  assertStringIncludes(JSON.stringify(json), "a forgotten psql");
  await other.unsafe("rollback");
});

Deno.test("load ends as busy where the role may not see locks", async () => {
  await using db = await loadedDatabases(ROWS);
  await db.warehouse.unsafe("revoke select on pg_catalog.pg_locks from public");
  await using other = db.connect("warehouse");
  await other.unsafe(
    "begin; lock table marketing_data_service.load_lock in exclusive mode",
  );
  const { process, finished } = startProgram(["load", "--json"], {
    ...db.environment,
    LOCK_TIMEOUT: "0.3",
  });
  const timer = setTimeout(() => process.kill("SIGKILL"), 15_000);
  const { code, stdout, stderr } = await finished;
  clearTimeout(timer);
  assertEquals(code, 75, stderr);
  assertStringIncludes(stdout, "the lock of the loads was not free");
  await other.unsafe("rollback");
});

/** Locks on the tables of the history. Each blocks another statement of a load. */
const LOCKS: Readonly<Record<string, string>> = {
  run: "lock table marketing_data_service.run in access exclusive mode",
  table_load:
    "lock table marketing_data_service.table_load in access exclusive mode",
  event: "lock table marketing_data_service.event in access exclusive mode",
  event_order: "select from marketing_data_service.event_order for update",
};

for (const [table, lock] of Object.entries(LOCKS)) {
  Deno.test(`load names the session that locks the table ${table} of the history, and ends`, async () => {
    await using db = await loadedDatabases(ROWS);
    await using other = db.connect("warehouse");
    await other.unsafe("set application_name = 'a long VACUUM'; begin");
    await other.unsafe(lock);
    const started = performance.now();
    const { code, stdout, stderr } = await runProgram(["load", "--json"], {
      ...db.environment,
      RETRY_ATTEMPTS: "1",
      LOCK_TIMEOUT: "1",
    });
    // One wait of the load and three at closing its run, each of LOCK_TIMEOUT.
    const seconds = (performance.now() - started) / 1000;
    assert(seconds < 10, `${seconds} s`);
    const said = stdout + stderr;
    assertEquals(code, 75, said);
    assertStringIncludes(said, `marketing_data_service.${table}`);
    assertStringIncludes(said, "a long VACUUM");
    await other.unsafe("rollback");
    assertEquals((await runProgram(["load"], db.environment)).code, 0);
  });
}
