import { assertEquals } from "@std/assert";
import { createDatabases, type Databases } from "../support/databases.ts";
import { testWith } from "../support/debian.ts";
import { finish, startTaskOnTerminal } from "../support/program.ts";
import { runProgram } from "../support/program_here.ts";
import { findFreePort, until } from "../support/server.ts";

const ctrlC = new Uint8Array([3]);

async function press(process: Deno.ChildProcess): Promise<void> {
  const keyboard = process.stdin.getWriter();
  await keyboard.write(ctrlC);
  await keyboard.close();
}

async function isWaiting(db: Databases): Promise<boolean> {
  const rows = await db.warehouse.unsafe(
    "select from pg_locks where not granted and relation = 'm_data.closed_deal'::regclass",
  );
  return rows.length > 0;
}

async function loadedAndHeld() {
  const db = await createDatabases({ rows: { deals: 5, leads: 9 } });
  const { code, stderr } = await runProgram(["load"], db.environment);
  assertEquals(code, 0, stderr);
  await db.source.unsafe("delete from marketing.closed_deals");
  const other = db.connect("warehouse");
  await other.unsafe(
    "begin; lock table m_data.closed_deal in row exclusive mode",
  );
  return { db, other };
}

async function lastRun(db: Databases) {
  const [run] = await db.warehouse.unsafe(
    "select state, code from marketing_data_service.run order by seq desc limit 1",
  );
  return [run!.state, run!.code];
}

testWith(
  ["script"],
  "one Ctrl-C on a terminal ends `deno task load` with 130 and an interrupted run",
  async () => {
    const { db, other } = await loadedAndHeld();
    try {
      const process = startTaskOnTerminal("load", db.environment);
      const finished = finish(process);
      await until("the load waits", () => isWaiting(db));
      await press(process);
      const { code, stdout } = await finished;
      assertEquals(code, 130, stdout);
      assertEquals(await lastRun(db), ["interrupted", "terminated"]);
    } finally {
      await other[Symbol.asyncDispose]();
      await db[Symbol.asyncDispose]();
    }
  },
);

testWith(
  ["script"],
  "one Ctrl-C on a terminal gives a load of `deno task serve` its SHUTDOWN_GRACE",
  async () => {
    const { db, other } = await loadedAndHeld();
    try {
      const port = String(findFreePort());
      const process = startTaskOnTerminal("serve", {
        ...db.environment,
        PORT: port,
        LOCK_TIMEOUT: "60",
      });
      const finished = finish(process);
      const url = `http://127.0.0.1:${port}`;
      const ready = () =>
        fetch(`${url}/health/ready`).then(
          async (response) => {
            await response.body?.cancel();
            return response.status;
          },
          () => 0,
        );
      await until("the service is ready", async () => await ready() === 200);
      const answer = fetch(`${url}/load`, { method: "POST" });
      await until("the load waits", () => isWaiting(db));
      await press(process);
      await until("the service stops", async () => await ready() === 503);
      await other.unsafe("rollback");
      const response = await answer;
      await response.body?.cancel();
      assertEquals(response.status, 200);
      const { code, stdout } = await finished;
      assertEquals(code, 130, stdout);
      assertEquals(await lastRun(db), ["succeeded", null]);
    } finally {
      await other[Symbol.asyncDispose]();
      await db[Symbol.asyncDispose]();
    }
  },
);
