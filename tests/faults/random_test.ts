import { assert, assertEquals } from "@std/assert";
import { ServiceError } from "../../src/errors.ts";
import type { Phase } from "../../src/sync/progress.ts";
import { namesOf } from "../../src/tables/declaration.ts";
import { MARKETING_TABLES } from "../../src/tables/marketing.ts";
import type { Databases } from "../support/databases.ts";
import {
  type Outcome,
  type PausedLoad,
  pauseLoad,
  sayOutcome,
  startLoad,
} from "../support/local_load.ts";
import { proxied, watchProgram } from "../support/phases.ts";
import { Random } from "../support/random.ts";
import {
  loadedDatabases,
  recover,
  recoverHere,
} from "../support/fault_scene.ts";
import {
  assertSound,
  type Content,
  sourceContent,
  targetContent,
} from "../support/soundness.ts";

/** The number of loads and the seed of the choices. Both are printed. */
const LOADS = Number(Deno.env.get("FAULTS_LOADS") ?? 200);
const SEED = Number(
  Deno.env.get("FAULTS_SEED") ?? crypto.getRandomValues(new Uint32Array(1))[0],
);

const SIDES = ["source", "warehouse"] as const;
const DIRECTIONS = [["up"], ["down"], ["up", "down"]] as const;
const PHASES: readonly Phase[] = [
  "lock",
  "compare",
  "delete",
  "copy",
  "verify",
  "wait",
];
const LEADS = "marketing.marketing_qualified_leads";
const DEALS = "marketing.closed_deals";

/** Changes of the source that a load must copy, or that do not affect it. */
const CHANGES = [
  `update ${LEADS} set origin = $mark where mql_id < $digit`,
  `update ${DEALS} set has_gtin = $mark where mql_id > $digit`,
  `delete from ${LEADS} where mql_id like $digit || '%'`,
  `delete from ${DEALS} where seller_id like $digit || '%'`,
  `insert into ${LEADS} select md5(random()::text), current_date, md5($mark), $mark from generate_series(1, 20)`,
  `insert into ${DEALS} select * from ${DEALS} limit 5`,
  `update ${DEALS} set declared_monthly_revenue = -0.0 where mql_id < $digit`,
  `update ${LEADS} set origin = null where mql_id > $digit`,
  `truncate ${LEADS}; insert into ${LEADS} select md5(n::text), null, md5($mark), null from generate_series(1, 60) n`,
  `alter table ${LEADS} add column if not exists note text default $mark`,
  `alter table ${LEADS} drop column if exists note`,
  `create index if not exists by_origin on ${LEADS} (origin)`,
  `cluster ${DEALS} using deals_by_id`,
  `analyze ${LEADS}`,
  "select 1",
];

/** Changes of the targets by others, which a load must repair. */
const TAMPERINGS = [
  "delete from m_data.closed_deal where mql_id < $digit",
  "insert into m_data.marketing_qualified_lead select * from m_data.marketing_qualified_lead limit 3",
  "update m_data.closed_deal set sr_id = $mark where mql_id > $digit",
  "truncate m_data.marketing_qualified_lead",
  "drop table m_data.closed_deal",
];

/** A fault while a load is paused. */
type Fault = (
  random: Random,
  paused: PausedLoad,
  db: Databases,
) => Promise<void> | void;

const FAULTS: Readonly<Record<string, Fault>> = {
  "the network cut"(random, { network }) {
    network[random.pick(SIDES)].cut();
  },
  "both networks cut"(_, { network }) {
    for (const side of SIDES) network[side].cut();
  },
  "the network stalled"(random, { network }) {
    network[random.pick(SIDES)].freeze(random.pick(DIRECTIONS));
  },
  async "backends ended"(random, _, db) {
    const sql = db[random.pick(SIDES)];
    await sql.unsafe(
      `select pg_terminate_backend(pid, 5000) from pg_stat_activity
       where datname = current_database() and application_name like 'marketing-data-service%'
         and ('x' || substr(md5(pid || '${random.next()}'), 1, 1))::bit(4)::int < 8`,
    );
  },
  async "backends cancelled"(random, _, db) {
    const sql = db[random.pick(SIDES)];
    await sql.unsafe(
      `select pg_cancel_backend(pid) from pg_stat_activity
       where datname = current_database() and application_name like 'marketing-data-service%'`,
    );
  },
  "asked to stop"(_, paused) {
    paused.abort(new ServiceError("terminated", "The load was ended"));
  },
  async "the source changed"(random, _, db) {
    await change(random, db, CHANGES.slice(0, 8));
  },
  "slow"(random, { network }) {
    network[random.pick(SIDES)].faults = { latencyMilliseconds: 2 };
  },
  "nothing"() {},
};

async function change(
  random: Random,
  db: Databases,
  menu: readonly string[],
  side: "source" | "warehouse" = "source",
): Promise<string> {
  const sql = random.pick(menu)
    .replaceAll("$mark", `'mark ${random.below(1e6)}'`)
    .replaceAll("$digit", `'${random.below(10)}'`);
  try {
    await db[side].unsafe(sql);
  } catch (error) {
    // A target that was dropped and not yet created again.
    if ((error as { code?: string }).code !== "42P01") throw error;
  }
  return sql;
}

/** The result of one load, and the allowed contents of the targets. */
interface Step {
  readonly outcome: Outcome | undefined;
  /** The contents of the source at the times at which the load may have read it. */
  readonly wanted: readonly Content[];
  readonly mayHaveDeadRun: boolean;
}

/** Loads with a fault in a phase, if the load reaches the phase. */
async function meetInPhase(
  random: Random,
  db: Databases,
  settings: Record<string, string>,
  say: (what: string) => void,
): Promise<Step> {
  const moment = {
    table: random.pick(namesOf(MARKETING_TABLES)),
    phase: random.pick(PHASES),
  };
  const name = random.pick(Object.keys(FAULTS));
  say(`${name} in ${moment.table}: ${moment.phase}`);
  const before = await sourceContent(db);
  let paused: PausedLoad;
  try {
    // The load does not reach the phase, such as the copy of equal tables.
    paused = await pauseLoad(db, moment, settings);
  } catch (error) {
    say(`not met: ${(error as Error).message.split(" ", 5).join(" ")}`);
    return { outcome: undefined, wanted: [before], mayHaveDeadRun: false };
  }
  await using _ = paused;
  await FAULTS[name]!(random, paused, db);
  paused.resume();
  const outcome = await paused.outcome;
  await paused.network[Symbol.asyncDispose]();
  return {
    outcome,
    wanted: [before, await sourceContent(db)],
    mayHaveDeadRun: outcome.error !== undefined,
  };
}

/** Loads with a network that is cut or stalls after some bytes. */
async function cutAfterBytes(
  random: Random,
  db: Databases,
  settings: Record<string, string>,
  say: (what: string) => void,
): Promise<Step> {
  const side = random.pick(SIDES);
  const bytes = random.below(60_000);
  const isHalfOpen = random.chance(0.3);
  say(`${side} cut after ${bytes} bytes${isHalfOpen ? ", half open" : ""}`);
  const network = proxied(db, { [side]: { cutAfterBytes: bytes, isHalfOpen } });
  const outcome = await startLoad(network, settings).outcome;
  await network[Symbol.asyncDispose]();
  return {
    outcome,
    wanted: [await sourceContent(db)],
    mayHaveDeadRun: outcome.error !== undefined,
  };
}

/** Loads in a process that gets a signal after some output. */
async function signalProcess(
  random: Random,
  db: Databases,
  settings: Record<string, string>,
  say: (what: string) => void,
): Promise<Step> {
  const signal = random.pick(["SIGKILL", "SIGTERM", "SIGINT"] as const);
  const text = random.pick(["begins", ...PHASES.map((phase) => `: ${phase}`)]);
  say(`${signal} at "${text}"`);
  // With giveUpAfter, only the signal must decide the end.
  const program = watchProgram(["load"], {
    ...db.environment,
    ...settings,
    STALL_TIMEOUT: "60",
    CONNECT_TIMEOUT: "30",
    RETRY_ATTEMPTS: "3",
  });
  const reached = program.reaches(text).then(() => {
    try {
      program.kill(signal);
    } catch {
      // The process has ended.
    }
  }, () => {});
  const { code } = await program.finished;
  await reached;
  const expected = { SIGKILL: 137, SIGTERM: 143, SIGINT: 130 }[signal];
  assert([0, expected].includes(code), `exit ${code}`);
  return {
    outcome: undefined,
    wanted: [await sourceContent(db)],
    mayHaveDeadRun: true,
  };
}

/** Loads while another session locks a target, and may give up. */
async function lockTarget(
  random: Random,
  db: Databases,
  settings: Record<string, string>,
  say: (what: string) => void,
): Promise<Step> {
  const mode = random.pick(["row exclusive", "access exclusive"]);
  say(`a target locked in ${mode} mode`);
  await using other = db.connect("warehouse");
  await other.unsafe(
    `begin; create schema if not exists m_data;
     create table if not exists m_data.closed_deal ();
     lock table m_data.closed_deal in ${mode} mode`,
  );
  const outcome = await startLoad(db, {
    ...settings,
    LOCK_TIMEOUT: random.pick(["0.1", "0.2"]),
  }).outcome;
  await other.unsafe("rollback");
  return { outcome, wanted: [await sourceContent(db)], mayHaveDeadRun: false };
}

Deno.test(`${LOADS} loads with random faults and changes, FAULTS_SEED=${SEED}`, async () => {
  const random = new Random(SEED);
  await using db = await loadedDatabases({ deals: 60, leads: 150 });
  await db.source.unsafe(`create index deals_by_id on ${DEALS} (mql_id)`);
  const story: string[] = [];
  const outcomes = new Map<string, number>();
  try {
    for (let load = 1; load <= LOADS; load++) {
      const note = (what: string) => story.push(`${load}: ${what}`);
      for (let n = random.below(3); n > 0; n--) {
        note(await change(random, db, CHANGES));
      }
      if (random.chance(0.15)) {
        note(await change(random, db, TAMPERINGS, "warehouse"));
      }
      const settings: Record<string, string> = {
        RETRY_ATTEMPTS: random.pick(["1", "3"]),
        RETRY_DELAY: "0.01",
        STALL_TIMEOUT: "0.5",
        CONNECT_TIMEOUT: "1",
        LOAD_MODE: random.pick(["auto", "auto", "full"]),
        LOAD_ATOMIC: random.pick(["false", "true"]),
        VERIFY: random.pick(["content", "content", "count"]),
        MAX_PARALLEL_TASKS: random.pick(["1", "5"]),
        // The changes of the source are intended.
        MAX_SHRINK: "1",
      };
      note(JSON.stringify(settings));
      const old = await targetContent(db);
      const kind = random.chance(0.05) ? signalProcess : random.pick([
        meetInPhase,
        meetInPhase,
        meetInPhase,
        cutAfterBytes,
        cutAfterBytes,
        lockTarget,
      ]);
      const { outcome, wanted, mayHaveDeadRun } = await kind(
        random,
        db,
        settings,
        note,
      );
      const end = outcome ? sayOutcome(outcome) : "no outcome";
      note(end);
      outcomes.set(end, (outcomes.get(end) ?? 0) + 1);
      assert(!end.includes("internal"), outcome?.log);
      await assertSound(db, {
        contents: outcome?.event?.status === "success"
          ? wanted
          : [old, ...wanted],
        isAtomic: settings.LOAD_ATOMIC === "true",
        mayHaveDeadRun,
      });
      if (random.chance(0.3)) await recoverHere(db);
    }
    await recover(db);
    assertEquals(await targetContent(db), await sourceContent(db));
  } catch (error) {
    throw new Error(
      `with FAULTS_SEED=${SEED}, after:\n${story.slice(-14).join("\n")}`,
      { cause: error },
    );
  } finally {
    const counts = [...outcomes].map(([end, n]) => `${n} × ${end}`).join("; ");
    Deno.stderr.writeSync(
      new TextEncoder().encode(`FAULTS_SEED=${SEED}: ${counts}\n`),
    );
  }
});
