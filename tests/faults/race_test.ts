import { assert, assertEquals } from "@std/assert";
import { runJson } from "../support/program.ts";
import type { Databases } from "../support/databases.ts";
import { pauseLoad, sayOutcome, startLoad } from "../support/local_load.ts";
import { watchProgram } from "../support/phases.ts";
import {
  changeSource,
  loadedDatabases,
  recover,
  settle,
} from "../support/fault_scene.ts";
import { until } from "../support/soundness.ts";

const LEAD = "marketing_qualified_lead";
const PHASES = ["lock", "compare", "delete", "copy", "verify", "wait"] as const;

/** Asserts that no run began before the previous one had ended. */
async function assertOneAtATime(db: Databases): Promise<void> {
  const overlapping = await db.warehouse.unsafe(
    `select a.id from marketing_data_service.run a join marketing_data_service.run b
       on a.id <> b.id and b.started_at >= a.started_at and b.started_at < a.finished_at
     where a.state = 'succeeded' and b.state = 'succeeded'`,
  );
  assertEquals([...overlapping], []);
}

Deno.test("a second load waits in every phase of the first one, and both are complete", async (t) => {
  await using db = await loadedDatabases({ deals: 20, leads: 100 });
  for (const phase of PHASES) {
    await t.step(phase, async () => {
      const scene = await changeSource(db);
      await using paused = await pauseLoad(db, { table: LEAD, phase });
      const second = startLoad(db, { LOCK_TIMEOUT: "30" });
      await until(async () =>
        (await db.warehouse.unsafe(
          `select from pg_locks where relation = to_regclass('marketing_data_service.load_lock') and not granted
             and database = (select oid from pg_database where datname = current_database())`,
        )).length > 0
      );
      paused.resume();
      const outcomes = [await paused.outcome, await second.outcome];
      assertEquals(outcomes.map(sayOutcome), ["exit 0", "exit 0"]);
      assert(outcomes[0]!.event!.run_id !== outcomes[1]!.event!.run_id);
      await assertOneAtATime(db);
      await settle(db, {
        group: "Concurrent loads",
        fault: `a second load in ${phase} of the first`,
        scene,
        outcome: outcomes[1]!,
        isFollowed: true,
      });
    });
  }
  await recover(db);
});

Deno.test("parallel processes load one at a time, and each gets a result", async (t) => {
  await using db = await loadedDatabases({ deals: 20, leads: 200 });
  const environment = { ...db.environment, LOCK_TIMEOUT: "60" };
  const words = [
    ["load"],
    ["load"],
    ["load", "--mode", "full"],
    ["load", "--table", "closed_deal"],
    ["load", "--atomic"],
    ["load", "--recreate"],
  ];
  await t.step("load, verify and other commands", async () => {
    const scene = await changeSource(db);
    const results = await Promise.all(
      words.map((words) => runJson(words, environment)),
    );
    for (const { code, json, stderr } of results) {
      assertEquals([code, json?.status], [0, "success"], stderr);
    }
    await assertOneAtATime(db);
    await settle(db, {
      group: "Concurrent loads",
      fault: `${words.length} processes at once`,
      scene,
      outcome: results[0]!,
    });
  });

  await t.step("a process is killed while it holds the lock", async () => {
    const scene = await changeSource(db);
    await using other = db.connect("warehouse");
    await other.unsafe(
      `begin; lock table m_data.${LEAD} in row exclusive mode`,
    );
    const first = watchProgram(["load", "--json"], environment);
    await first.reaches(`${LEAD}: lock`);
    const others = words.slice(1, 4).map((words) =>
      runJson(words, environment)
    );
    await until(async () =>
      (await db.warehouse.unsafe(
        `select from pg_locks where relation = to_regclass('marketing_data_service.load_lock') and not granted
           and database = (select oid from pg_database where datname = current_database())`,
      )).length === others.length
    );
    first.kill("SIGKILL");
    assertEquals((await first.finished).code, 137);
    await other.unsafe("rollback");
    const results = await Promise.all(others);
    for (const { code, stderr } of results) assertEquals(code, 0, stderr);
    await assertOneAtATime(db);
    await settle(db, {
      group: "Concurrent loads",
      fault: "kill -9 of the loading process while three wait",
      scene,
      outcome: results[0]!,
    });
  });
});
