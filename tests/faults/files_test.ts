import {
  assert,
  assertEquals,
  assertMatch,
  assertStringIncludes,
} from "@std/assert";
import { runJson } from "../support/program_here.ts";
import { appendLine } from "../../src/append_file.ts";
import { drainSpool, spoolFailure } from "../../src/runs/spool.ts";
import { startLoad } from "../support/local_load.ts";
import { watchProgram } from "../support/phases.ts";
import {
  changeSource,
  loadedDatabases,
  newTables,
  settle,
} from "../support/fault_scene.ts";
import { mountDisk } from "../support/small_disk.ts";
import {
  assertEnded,
  assertOneEndPerRun,
  until,
} from "../support/soundness.ts";
import { contextOf, type Databases } from "../support/databases.ts";
import { namesOf } from "../../src/tables/declaration.ts";
import { MARKETING_TABLES } from "../../src/tables/marketing.ts";
import { failedEvent } from "../../src/runs/event.ts";

const FILE = "The event file (`EVENT_PUBLISHER_TYPE=file`)";
const SPOOL = "The spool";

async function eventIds(db: Databases): Promise<string[]> {
  const rows = await db.warehouse.unsafe(
    "select event_id::text as id from marketing_data_service.event order by seq",
  );
  return rows.map((row) => row.id);
}

/** Returns the events of a file. Every line must be complete. */
async function idsInFile(path: string): Promise<string[]> {
  const lines = (await Deno.readTextFile(path)).split("\n");
  assertEquals(lines.pop(), "", "the last line is torn");
  return lines.map((line) => JSON.parse(line).event_id);
}

Deno.test("load succeeds when the event file is damaged, and the event is written later", async (t) => {
  await using db = await loadedDatabases({ deals: 5, leads: 5 });
  const folder = await Deno.makeTempDir();
  const file = `${folder}/events.jsonl`;
  const environment = {
    ...db.environment,
    EVENT_PUBLISHER_TYPE: "file",
    EVENT_FILE: file,
  };
  const load = (changes = {}) =>
    runJson(["load"], { ...environment, ...changes });

  await t.step("a folder in its place", async () => {
    const scene = await changeSource(db);
    await Deno.mkdir(file);
    const outcome = await load();
    assertEnded(outcome, 78, /Cannot write to the event file/);
    await Deno.remove(file);
    await settle(db, {
      group: FILE,
      fault: "a folder in its place, before the load",
      scene,
      outcome,
    });
  });

  await t.step("removed: created again for undelivered events", async () => {
    assertEnded(await load(), 0);
    await Deno.remove(file);
    const scene = await changeSource(db);
    const outcome = await load();
    assertEnded(outcome, 0);
    assertEquals(await idsInFile(file), (await eventIds(db)).slice(-1));
    await settle(db, { group: FILE, fault: "removed", scene, outcome });
  });

  await t.step("torn: the torn line is removed", async () => {
    const text = await Deno.readTextFile(file);
    await Deno.writeTextFile(file, `${text}{"event_type": "marketing-da`);
    const scene = await changeSource(db);
    const outcome = await load();
    assertEnded(outcome, 0);
    assertEquals((await idsInFile(file)).at(-1), (await eventIds(db)).at(-1));
    await settle(db, { group: FILE, fault: "torn", scene, outcome });
  });

  await t.step("full, and read-only", async () => {
    await using disk = await mountDisk("a full disk for the event file", 8);
    if (!disk) return;
    const full = `${disk.path}/events.jsonl`;
    const before = (await eventIds(db)).length;
    await db.warehouse.unsafe(
      `update marketing_data_service.publisher
       set cursor = (select max(seq) from marketing_data_service.event)`,
    );
    // Events of some kilobytes. The next ones do not fit.
    let scene = await changeSource(db);
    let outcome = await load({ EVENT_FILE: full });
    for (
      let n = 0;
      n < 20 && !outcome.stderr.includes("Cannot deliver event");
      n++
    ) {
      scene = await changeSource(db);
      outcome = await load({ EVENT_FILE: full });
      assertEnded(outcome, 0);
    }
    assertMatch(outcome.stderr, /Cannot deliver event \S+ to the event file/);
    // The file does not keep the line that did not fit.
    await idsInFile(full);
    await settle(db, { group: FILE, fault: "full", scene, outcome });

    await disk.remount("ro");
    scene = await changeSource(db);
    outcome = await load({ EVENT_FILE: full });
    assertEnded(outcome, 78, /Cannot write to the event file/);
    await settle(db, {
      group: FILE,
      fault: "on a read-only file system, before the load",
      scene,
      outcome,
    });
    await disk.remount("rw");

    // As if an operator moved the file to another disk.
    await Deno.copyFile(full, file);
    await db.warehouse.unsafe(
      "update marketing_data_service.publisher set next_attempt_at = null",
    );
    assertEnded(await load(), 0);
    assertEquals(await idsInFile(file), (await eventIds(db)).slice(before));
  });
  await Deno.remove(folder, { recursive: true });
});

Deno.test("appendLine() loses no line when several processes append at once", async () => {
  const path = await Deno.makeTempFile();
  const lines = Array.from({ length: 300 }, (_, n) => JSON.stringify({ n }));
  // Each writer opens the file, like a separate process.
  const file = { path, label: "event file", variable: "EVENT_FILE" };
  await Promise.all(lines.map((line) => appendLine(file, line, "cut")));
  const written = (await Deno.readTextFile(path)).trimEnd().split("\n");
  assertEquals(written.toSorted(), lines.toSorted());
  await Deno.remove(path);
});

/** A failure in the form of the spool. */
function someFailure() {
  const run = {
    id: crypto.randomUUID(),
    trigger: "cli",
    tables: namesOf(MARKETING_TABLES),
    mode: "auto",
    atomic: false,
    recreate: false,
    allowShrink: false,
  } as const;
  const entries = namesOf(MARKETING_TABLES).map((table) => ({
    table,
    status: "failure",
    error: "away",
    code: "connection_failed",
    attempts: 1,
  } as const));
  const event = failedEvent(
    {
      runId: run.id,
      trigger: run.trigger,
      timestamp: "2026-01-01T00:00:00.000000",
      sourceSnapshotAt: null,
    },
    "away",
    entries,
  );
  return { run, event, code: "connection_failed" } as const;
}

Deno.test("a failure spooled while the spool is drained is not lost, and a stop is recorded as interrupted", async () => {
  await using db = await loadedDatabases({ deals: 5, leads: 5 });
  await using context = contextOf(db);
  const spool = context.config.eventSpoolFile;
  const failures = Array.from({ length: 40 }, someFailure);
  const drain = () => drainSpool(context.warehouse, spool, context.log);
  await Promise.all([
    ...failures.map((failure) => spoolFailure(spool, failure)),
    ...[1, 2, 3].map(drain),
  ]);
  await drain();
  const rows = await db.warehouse.unsafe(
    `select id::text from marketing_data_service.run where state = 'failed'`,
  );
  assertEquals(
    rows.map((row) => row.id).toSorted(),
    failures.map(({ run }) => run.id).toSorted(),
  );
  const stopped = someFailure();
  await spoolFailure(spool, { ...stopped, code: "terminated" });
  await drain();
  const [row] = await db.warehouse.unsafe(
    `select state, code from marketing_data_service.run where id = '${stopped.run.id}'`,
  );
  assertEquals([row?.state, row?.code], ["interrupted", "terminated"]);
  await assertOneEndPerRun(db);
});

Deno.test("load succeeds with a damaged spool", async (t) => {
  await using db = await loadedDatabases({ deals: 5, leads: 5 });
  const path = db.environment.EVENT_SPOOL_FILE!;
  const failure = someFailure();
  const line = JSON.stringify(failure);
  const strange = JSON.stringify({
    ...failure,
    run: { ...failure.run, id: "x" },
    event: { ...failure.event, run_id: "x" },
  });
  const cases: Record<string, () => Promise<void>> = {
    "invalid lines before a valid one": () =>
      Deno.writeTextFile(
        path,
        `null\n{}\n"x"\n${strange}\n\u0000\n${line.slice(0, 50)}\n${line}\n`,
      ),
    "torn at the end": () => Deno.writeTextFile(path, line.slice(0, -20)),
  };
  for (const [fault, damage] of Object.entries(cases)) {
    await t.step(fault, async () => {
      await damage();
      const scene = await changeSource(db);
      const outcome = await runJson(["load"], db.environment);
      assertEnded(outcome, 0);
      await settle(db, { group: SPOOL, fault, scene, outcome });
      await Deno.remove(path, { recursive: true });
    });
  }
  const [row] = await db.warehouse.unsafe(
    `select state from marketing_data_service.run where id = '${failure.run.id}'`,
  );
  assertEquals(row?.state, "failed");
});

Deno.test("load refuses a folder in place of the spool before it begins", async () => {
  await using db = await loadedDatabases({ deals: 5, leads: 5 });
  const path = db.environment.EVENT_SPOOL_FILE!;
  await Deno.mkdir(path);
  const scene = await changeSource(db);
  const outcome = await runJson(["load"], db.environment);
  assertEnded(outcome, 78, /Cannot write to the spool/);
  await Deno.remove(path);
  await settle(db, {
    group: SPOOL,
    fault: "a folder in its place",
    scene,
    outcome,
  });
});

Deno.test("load logs a failure that neither the warehouse nor the spool can store", async () => {
  await using db = await loadedDatabases({ deals: 5, leads: 5 });
  const path = db.environment.EVENT_SPOOL_FILE!;
  const scene = await changeSource(db);
  const program = watchProgram(["load"], {
    ...db.environment,
    DWH_DB_PORT: "1",
    RETRY_ATTEMPTS: "2",
  });
  await program.reaches("a transient failure");
  await Deno.mkdir(path);
  const outcome = await program.finished;
  assertEnded(outcome, 69, /Cannot record the failure/);
  await Deno.remove(path);
  await settle(db, {
    group: SPOOL,
    fault: "unwritable while the warehouse is unreachable",
    scene,
    outcome,
  });
});

Deno.test("each failure of the spool is recorded once when a process is killed and two others drain it", async () => {
  await using db = await loadedDatabases({ deals: 5, leads: 5 });
  const path = db.environment.EVENT_SPOOL_FILE!;
  const failures = [someFailure(), someFailure(), someFailure()];
  for (const failure of failures) await spoolFailure(path, failure);
  const scene = await changeSource(db);
  await using other = db.connect("warehouse");
  // The row that numbers events: the drain stops at its first event.
  await other.unsafe(
    "begin; select from marketing_data_service.event_order for update",
  );
  const program = watchProgram(["load", "--json"], db.environment);
  await until(async () =>
    (await db.warehouse.unsafe(
      `select from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()`,
    )).length > 0
  );
  program.kill("SIGKILL");
  const outcome = await program.finished;
  await other.unsafe("commit");
  const both = await Promise.all([
    startLoad(db).outcome,
    startLoad(db).outcome,
  ]);
  for (const { event } of both) assertEquals(event?.status, "success");
  const rows = await db.warehouse.unsafe(
    `select run.id::text, count(event.seq)::int as events
     from marketing_data_service.run left join marketing_data_service.event on run_id = run.id
     where state = 'failed' group by run.id`,
  );
  assertEquals(
    rows.map((row) => [row.id, row.events]).toSorted(),
    failures.map(({ run }) => [run.id, 1]).toSorted(),
  );
  assert(!(await Deno.readTextFile(path)).includes("run"));
  await settle(db, {
    group: SPOOL,
    fault: "kill -9 while it is drained, then two loads at once",
    scene: { ...scene, old: scene.new },
    outcome,
  });
});

Deno.test("the spooled failure names the first committed table when the warehouse is lost before the second commit", async () => {
  await using db = await loadedDatabases({ deals: 20, leads: 60 });
  const { proxied } = await import("../support/phases.ts");
  const { targetContent } = await import("../support/soundness.ts");
  const scene = await changeSource(db);
  const network = proxied(db);
  await using other = db.connect("warehouse");
  // Only the last commit waits for this row.
  await other.unsafe(
    "begin; select from marketing_data_service.event_order for update",
  );
  const running = startLoad(network, { RETRY_ATTEMPTS: "1" });
  await until(async () => newTables(await targetContent(db), scene).length > 0);
  const [loaded] = newTables(await targetContent(db), scene);
  network.warehouse.faults = { accept: "close" };
  network.warehouse.cut();
  const outcome = await running.outcome;
  assert(outcome.error, "it ended with an event");
  await network[Symbol.asyncDispose]();
  await other.unsafe("commit");
  await settle(db, {
    group: "The warehouse lost before the second commit",
    fault: "gone between the two commits",
    scene,
    outcome,
    mayHaveDeadRun: true,
  });
  const [row] = await db.warehouse.unsafe(
    `select payload::text from marketing_data_service.event join marketing_data_service.run on run.id = run_id
     where state = 'failed'`,
  );
  assertStringIncludes(
    JSON.parse(row!.payload).error,
    `Loaded successfully: ${loaded}.`,
  );
});
