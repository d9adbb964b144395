import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { type ErrorCode, ERRORS } from "../../src/errors.ts";
import { createDatabases } from "../support/databases.ts";
import { loadedDatabases } from "../support/fault_scene.ts";
import { startProgram } from "../support/program.ts";
import { runJson } from "../support/program_here.ts";
import { startServer, until } from "../support/server.ts";

Deno.test("a failure without the warehouse is spooled, and recorded once by the next load", async () => {
  await using db = await createDatabases({ rows: { deals: 3, leads: 3 } });
  const folder = await Deno.makeTempDir();
  try {
    const spool = `${folder}/spool.jsonl`;
    const environment = { ...db.environment, EVENT_SPOOL_FILE: spool };
    const away = await runJson(["load"], { ...environment, DWH_DB_PORT: "1" });
    assertEquals(away.code, 69);
    const spooled = JSON.parse((await Deno.readTextFile(spool)).trim());
    assertEquals(spooled.event.event_type, "marketing-data-load-failed");
    assertStringIncludes(spooled.event.error, "on 127.0.0.1:1 (dwh)");

    // As if the process had died before it could empty the spool: the same line comes again.
    const line = await Deno.readTextFile(spool);
    for (let i = 0; i < 2; i++) {
      await Deno.writeTextFile(spool, line);
      const { code, stderr } = await runJson(["load"], environment);
      assertEquals(code, 0, stderr);
      assertEquals(await Deno.readTextFile(spool), "");
      const rows = await db.warehouse.unsafe(
        `select state, code, payload::text from marketing_data_service.run
         join marketing_data_service.event e on e.run_id = run.id where run.id = '${spooled.run.id}'`,
      );
      assertEquals(rows.length, 1);
      assertEquals([rows[0]!.state, rows[0]!.code], [
        "failed",
        "connection_failed",
      ]);
      assertEquals(JSON.parse(rows[0]!.payload), spooled.event);
    }

    // Other data is not held in memory, and keeps its place.
    const size = 2 ** 29;
    const other = "other data\n";
    await Deno.writeTextFile(spool, `${line}x`);
    await Deno.truncate(spool, size);
    await Deno.writeTextFile(spool, `\n${line}${other}`, { append: true });
    const load = startProgram(["load"], environment);
    let peak = 0;
    const timer = setInterval(() => {
      peak = peakMemory(load.process.pid) ?? peak;
    }, 5);
    const { code, stderr } = await load.finished;
    clearInterval(timer);
    assertEquals(code, 0, stderr);
    assertStringIncludes(stderr, "Cannot read 2 lines of the spool");
    assert(peak > 0 && peak < size / 2, `${peak} bytes`);
    const length = size - line.length + 1 + other.length;
    assertEquals((await Deno.stat(spool)).size, length);
    using file = await Deno.open(spool);
    await file.seek(-other.length, Deno.SeekMode.End);
    const end = new Uint8Array(other.length);
    await file.read(end);
    assertEquals(new TextDecoder().decode(end), other);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

/** Returns the peak memory of a process in bytes, or `undefined` after its end. */
function peakMemory(pid: number): number | undefined {
  try {
    const status = Deno.readTextFileSync(`/proc/${pid}/status`);
    const kilobytes = /VmHWM:\s+(\d+)/.exec(status)?.[1];
    return kilobytes ? Number(kilobytes) * 1024 : undefined;
  } catch {
    return undefined;
  }
}

/** A warehouse that refuses a load, with `$db` and `$role` for its names. */
interface Refusal {
  readonly refuse?: string;
  readonly allow?: string;
  readonly changes?: Readonly<Record<string, string>>;
  readonly code: ErrorCode;
}

const REFUSALS: Readonly<Record<string, Refusal>> = {
  "a connection limit of the role": {
    refuse: "alter role $role connection limit 0",
    allow: "alter role $role connection limit -1",
    code: "too_many_connections",
  },
  "a connection limit of the database": {
    refuse: "alter database $db connection limit 0",
    allow: "alter database $db connection limit -1",
    code: "too_many_connections",
  },
  "a database that allows no connections": {
    // As ALLOW_CONNECTIONS false does from another database.
    refuse: "update pg_database set datallowconn = false where datname = '$db'",
    allow: "update pg_database set datallowconn = true where datname = '$db'",
    code: "connection_forbidden",
  },
  "a dropped database": {
    changes: { DWH_DB_NAME: "mds_dropped" },
    code: "database_missing",
  },
  "a read-only warehouse": {
    refuse: "alter database $db set default_transaction_read_only = on",
    allow: "alter database $db reset default_transaction_read_only",
    code: "read_only",
  },
  "a revoked CONNECT": {
    refuse: "revoke connect on database $db from public, $role",
    allow: "grant connect on database $db to public",
    code: "connection_forbidden",
  },
  "a wrong password": {
    changes: { DWH_DB_PASSWORD: "another-one" },
    code: "authentication_failed",
  },
  "a missing privilege on the schema of the service": {
    refuse: "revoke all on schema marketing_data_service from $role",
    allow: "grant all on schema marketing_data_service to $role",
    code: "permission_denied",
  },
  "a missing privilege on a table of the service": {
    refuse: "revoke insert on marketing_data_service.run from $role",
    allow: "grant insert on marketing_data_service.run to $role",
    code: "permission_denied",
  },
};

for (
  const [name, { refuse, allow, changes, code }] of Object.entries(REFUSALS)
) {
  Deno.test(`load spools ${code} under ${name}, and the next load records it`, async () => {
    await using db = await loadedDatabases({ deals: 3, leads: 3 });
    const spool = db.environment.EVENT_SPOOL_FILE!;
    const run = async (sql = "select 1") =>
      await db.warehouse.unsafe(
        sql.replace("$db", db.environment.DWH_DB_NAME!)
          .replace("$role", db.loader),
      );
    await run(refuse);
    let refused;
    try {
      refused = await runJson(["load"], {
        ...db.environment,
        RETRY_ATTEMPTS: "1",
        ...changes,
      });
    } finally {
      await run(allow);
    }
    assertEquals([refused.json.code, refused.code], [code, ERRORS[code].exit]);
    const [line, rest] = (await Deno.readTextFile(spool)).split("\n");
    const failure = JSON.parse(line!);
    assertEquals([failure.code, rest], [code, ""]);

    const next = await runJson(["load"], db.environment);
    assertEquals(next.code, 0, next.stderr);
    assertEquals(await Deno.readTextFile(spool), "");
    const rows = await db.warehouse.unsafe(
      `select run.id, run.state, run.code, payload::text from marketing_data_service.run
       join marketing_data_service.event on run_id = run.id order by event.seq offset 1`,
    );
    assertEquals(rows.map((row) => [row.state, row.code]), [
      ["failed", code],
      ["succeeded", null],
    ]);
    assertEquals(rows[0]!.id, failure.run.id);
    assertEquals(JSON.parse(rows[0]!.payload), failure.event);
  });
}

Deno.test("the service spools requests that it cannot queue, for every trigger", async () => {
  await using db = await createDatabases({ rows: { deals: 3, leads: 3 } });
  await using server = await startServer(db, {
    RETRY_ATTEMPTS: "1",
    LISTEN_CHANNEL: "load_now",
  });
  const post = async (path: string) =>
    (await server.json(path, { method: "POST" })).status;
  assertEquals(await post("/load"), 200);
  const spooled = async () => {
    const text = await Deno.readTextFile(db.environment.EVENT_SPOOL_FILE!)
      .catch(() => "");
    return text.split("\n").filter(Boolean)
      .map((line) => JSON.parse(line).run.trigger as string);
  };
  const runs = "on marketing_data_service.run";
  await db.warehouse.unsafe(`revoke insert ${runs} from ${db.loader}`);
  try {
    assert(await post("/load") >= 500);
    assertEquals(await spooled(), ["http"]);
    assert(await post("/load-async") >= 500);
    assertEquals(await spooled(), ["http", "http"]);
    await db.warehouse.unsafe("notify load_now");
    await until(
      "the notified load is spooled",
      async () => (await spooled()).length === 3,
    );
    assertEquals((await spooled()).at(-1), "notify");
  } finally {
    await db.warehouse.unsafe(`grant insert ${runs} to ${db.loader}`);
  }
  assertEquals(await post("/load"), 200);
  assertEquals(await spooled(), []);
  const rows = await db.warehouse.unsafe(
    "select trigger from marketing_data_service.run where state = 'failed' order by trigger",
  );
  assertEquals(rows.map(({ trigger }) => trigger), ["http", "http", "notify"]);
});
