/**
 * The scene of most tests: both tables are loaded once, and then change in the
 * source.
 *
 * @module
 */
import { assertEquals } from "@std/assert";
import {
  copyDatabases,
  type Databases,
  type DatabasesOptions,
  migratedDatabases,
} from "./databases.ts";
import type { Finished } from "./program.ts";
import * as program from "./program.ts";
import { runProgram } from "./program_here.ts";
import { loadHere, type Outcome, sayOutcome } from "./local_load.ts";
import { IS_UNWANTED } from "../../src/runs/record.ts";
import { IS_MEASURED, measure } from "./measure.ts";
import {
  assertSound,
  type ChangeHint,
  type Content,
  sourceContent,
  targetContent,
  until,
} from "./soundness.ts";

/** The contents of the targets before the fault, and the expected contents after a load. */
interface Scene {
  readonly old: Content;
  readonly new: Content;
}

/** Databases whose targets are loaded. */
export async function loadedDatabases(
  rows = { deals: 60, leads: 300 },
  options: Omit<DatabasesOptions, "rows"> = {},
): Promise<Databases> {
  const db = await migratedDatabases({ ...options, rows });
  const { code, stderr } = await runProgram(["load"], db.environment);
  assertEquals(code, 0, stderr);
  return db;
}

/**
 * Loads databases once before all tests of a file. Returns a function that copies
 * them, which takes a third of the time. The copies share their roles, so it is not
 * for tests that alter roles.
 */
export function loadedOnce(
  rows?: Parameters<typeof loadedDatabases>[0],
): () => Promise<Databases> {
  let loaded: Databases;
  Deno.test.beforeAll(async () => {
    loaded = await loadedDatabases(rows);
    // The sanitizer of a test reports a connection that it did not open itself.
    await loaded.source.end();
    await loaded.warehouse.end();
  });
  Deno.test.afterAll(async () => await loaded[Symbol.asyncDispose]());
  return () => copyDatabases(loaded);
}

let changes = 0;

/** Changes some rows of both source tables, so that the next load copies rows. */
export async function changeSource(db: Databases): Promise<Scene> {
  const mark = `change ${++changes}`;
  await db.source.unsafe(
    `update marketing.closed_deals set has_gtin = '${mark}'
     where ctid in (select ctid from marketing.closed_deals order by random() limit 20);
     update marketing.marketing_qualified_leads set origin = '${mark}'
     where ctid in (select ctid from marketing.marketing_qualified_leads order by random() limit 100);
     with gone as (delete from marketing.marketing_qualified_leads
       where ctid in (select ctid from marketing.marketing_qualified_leads order by random() limit 3) returning *)
     insert into marketing.marketing_qualified_leads
       select md5(mql_id || '${mark}'), first_contact_date, landing_page_id, origin from gone`,
  );
  return { old: await targetContent(db), new: await sourceContent(db) };
}

/**
 * Waits until no caller waits for a queued run. The warehouse can queue a run
 * whose caller loses its connection, and the next load ends that run only after the
 * caller's maximum wait.
 */
async function outwaitCallers(db: Databases): Promise<void> {
  const [exists] = await db.warehouse.unsafe(
    "select to_regclass('marketing_data_service.run') is not null as yes",
  );
  if (!exists!.yes) return;
  await until(async () => {
    const [row] = await db.warehouse.unsafe(
      `select count(*)::int as n from marketing_data_service.run
       where state = 'queued' and wait_until < 'infinity' and not ${IS_UNWANTED}`,
    );
    return row!.n === 0;
  }, () => "a run is queued, and its callers still wait");
}

/** Loads without a fault and checks the result. Returns the duration in seconds. */
export async function recover(db: Databases): Promise<number> {
  await outwaitCallers(db);
  // What is measured for the docs includes the start of a process.
  const run = IS_MEASURED ? program.runProgram : runProgram;
  const started = performance.now();
  const { code, stderr } = await run(["load"], db.environment);
  const seconds = (performance.now() - started) / 1000;
  assertEquals(code, 0, stderr);
  await assertSound(db, {
    contents: [await sourceContent(db)],
    isRecovered: true,
  });
  return seconds;
}

/** Loads without a fault in this process, for long series of tests. Checks the result. */
export async function recoverHere(db: Databases): Promise<void> {
  await outwaitCallers(db);
  const { event, error, log } = await loadHere(db);
  assertEquals(event?.status, "success", error?.line ?? log);
  await assertSound(db, {
    contents: [await sourceContent(db)],
    isRecovered: true,
  });
}

/** A fault, and the load during which it occurred. */
interface Met extends Omit<ChangeHint, "contents"> {
  /** Heading and line of the table in `docs/reliability.md`. */
  readonly group: string;
  readonly fault: string;
  readonly scene: Scene;
  readonly outcome: Outcome | Finished;
  /** Whether the test loads again at once, so that a success needs no other load after it. */
  readonly isFollowed?: boolean;
}

/**
 * Checks the state after a fault: targets are all old or all new, nothing remains,
 * and each run has one end and one event. Then checks that the next load succeeds,
 * unless the load has succeeded and the test loads again. Saves the results for the docs.
 */
export async function settle(db: Databases, met: Met): Promise<void> {
  const { scene, group, fault, outcome, isFollowed, ...expectation } = met;
  const now = await assertSound(db, {
    contents: [scene.old, scene.new],
    ...expectation,
  });
  const hasLoaded = "stdout" in outcome
    ? outcome.code === 0
    : outcome.event?.status === "success";
  if (hasLoaded) assertEquals(now, scene.new, "reported as loaded");
  if (hasLoaded && isFollowed && !IS_MEASURED) return;
  const recoverySeconds = await recover(db);
  measure({
    group,
    fault,
    holds: sayContent(now, scene),
    sees: sayOutcome(outcome),
    recoverySeconds,
  });
}

/** Returns the tables that hold the rows after the change. */
export function newTables(now: Content, scene: Scene): string[] {
  return Object.keys(now).filter((table) => now[table] === scene.new[table]);
}

/** Returns `old`, `new`, or the state of each table. */
function sayContent(now: Content, scene: Scene): string {
  const states = Object.keys(now).map((table) =>
    now[table] === scene.new[table] ? "new" : "old"
  );
  return new Set(states).size === 1
    ? states[0]!
    : Object.keys(now).map((table, i) => `${table} ${states[i]}`).join(", ");
}
