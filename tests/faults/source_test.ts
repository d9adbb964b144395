import { assert, assertEquals } from "@std/assert";
import type { Databases } from "../support/databases.ts";
import { loadHere, pauseLoad, sayOutcome } from "../support/local_load.ts";
import { measure } from "../support/measure.ts";
import {
  changeSource,
  loadedDatabases,
  recover,
} from "../support/fault_scene.ts";
import {
  assertNothingLeft,
  assertOneEndPerRun,
  assertSound,
  until,
} from "../support/soundness.ts";
import { some } from "../support/thorough.ts";

const LEAD = "marketing_qualified_lead";
const LEADS = `marketing.${LEAD}s`;

/** Changes of the source while a load has its snapshot, and the result of the next load. */
const CHANGES = [
  {
    what: "rows changed, deleted and inserted",
    sql: `update ${LEADS} set origin = 'late';
      delete from ${LEADS} where mql_id < '4'; insert into ${LEADS} table backup`,
    next: "exit 0",
  },
  {
    what: "TRUNCATE",
    sql: `truncate ${LEADS}`,
    next: "exit 1, would_shrink",
  },
  {
    what: "a column added",
    sql: `alter table ${LEADS} add column note text default 'x'`,
    next: "exit 0",
  },
  {
    what: "a column dropped",
    sql: `alter table ${LEADS} drop column origin`,
    next: "exit 1, source_column_missing",
  },
  {
    what: "a column retyped",
    sql: `alter table ${LEADS} alter column first_contact_date type text`,
    next: "exit 1, source_column_incompatible",
  },
  {
    what: "the table rewritten",
    sql: `vacuum full ${LEADS}`,
    next: "exit 0",
  },
  {
    what: "the table renamed",
    sql: `alter table ${LEADS} rename to elsewhere`,
    next: "exit 1, source_table_missing",
  },
  {
    what: "the table dropped",
    sql: `drop table ${LEADS}`,
    next: "exit 1, source_table_missing",
  },
] as const;

/** Starts the change. Waits until it is done, or until it waits for the load. */
async function begin(
  db: Databases,
  sql: string,
): Promise<{ finished: Promise<unknown> }> {
  const other = db.connect("source");
  let isOver = false;
  const finished = other.unsafe(sql).then(
    () => {},
  ).finally(async () => {
    isOver = true;
    await other.end({ timeout: 1 });
  });
  finished.catch(() => {});
  await until(async () =>
    isOver ||
    (await db.source.unsafe(
        `select from pg_locks where not granted and mode = 'AccessExclusiveLock'
         and database = (select oid from pg_database where datname = current_database())`,
      )).length > 0
  );
  return { finished };
}

async function restore(db: Databases): Promise<void> {
  await db.source.unsafe(
    `drop table if exists ${LEADS}, marketing.elsewhere;
     create table ${LEADS} (like backup); insert into ${LEADS} table backup;
     grant select on ${LEADS} to ${db.reader}`,
  );
}

for (const phase of some(["copy", "compare", "delete"] as const, 1)) {
  Deno.test(`load reads its snapshot when the source changes before ${phase}`, async (t) => {
    await using db = await loadedDatabases({ deals: 20, leads: 100 });
    await db.source.unsafe(`create table backup as table ${LEADS}`);
    for (const { what, sql, next } of CHANGES) {
      for (const isReaderLost of [false, true]) {
        const fault = `${what}, before ${phase}${
          isReaderLost ? ", and the reader lost" : ""
        }`;
        await t.step(fault, async () => {
          const scene = await changeSource(db);
          await using paused = await pauseLoad(db, { table: LEAD, phase });
          const change = await begin(db, sql);
          if (isReaderLost) paused.network.source.cut();
          paused.resume();
          const outcome = await paused.outcome;
          await change.finished;
          if (!isReaderLost) {
            assertEquals(sayOutcome(outcome), "exit 0", outcome.log);
            await assertSound(db, { contents: [scene.new] });
          } else {
            // A new snapshot shows the change.
            assert(
              ["exit 0", next].includes(sayOutcome(outcome)),
              `${sayOutcome(outcome)} ${outcome.log}`,
            );
            await assertNothingLeft(db);
            await assertOneEndPerRun(db);
          }
          const after = await loadHere(db);
          assertEquals(sayOutcome(after), next, after.log);
          await restore(db);
          measure({
            group: "Changes of the source during a load",
            fault,
            holds: isReaderLost ? "one snapshot" : "the load's snapshot",
            sees: `${sayOutcome(outcome)}; the next load ${sayOutcome(after)}`,
            recoverySeconds: await recover(db),
          });
        });
      }
    }
  });
}
