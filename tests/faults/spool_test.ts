import { assertEquals, assertStringIncludes } from "@std/assert";
import { createDatabases } from "../support/databases.ts";
import { runJson } from "../support/program.ts";

Deno.test("a failure while the warehouse is away is spooled, and on record after the next load, once", async () => {
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
