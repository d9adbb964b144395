import { assertEquals, assertStringIncludes } from "@std/assert";
import { startPostgres } from "../support/own_server.ts";
import {
  duringLoad,
  loadHere,
  pauseLoad,
  sayOutcome,
} from "../support/local_load.ts";
import {
  changeSource,
  loadedDatabases,
  settle,
} from "../support/fault_scene.ts";
import { until } from "../support/soundness.ts";

const LEAD = "marketing_qualified_lead";
const GROUP = "A warehouse that waits for a missing standby";
const IMPATIENT = { STALL_TIMEOUT: "1", CONNECT_TIMEOUT: "2" };

Deno.test("load waits for a missing synchronous standby of the warehouse", async (t) => {
  await using source = await startPostgres();
  await using warehouse = await startPostgres();
  await using db = await loadedDatabases({ deals: 20, leads: 60 }, {
    servers: { source: source.url(), warehouse: warehouse.url() },
  });
  const waitFor = async (standbys: string) => {
    await db.warehouse.unsafe(
      `alter system set synchronous_standby_names = '${standbys}'`,
    );
    await db.warehouse.unsafe("select pg_reload_conf()");
  };
  const seconds = async () => {
    const [row] = await db.warehouse.unsafe(
      `select coalesce(max(extract(epoch from clock_timestamp() - query_start)), 0)::float8 as seconds
       from pg_stat_activity where wait_event = 'SyncRep'
         and application_name like 'marketing-data-service/%'`,
    );
    return row!.seconds as number;
  };

  await t.step(
    "at the commit: load does not stall, and succeeds when the standby is back",
    async () => {
      const scene = await changeSource(db);
      await using paused = await pauseLoad(
        db,
        { table: LEAD, phase: "wait" },
        IMPATIENT,
      );
      await waitFor("nobody");
      paused.resume();
      // Longer than the stall timeout.
      await duringLoad(paused, async () => await seconds() > 2);
      await waitFor("");
      const outcome = await paused.outcome;
      assertEquals(sayOutcome(outcome), "exit 0", outcome.log);
      await settle(db, {
        group: GROUP,
        fault: "from the commit, for 2 s",
        scene,
        outcome,
      });
    },
  );

  await t.step(
    "before the load: load reports that the server does not answer",
    async () => {
      const scene = await changeSource(db);
      await waitFor("nobody");
      const outcome = await loadHere(db, { ...IMPATIENT, RETRY_ATTEMPTS: "2" });
      assertEquals(sayOutcome(outcome), "exit 69, connection_failed");
      assertStringIncludes(outcome.error!.line, "no answer within");
      await waitFor("");
      await until(async () => await seconds() === 0);
      await settle(db, {
        group: GROUP,
        fault: "before the load, permanently",
        scene,
        outcome,
        mayHaveDeadRun: true,
      });
    },
  );
});
