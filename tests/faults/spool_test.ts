import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { createDatabases } from "../support/databases.ts";
import { runJson } from "../support/program.ts";
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
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

/** Ways in which a warehouse refuses a load, with `$db` and `$role` for its names, and how they end. */
const REFUSALS: Readonly<Record<string, readonly [string, string]>> = {
  "a connection limit of the role": [
    "alter role $role connection limit 0",
    "alter role $role connection limit -1",
  ],
  "a read-only warehouse": [
    "alter database $db set default_transaction_read_only = on",
    "alter database $db reset default_transaction_read_only",
  ],
  "a revoked CONNECT": [
    "revoke connect on database $db from public, $role",
    "grant connect on database $db to public",
  ],
  "a wrong password": [
    "alter role $role password 'another-one'",
    "alter role $role password '$password'",
  ],
};

for (const [name, [refuse, allow]] of Object.entries(REFUSALS)) {
  Deno.test(`load spools its failure under ${name}, and the next load announces it`, async () => {
    await using db = await createDatabases({ rows: { deals: 3, leads: 3 } });
    const environment = { ...db.environment, RETRY_ATTEMPTS: "1" };
    const fill = (sql: string) =>
      sql.replace("$db", db.environment.DWH_DB_NAME!)
        .replace("$role", db.environment.DWH_DB_USER!)
        .replace(
          "$password",
          () => db.environment.DWH_DB_PASSWORD!.replaceAll("'", "''"),
        );
    await db.warehouse.unsafe(fill(refuse));
    let refused;
    try {
      refused = await runJson(["load"], environment);
    } finally {
      await db.warehouse.unsafe(fill(allow));
    }
    assert(refused.code !== 0, refused.stdout);
    const { code, stderr } = await runJson(["load"], environment);
    assertEquals(code, 0, stderr);
    const rows = await db.warehouse.unsafe(
      `select run.state, event_type from marketing_data_service.run
       join marketing_data_service.event on run_id = run.id order by event.seq`,
    );
    assertEquals(rows.map((row) => [row.state, row.event_type]), [
      ["failed", "marketing-data-load-failed"],
      ["succeeded", "marketing-data-loaded"],
    ]);
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
