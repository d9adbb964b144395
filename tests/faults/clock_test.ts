import { assert, assertEquals } from "@std/assert";
import { FAKETIME, testWith } from "../support/debian.ts";
import { runJson } from "../support/program.ts";
import { watchProgram } from "../support/phases.ts";
import {
  changeSource,
  loadedDatabases,
  settle,
} from "../support/fault_scene.ts";
import { assertEnded, until } from "../support/soundness.ts";

const GROUP = "The clock of the program's host";

testWith(
  [FAKETIME],
  "load depends on the clock of the databases, not on that of the host",
  async (t) => {
    await using db = await loadedDatabases({ deals: 5, leads: 20 });
    const fake = { LD_PRELOAD: FAKETIME, DONT_FAKE_MONOTONIC: "1" };
    const assertTimes = async () => {
      const [row] = await db.warehouse.unsafe(
        `select bool_and(least(requested_at, started_at, finished_at) > clock_timestamp() - interval '5 min'
         and greatest(requested_at, started_at, finished_at) <= clock_timestamp()
         and (payload ->> 'timestamp')::timestamp at time zone 'UTC' between requested_at and finished_at) as right
       from marketing_data_service.run join marketing_data_service.event on run_id = run.id`,
      );
      assert(row!.right, "a time is not the database's");
    };

    for (const offset of ["-400d", "-3h", "+3h", "+400d"]) {
      await t.step(`off by ${offset}`, async () => {
        const scene = await changeSource(db);
        const outcome = await runJson(["load"], {
          ...db.environment,
          ...fake,
          FAKETIME: offset,
        });
        assertEnded(outcome, 0);
        await assertTimes();
        await settle(db, {
          group: GROUP,
          fault: `off by ${offset}`,
          scene,
          outcome,
        });
      });
    }

    for (const [from, to] of [["+0", "-1d"], ["+0", "+1d"]] as const) {
      await t.step(
        `set by ${to} while the load waits for a table`,
        async () => {
          const file = await Deno.makeTempFile();
          await Deno.writeTextFile(file, from);
          const scene = await changeSource(db);
          await using other = db.connect("warehouse");
          await other.unsafe(
            "begin; lock table m_data.closed_deal in row exclusive mode",
          );
          const program = watchProgram(["load", "--json"], {
            ...db.environment,
            ...fake,
            LOCK_TIMEOUT: "60",
            FAKETIME_TIMESTAMP_FILE: file,
            FAKETIME_NO_CACHE: "1",
          });
          await until(async () =>
            (await db.warehouse.unsafe(
              "select from pg_locks where not granted and relation = 'm_data.closed_deal'::regclass",
            )).length > 0
          );
          await Deno.writeTextFile(file, to);
          await other.unsafe("rollback");
          const outcome = await program.finished;
          assertEnded(outcome, 0);
          assertEquals(JSON.parse(outcome.stdout).status, "success");
          await assertTimes();
          await settle(db, {
            group: GROUP,
            fault: `set by ${to} during the load`,
            scene,
            outcome,
          });
          await Deno.remove(file);
        },
      );
    }
  },
);
