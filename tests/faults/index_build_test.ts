import { assertEquals } from "@std/assert";
import { startProgram } from "../support/program.ts";
import { changeSource, loadedDatabases } from "../support/fault_scene.ts";
import { assertSound, targetContent, until } from "../support/soundness.ts";

Deno.test("load and CREATE INDEX CONCURRENTLY on one of its targets do not block each other", async () => {
  await using db = await loadedDatabases({ deals: 20, leads: 60 });
  const scene = await changeSource(db);
  await using writer = db.connect("warehouse");
  await using builder = db.connect("warehouse");
  const waiting = (condition: string) =>
    until(async () =>
      (await db.warehouse.unsafe(
        `select from pg_stat_activity where datname = current_database()
           and wait_event_type = 'Lock' and ${condition}`,
      )).length > 0
    );
  await writer.unsafe(
    "begin; lock table m_data.closed_deal in row exclusive mode",
  );
  const built = builder.unsafe(
    "create index concurrently closed_deal_late on m_data.closed_deal (won_date)",
  );
  built.catch(() => {});
  await waiting("query like 'create index%'");
  const program = startProgram(["load", "--json"], {
    ...db.environment,
    LOCK_TIMEOUT: "20",
  });
  await waiting("application_name like 'marketing-data-service/%'");
  // The other table is loaded at the same time.
  await until(async () =>
    (await targetContent(db)).marketing_qualified_lead ===
      scene.new.marketing_qualified_lead
  );
  await writer.unsafe("rollback");
  const { code, stdout, stderr } = await program.finished;
  assertEquals(code, 0, stdout + stderr);
  await built;
  await assertSound(db, { contents: [scene.new] });
});
