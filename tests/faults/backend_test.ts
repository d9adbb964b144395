import { assert, assertEquals, assertNotEquals } from "@std/assert";
import type { Databases } from "../support/databases.ts";
import { codeOf, exitOf, pauseLoad } from "../support/local_load.ts";
import {
  changeSource,
  loadedOnce,
  recover,
  settle,
} from "../support/fault_scene.ts";
import { until } from "../support/soundness.ts";
import { some } from "../support/thorough.ts";

const copyLoaded = loadedOnce({ deals: 60, leads: 200 });
const LEAD = "marketing_qualified_lead";
const PHASES = ["lock", "compare", "delete", "copy", "verify", "wait"] as const;

/** Conditions on pg_stat_activity that select the backends to end. `$run` is the id of the run. */
const VICTIMS = {
  "all of the run's backends in the source": [
    "source",
    "application_name like '%/$run'",
  ],
  "the source's snapshot holder": [
    "source",
    `pid = (select pid from pg_stat_activity
       where application_name like '%/$run' and datname = current_database()
       order by backend_start limit 1)`,
  ],
  "a reader of the source": [
    "source",
    `pid = (select pid from pg_stat_activity
       where application_name like '%/$run' and datname = current_database()
       order by backend_start desc limit 1)`,
  ],
  "the tables' backends in the warehouse": [
    "warehouse",
    "application_name like '%/$run'",
  ],
  "the backend of the service's lock": [
    "warehouse",
    "application_name like '%/lock %'",
  ],
  "the backends of single statements": [
    "warehouse",
    "application_name = 'marketing-data-service'",
  ],
  "all of the service's backends in the warehouse": [
    "warehouse",
    "application_name like 'marketing-data-service%'",
  ],
} as const;

/** Ends backends and waits until they have ended. */
async function terminate(
  db: Databases,
  victim: keyof typeof VICTIMS,
  runId: string,
): Promise<void> {
  const [side, condition] = VICTIMS[victim];
  const ours = `datname = current_database() and pid <> pg_backend_pid()
    and ${condition.replaceAll("$run", runId)}`;
  const rows = await db[side].unsafe(
    `select pid, pg_terminate_backend(pid) from pg_stat_activity where ${ours}`,
  );
  const pids = rows.map((row) => row.pid);
  assert(pids.length > 0, `no backend: ${victim}`);
  await until(async () =>
    (await db[side].unsafe(
      `select 1 from pg_stat_activity where pid in (${pids})`,
    )).length === 0
  );
}

for (const victim of Object.keys(VICTIMS) as (keyof typeof VICTIMS)[]) {
  Deno.test(`pg_terminate_backend in each phase, of ${victim}`, async (t) => {
    await using db = await copyLoaded();
    for (const phase of PHASES) {
      for (const attempts of some([3, 1], 1)) {
        await t.step(`${phase}, RETRY_ATTEMPTS=${attempts}`, async () => {
          const scene = await changeSource(db);
          await using paused = await pauseLoad(db, { table: LEAD, phase }, {
            RETRY_ATTEMPTS: String(attempts),
          });
          await terminate(db, victim, paused.runId);
          paused.resume();
          const outcome = await paused.outcome;
          const code = outcome.event && codeOf(outcome.event);
          if (attempts > 1) {
            assertEquals([exitOf(outcome), code], [0, undefined], outcome.log);
          } else if (outcome.event?.status === "failure") {
            assertNotEquals(code, "internal", outcome.log);
          }
          await settle(db, {
            group: `\`pg_terminate_backend\`: ${victim}`,
            fault: `in ${phase}, RETRY_ATTEMPTS=${attempts}`,
            scene,
            outcome,
            isFollowed: true,
          });
        });
      }
    }
    await recover(db);
  });
}
