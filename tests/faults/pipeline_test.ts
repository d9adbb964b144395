import { assert, assertEquals } from "@std/assert";
import { runJson } from "../support/program_here.ts";
import { MARKETING_TABLES } from "../../src/tables/marketing.ts";
import { createTableSql } from "../../src/sync/target.ts";
import {
  duringLoad,
  pauseLoad,
  sayOutcome,
  startLoad,
} from "../support/local_load.ts";
import { measure } from "../support/measure.ts";
import {
  changeSource,
  loadedOnce,
  recover,
  settle,
} from "../support/fault_scene.ts";
import { assertSound, type Content, until } from "../support/soundness.ts";
import { some } from "../support/thorough.ts";

const copyLoaded = loadedOnce({ deals: 20, leads: 100 });
const LEAD = "marketing_qualified_lead";
const PHASES = ["lock", "compare", "delete", "copy", "verify", "wait"] as const;

/** Digest of an empty table. */
const EMPTY = "0 d41d8cd98f00b204e9800998ecf8427e";

/** The statements of a pipeline in one transaction, and the targets afterwards. */
const PIPELINES = {
  "creates it again": {
    sql: (loader: string) =>
      `create schema m_data; grant all on schema m_data to ${loader};
       ${
        MARKETING_TABLES.map((table) =>
          `${createTableSql(table)};
           alter table m_data.${table.target.name} owner to ${loader}`
        ).join(";")
      };`,
    leaves: EMPTY,
  },
  "does not create it again": { sql: () => "", leaves: "absent" },
};

for (const [what, { sql, leaves }] of Object.entries(PIPELINES)) {
  for (const phase of PHASES) {
    Deno.test(`load in ${phase} survives a pipeline that drops m_data and ${what}`, async () => {
      await using db = await copyLoaded();
      const scene = await changeSource(db);
      await using other = db.connect("warehouse");
      await using paused = await pauseLoad(db, { table: LEAD, phase }, {
        LOCK_TIMEOUT: "1",
      });
      let isOver = false;
      const pipeline = other.unsafe(
        `begin; drop schema m_data cascade; ${sql(db.loader)} commit`,
      ).then(() => isOver = true);
      let isMadeToWait = false;
      await until(async () => {
        isMadeToWait = (await db.warehouse.unsafe(
          `select from pg_stat_activity where wait_event_type = 'Lock'
           and datname = current_database() and query like '%drop schema%' and pid <> pg_backend_pid()`,
        )).length > 0;
        return isOver || isMadeToWait;
      });
      // After the lock of a target, the pipeline waits for the load.
      if (phase !== "lock") assert(isMadeToWait);
      paused.resume();
      const outcome = await paused.outcome;
      await pipeline;
      const made: Content = Object.fromEntries(
        MARKETING_TABLES.map((table) => [table.name, leaves]),
      );
      if (outcome.event?.status === "failure") {
        assert(
          /target_(dropped|locked)/.test(sayOutcome(outcome)),
          sayOutcome(outcome) + outcome.log,
        );
      }
      // The pipeline may drop the committed tables right after the load.
      const now = await assertSound(db, {
        contents: [scene.old, scene.new, made],
      });
      measure({
        group: `A pipeline drops m_data with CASCADE and ${what}`,
        fault: `while the load is in ${phase}${
          isMadeToWait ? ", and the drop waits" : ""
        }`,
        holds: now[LEAD] === leaves ? "what the pipeline left" : "new",
        sees: sayOutcome(outcome),
        recoverySeconds: await recover(db),
      });
    });
  }
}

for (const [what, { sql }] of Object.entries(PIPELINES)) {
  Deno.test(`load fills the targets again when a pipeline drops m_data before the lock and ${what}`, async () => {
    await using db = await copyLoaded();
    const scene = await changeSource(db);
    await using other = db.connect("warehouse");
    await other.unsafe(`begin; drop schema m_data cascade; ${sql(db.loader)}`);
    const running = startLoad(db, { LOCK_TIMEOUT: "20" });
    await duringLoad(running, async () =>
      (await db.warehouse.unsafe(
        `select from pg_stat_activity where wait_event_type = 'Lock'
         and datname = current_database() and application_name like 'marketing-data-service/%'`,
      )).length > 0);
    await other.unsafe("commit");
    const outcome = await running.outcome;
    assertEquals(sayOutcome(outcome), "exit 0", outcome.log);
    await settle(db, {
      group: `A pipeline drops m_data with CASCADE and ${what}`,
      fault: "at once, before the load has locked a target",
      scene,
      outcome,
    });
  });
}

Deno.test("load reports a locked target after LOCK_TIMEOUT, and retries", async (t) => {
  await using db = await copyLoaded();
  const holders = {
    "a writer with other rows":
      `insert into m_data.${LEAD} (mql_id) values ('mine')`,
    "a change of the table": `alter table m_data.${LEAD} add column x text`,
    "a reader who locks out writers": `lock table m_data.${LEAD} in share mode`,
    "a VACUUM": `lock table m_data.${LEAD} in share update exclusive mode`,
  };
  for (const [holder, sql] of Object.entries(holders)) {
    for (const isReleased of [false, true]) {
      const fault = `${holder}, ${
        isReleased ? "released in time" : "permanently"
      }`;
      await t.step(fault, async () => {
        const scene = await changeSource(db);
        await using other = db.connect("warehouse");
        await other.unsafe(`begin; ${sql}`);
        const running = startLoad(db, {
          LOCK_TIMEOUT: isReleased ? "20" : "0.3",
          RETRY_ATTEMPTS: "2",
        });
        if (isReleased) {
          await duringLoad(running, async () =>
            (await db.warehouse.unsafe(
              `select from pg_locks where not granted and relation = 'm_data.${LEAD}'::regclass`,
            )).length > 0);
          await other.unsafe("rollback");
        }
        const outcome = await running.outcome;
        if (!isReleased) await other.unsafe("rollback");
        assertEquals(
          sayOutcome(outcome),
          isReleased ? "exit 0" : "exit 1, target_locked",
          outcome.log,
        );
        if (outcome.event?.status === "failure") {
          assertEquals(outcome.event.details.results[1]!.attempts, 2);
        }
        await settle(db, {
          group: "A lock on a target",
          fault,
          scene,
          outcome,
        });
      });
    }
  }
});

/** Privileges that are revoked during a load. `$loader` and `$reader` are replaced by the roles. */
const RIGHTS = {
  "SELECT on the source table": [
    "source",
    `select on marketing.${LEAD}s`,
    "$reader",
  ],
  "USAGE on the source schema": [
    "source",
    "usage on schema marketing",
    "$reader",
  ],
  "all on the target": ["warehouse", `all on m_data.${LEAD}`, "$loader"],
  "all on schema m_data": ["warehouse", "all on schema m_data", "$loader"],
  "all on schema marketing_data_service": [
    "warehouse",
    "all on schema marketing_data_service",
    "$loader",
  ],
} as const;

for (const phase of some(["compare", "wait", "lock", "copy"] as const, 2)) {
  Deno.test(`load reports a privilege that is revoked in ${phase}`, async (t) => {
    await using db = await copyLoaded();
    for (const [right, [side, privileges, role]] of Object.entries(RIGHTS)) {
      await t.step(right, async () => {
        const name = role.replace("$loader", db.loader)
          .replace("$reader", db.reader);
        const scene = await changeSource(db);
        await using paused = await pauseLoad(db, { table: LEAD, phase });
        await db[side].unsafe(`revoke ${privileges} from ${name}`);
        paused.resume();
        const outcome = await paused.outcome;
        assert(
          ["exit 0", "exit 1, permission_denied"].includes(sayOutcome(outcome)),
          sayOutcome(outcome) + outcome.log,
        );
        await db[side].unsafe(`grant ${privileges} to ${name}`);
        await settle(db, {
          group: "A privilege revoked during a load",
          fault: `${right}, in ${phase}`,
          scene,
          outcome,
          // Without its schema, the service cannot close a run. The spool has the failure.
          mayHaveDeadRun: right.includes("marketing_data_service"),
        });
      });
    }
  });
}

Deno.test("load reports damaged tables of the history and loads nothing, and succeeds when they are restored", async (t) => {
  await using db = await copyLoaded();
  const damages = {
    "the event table is missing": [
      "alter table marketing_data_service.event rename to gone",
      "alter table marketing_data_service.gone rename to event",
    ],
    "the run table is missing": [
      "alter table marketing_data_service.run rename to gone",
      "alter table marketing_data_service.gone rename to run",
    ],
    "the table of loads is missing": [
      "alter table marketing_data_service.table_load rename to gone",
      "alter table marketing_data_service.gone rename to table_load",
    ],
    "the migration table is missing": [
      "alter table marketing_data_service.migration rename to gone",
      `alter table marketing_data_service.gone rename to migration`,
    ],
    "the migration table is empty": [
      `create table kept as table marketing_data_service.migration;
       delete from marketing_data_service.migration`,
      "insert into marketing_data_service.migration table kept; drop table kept",
    ],
    "the migration table has a newer version": [
      "insert into marketing_data_service.migration values (1000, 'later')",
      "delete from marketing_data_service.migration where version = 1000",
    ],
  };
  for (const [fault, [damage, repair]] of Object.entries(damages)) {
    await t.step(fault, async () => {
      const scene = await changeSource(db);
      await db.warehouse.unsafe(damage!);
      const result = await runJson(["load"], db.environment);
      assert(result.code === 1 || result.code === 78, result.stderr);
      assert(!result.stderr.includes("internal"), result.stderr);
      await db.warehouse.unsafe(repair!);
      await settle(db, {
        group: "Damaged tables of the history",
        fault,
        scene,
        outcome: result,
        mayHaveDeadRun: true,
      });
    });
  }
});
