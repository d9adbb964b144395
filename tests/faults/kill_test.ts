import { assert, assertEquals } from "@std/assert";
import { delay } from "@std/async/delay";
import { startProgram } from "../support/program.ts";
import { runProgram } from "../support/program_here.ts";
import { killUntilEnded, proxied, watchProgram } from "../support/phases.ts";
import { sayOutcome } from "../support/local_load.ts";
import { measure } from "../support/measure.ts";
import {
  changeSource,
  loadedOnce,
  newTables,
  recover,
  settle,
} from "../support/fault_scene.ts";
import {
  assertEnded,
  assertSound,
  targetContent,
  until,
} from "../support/soundness.ts";

const copyLoaded = loadedOnce();
const SLOW = {
  source: { latencyMilliseconds: 60 },
  warehouse: { latencyMilliseconds: 60 },
};
const PHASES = ["lock", "compare", "delete", "copy", "verify", "wait"] as const;
const LEAD = "marketing_qualified_lead";

for (const signal of ["SIGKILL", "SIGTERM"] as const) {
  Deno.test(`${signal} in each phase leaves each table whole, and the next load succeeds`, async (t) => {
    await using db = await copyLoaded();
    for (const phase of PHASES) {
      await t.step(phase, async () => {
        const scene = await changeSource(db);
        await using network = proxied(db, SLOW);
        await using other = db.connect("warehouse");
        await other.unsafe("begin");
        // The run continues after the commit of the other table.
        if (phase === "wait") {
          await other.unsafe(
            "lock table m_data.closed_deal in row exclusive mode",
          );
        }
        const program = watchProgram(["load"], network.environment);
        await program.reaches(`${LEAD}: ${phase}`);
        program.kill(signal);
        const finished = await program.finished;
        assertEnded(finished, signal === "SIGKILL" ? 137 : 143);
        await other.unsafe("commit");
        // The other table is old or new, because it commits separately.
        if (phase !== "wait") {
          assertEquals((await targetContent(db))[LEAD], scene.old[LEAD]);
        }
        if (signal === "SIGTERM") {
          const [run] = await db.warehouse.unsafe(
            "select state from marketing_data_service.run order by seq desc limit 1",
          );
          assertEquals(run!.state, "interrupted");
        }
        await settle(db, {
          group: `${signal} to the process`,
          fault: `in ${phase}`,
          scene,
          outcome: finished,
          mayHaveDeadRun: signal === "SIGKILL",
        });
      });
    }
  });

  Deno.test(`${signal} while the load waits for the service's lock`, async () => {
    await using db = await copyLoaded();
    const scene = await changeSource(db);
    await using other = db.connect("warehouse");
    await other.unsafe(
      "begin; lock table marketing_data_service.load_lock in exclusive mode",
    );
    const program = watchProgram(["load"], {
      ...db.environment,
      LOCK_TIMEOUT: "2",
    });
    await until(async () =>
      (await db.warehouse.unsafe(
        "select 1 from pg_locks where relation = 'marketing_data_service.load_lock'::regclass and not granted and database = (select oid from pg_database where datname = current_database())",
      )).length > 0
    );
    program.kill(signal);
    const finished = await program.finished;
    assertEnded(finished, signal === "SIGKILL" ? 137 : 143);
    await other.unsafe("commit");
    assertEquals(await targetContent(db), scene.old);
    // A caller with the same request joins the run of the dead process.
    await settle(db, {
      group: `${signal} to the process`,
      fault: "while the load waits for the service's lock",
      scene,
      outcome: finished,
      mayHaveDeadRun: true,
    });
  });
}

Deno.test("the event names the committed table after kill -9 between the two commits", async () => {
  await using db = await copyLoaded();
  const scene = await changeSource(db);
  await using other = db.connect("warehouse");
  // The row that numbers events. Only the last commit needs it.
  await other.unsafe(
    "begin; select from marketing_data_service.event_order for update",
  );
  const program = watchProgram(["load"], db.environment);
  await until(async () => newTables(await targetContent(db), scene).length > 0);
  program.kill("SIGKILL");
  const outcome = await program.finished;
  await other.unsafe("commit");
  const loaded = newTables(await targetContent(db), scene);
  assertEquals(loaded.length, 1);
  await settle(db, {
    group: "SIGKILL to the process",
    fault: "between the two commits",
    scene,
    outcome,
    mayHaveDeadRun: true,
  });
  const [row] = await db.warehouse.unsafe(
    `select payload::text from marketing_data_service.event join marketing_data_service.run on run.id = run_id
     where state = 'interrupted'`,
  );
  assert(
    JSON.parse(row!.payload).error.includes(
      `Loaded successfully: ${loaded[0]}.`,
    ),
  );
});

Deno.test("the event reports the outcome of a COMMIT that continues after kill -9", async () => {
  await using db = await copyLoaded();
  // The closed deals are equal, so this trigger fires only at the commit.
  await db.source.unsafe(
    "update marketing.marketing_qualified_leads set origin = 'new'",
  );
  await db.warehouse.unsafe(
    `create function slow_commit() returns trigger language plpgsql as
       $$ begin perform pg_sleep(3); return null; end $$;
     create constraint trigger slow after insert on marketing_data_service.table_load
       deferrable initially deferred for each row when (new.table_name = 'closed_deal' and new.state = 'succeeded')
       execute function slow_commit()`,
  );
  const program = watchProgram(["load"], db.environment);
  await until(async () =>
    (await db.warehouse.unsafe(
      "select 1 from pg_stat_activity where trim(query) = 'commit' and state = 'active' and datname = current_database()",
    )).length > 0
  );
  program.kill("SIGKILL");
  const outcome = await program.finished;
  // At once, because the server still commits for the dead process.
  const next = await runProgram(["load"], db.environment);
  assertEnded(next, 0);
  measure({
    group: "SIGKILL to the process",
    fault: "in a COMMIT of 3 s that continues",
    holds: "new",
    sees: sayOutcome(outcome),
    recoverySeconds: await recover(db),
  });
});

Deno.test("the next load delivers the event after kill -9 between commit and delivery", async () => {
  await using db = await copyLoaded();
  const folder = await Deno.makeTempDir();
  const file = `${folder}/events.jsonl`;
  const environment = {
    ...db.environment,
    EVENT_PUBLISHER_TYPE: "file",
    EVENT_FILE: file,
  };
  // The file does not have the event of the first load. The mark of its delivery must wait.
  await using other = db.connect("warehouse");
  await other.unsafe(
    "begin; select 1 from marketing_data_service.event for update",
  );
  const scene = await changeSource(db);
  const program = watchProgram(["load"], environment);
  await until(async () =>
    JSON.stringify(await targetContent(db)) === JSON.stringify(scene.new)
  );
  await until(async () => (await Deno.readTextFile(file)).length > 0);
  program.kill("SIGKILL");
  await program.finished;
  await other.unsafe("commit");
  await assertSound(db, { contents: [scene.new] });
  const started = performance.now();
  assertEnded(await runProgram(["load"], environment), 0);
  measure({
    group: "SIGKILL to the process",
    fault: "after the commit and before the delivery to the event file",
    holds: "new",
    sees: "exit 137",
    recoverySeconds: (performance.now() - started) / 1000,
  });
  const ids = (await Deno.readTextFile(file)).trimEnd().split("\n")
    .map((line) => JSON.parse(line).event_id);
  const stored = await db.warehouse.unsafe(
    "select event_id::text as id from marketing_data_service.event order by seq",
  );
  assertEquals([...new Set(ids)], stored.map((row) => row.id));
  await Deno.remove(folder, { recursive: true });
});

Deno.test("a second SIGTERM after more than a second ends the process at once", async () => {
  await using db = await copyLoaded();
  const scene = await changeSource(db);
  await using network = proxied(db, SLOW);
  const program = watchProgram(["load"], network.environment);
  await program.reaches("closed_deal: lock");
  // The orderly stop waits for this lock.
  await using other = db.connect("warehouse");
  await other.unsafe(
    "begin; lock table marketing_data_service.run in share mode",
  );
  const outcome = await killUntilEnded(program, "SIGTERM");
  assertEnded(outcome, 143);
  const [run] = await db.warehouse.unsafe(
    "select state from marketing_data_service.run order by seq desc limit 1",
  );
  assertEquals(run!.state, "running");
  await other.unsafe("rollback");
  await settle(db, {
    group: "SIGTERM to the process",
    fault: "again after more than a second",
    scene,
    outcome,
    mayHaveDeadRun: true,
  });
});

Deno.test("SIGTERM ends verify with 143, and its message speaks of no load", async () => {
  await using db = await copyLoaded();
  await using other = db.connect("source");
  await other.unsafe(
    "begin; lock table marketing.closed_deals in access exclusive mode",
  );
  const { process, finished } = startProgram(["verify"], db.environment);
  await until(async () =>
    (await db.source.unsafe(
      `select from pg_locks where not granted and database =
         (select oid from pg_database where datname = current_database())`,
    )).length > 0
  );
  process.kill("SIGTERM");
  const { code, stderr } = await finished;
  assertEquals(code, 143, stderr);
  assertEquals(
    stderr,
    "The process was ended by SIGTERM. Repeat the load, or the command that was stopped.\n",
  );
});

for (const signal of ["SIGHUP", "SIGINT", "SIGTERM"] as const) {
  Deno.test(`load counts several ${signal} within a second as one, and stops in order`, async () => {
    await using db = await copyLoaded();
    const scene = await changeSource(db);
    await using network = proxied(db, SLOW);
    const program = watchProgram(["load"], network.environment);
    await program.reaches("closed_deal: lock");
    // With a pause, because the kernel merges two pending signals.
    for (let n = 0; n < 3; n++) {
      program.kill(signal);
      await delay(20);
    }
    const outcome = await program.finished;
    assertEnded(outcome, { SIGHUP: 129, SIGINT: 130, SIGTERM: 143 }[signal]);
    const [run] = await db.warehouse.unsafe(
      "select state, code from marketing_data_service.run order by seq desc limit 1",
    );
    assertEquals([run!.state, run!.code], ["interrupted", "terminated"]);
    await settle(db, {
      group: `${signal} to the process`,
      fault: "three times within a second",
      scene,
      outcome,
    });
  });
}
