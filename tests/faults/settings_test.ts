import { assertEquals } from "@std/assert";
import { Session } from "../../src/postgres/session.ts";
import { configOf, createDatabases } from "../support/databases.ts";
import {
  duringLoad,
  loadHere,
  sayOutcome,
  startLoad,
} from "../support/local_load.ts";
import { watchProgram } from "../support/phases.ts";
import {
  changeSource,
  loadedDatabases,
  recover,
  settle,
} from "../support/fault_scene.ts";
import { until } from "../support/soundness.ts";

const LEAD = "marketing_qualified_lead";

/**
 * Settings that an administrator may give to the roles. With `waits`, the load waits
 * for a lock for longer than the setting allows.
 */
const SETTINGS: readonly {
  readonly sql: string;
  readonly waits?: boolean;
  readonly since?: number;
  readonly before?: number;
  /** The end of the load. The default is "exit 0". */
  readonly ends?: string;
}[] = [
  { sql: "set statement_timeout = '400ms'", waits: true },
  { sql: "set idle_in_transaction_session_timeout = '400ms'", waits: true },
  { sql: "set idle_session_timeout = '400ms'", waits: true },
  { sql: "set lock_timeout = '400ms'", waits: true },
  { sql: "set transaction_timeout = '400ms'", waits: true, since: 17 },
  {
    sql: "set default_transaction_read_only = on",
    ends: "exit 69, read_only",
  },
  { sql: "set default_transaction_isolation = 'serializable'" },
  { sql: "set default_transaction_deferrable = on" },
  { sql: "set search_path = ''" },
  { sql: "set search_path = m_data, marketing_data_service, public" },
  { sql: "set datestyle = 'SQL, DMY'" },
  { sql: "set datestyle = 'German'" },
  { sql: "set intervalstyle = 'sql_standard'" },
  { sql: "set extra_float_digits = -15" },
  { sql: "set timezone = 'Asia/Kolkata'" },
  { sql: "set client_encoding = 'LATIN1'" },
  { sql: "set row_security = off" },
  { sql: "set standard_conforming_strings = off", since: 0 },
  { sql: "set bytea_output = 'escape'" },
  { sql: "set transform_null_equals = on" },
  { sql: "set array_nulls = off" },
  { sql: "set quote_all_identifiers = on" },
  { sql: "set synchronous_commit = off" },
  { sql: "set session_replication_role = 'replica'" },
  { sql: "set work_mem = '64kB'" },
  { sql: "set client_min_messages = 'debug5'" },
  { sql: "set enable_seqscan = off" },
  { sql: "set enable_hashagg = off" },
  { sql: "set enable_sort = off" },
  { sql: "set jit_above_cost = 0" },
  { sql: "set force_parallel_mode = on", before: 16 },
  { sql: "set debug_parallel_query = on", since: 16 },
  { sql: "set default_toast_compression = 'pglz'" },
  { sql: "set track_activities = off" },
  { sql: "set track_counts = off" },
  { sql: "set exit_on_error = on" },
  { sql: "set log_statement = 'all'" },
  { sql: "set log_min_duration_statement = 0" },
  { sql: "set temp_file_limit = 0" },
  // No standby is named, so a commit waits for none.
  { sql: "set synchronous_commit = 'remote_apply'" },
  { sql: "set search_path = hostile, pg_catalog" },
  { sql: "set search_path = public, hostile" },
  { sql: "set plan_cache_mode = 'force_generic_plan'" },
];

/**
 * A schema with functions and operators that have the names of built-in ones. A call
 * of an unqualified name reaches them when its arguments match them better, and then
 * fails.
 */
const HOSTILE = `create schema hostile;
  create function hostile.nothing(numeric, bigint) returns numeric language sql as 'select 0::numeric';
  create function hostile.nothing(bigint) returns bigint language sql as 'select 0::bigint';
  create function hostile.nothing(bigint, bigint) returns bigint language sql as 'select 0::bigint';
  create function hostile.fail(bigint, integer) returns bigint language sql as 'select 1::bigint / 0';
  create function hostile.fail(integer, text) returns text language sql as 'select (1 / 0)::text';
  create function hostile.fail(bigint, text) returns text language sql as 'select (1 / 0)::text';
  create function hostile.fail(numeric, text) returns text language sql as 'select (1 / 0)::text';
  create aggregate hostile.sum(bigint) (sfunc = hostile.nothing, stype = numeric, initcond = '0');
  create aggregate hostile.count(*) (sfunc = hostile.nothing, stype = bigint, initcond = '0');
  create operator hostile.# (function = hostile.nothing, leftarg = bigint, rightarg = bigint);
  create operator hostile.& (function = hostile.fail, leftarg = bigint, rightarg = integer);
  create operator hostile.# (function = hostile.fail, leftarg = bigint, rightarg = integer);
  create operator hostile.|| (function = hostile.fail, leftarg = integer, rightarg = text);
  create operator hostile.|| (function = hostile.fail, leftarg = bigint, rightarg = text);
  create operator hostile.|| (function = hostile.fail, leftarg = numeric, rightarg = text);
  create function hostile.age(xid) returns integer language sql as 'select 1'`;

Deno.test("load does not depend on settings of the roles", async (t) => {
  await using db = await loadedDatabases({ deals: 30, leads: 100 });
  for (const side of ["source", "warehouse"] as const) {
    const role = side === "source" ? db.reader : db.loader;
    await db[side].unsafe(
      `${HOSTILE}; grant usage on schema hostile to ${role}`,
    );
  }
  const [server] = await db.warehouse.unsafe(
    "select current_setting('server_version_num')::int / 10000 as major",
  );
  for (
    const { sql, waits, since = 0, before = Infinity, ends = "exit 0" }
      of SETTINGS
  ) {
    if (server!.major < since || server!.major >= before) continue;
    await t.step(sql, async () => {
      await db.source.unsafe(`alter role ${db.reader} ${sql}`);
      await db.warehouse.unsafe(`alter role ${db.loader} ${sql}`);
      const scene = await changeSource(db);
      await using other = db.connect("warehouse");
      if (waits) {
        await other.unsafe(
          `begin; lock table m_data.${LEAD} in row exclusive mode`,
        );
      }
      const running = startLoad(db, { LOCK_TIMEOUT: "20", LOAD_MODE: "auto" });
      if (waits) {
        await duringLoad(running, async () =>
          (await db.warehouse.unsafe(
            `select from pg_stat_activity where application_name like 'marketing-data-service/%'
               and datname = current_database() and wait_event_type = 'Lock'
               and query_start < clock_timestamp() - interval '900 ms'`,
          )).length > 0);
        await other.unsafe("rollback");
      }
      const outcome = await running.outcome;
      const attempts = outcome.event?.status === "success"
        ? outcome.event.results.results.map((r) => r.attempts)
        : [1, 1];
      await db.source.unsafe(`alter role ${db.reader} reset all`);
      await db.warehouse.unsafe(`alter role ${db.loader} reset all`);
      assertEquals(
        sayOutcome(outcome),
        ends,
        outcome.error?.line ?? outcome.log,
      );
      assertEquals(attempts, [1, 1], outcome.log);
      await settle(db, {
        group: "Settings of the roles",
        fault: `\`${sql.replace("set ", "")}\`${
          waits ? ", and a wait for longer" : ""
        }`,
        scene,
        outcome,
        isFollowed: true,
      });
    });
  }
  await recover(db);
});

Deno.test("a busy request leaves the queue for every DateStyle of the role", async () => {
  await using db = await loadedDatabases({ deals: 5, leads: 5 });
  const scene = await changeSource(db);
  await db.warehouse.unsafe(
    `alter role ${db.loader} set datestyle = 'SQL, DMY';
     alter role ${db.loader} set timezone = 'Asia/Kolkata'`,
  );
  await using other = db.connect("warehouse");
  await other.unsafe(
    "begin; lock table marketing_data_service.load_lock in exclusive mode",
  );
  const outcome = await startLoad(db, { LOCK_TIMEOUT: "0.3" }).outcome;
  assertEquals(sayOutcome(outcome), "exit 75, busy");
  await other.unsafe("rollback");
  await settle(db, {
    group: "Settings of the roles",
    fault: "`datestyle = 'SQL, DMY'`, and the load is busy",
    scene,
    outcome,
  });
});

Deno.test("a busy server does not count as stalled, even if the role cannot see its state", async (t) => {
  await using db = await createDatabases({ rows: { deals: 10, leads: 30 } });
  // Short-lived roles that own nothing have this setting.
  const owner = `${db.loader}_owner`;
  await db.warehouse.unsafe(
    `create role ${owner}; grant ${owner} to ${db.loader};
     grant create on database ${db.environment.DWH_DB_NAME} to ${owner};
     alter role ${db.loader} set role = '${owner}'`,
  );
  const first = await loadHere(db);
  assertEquals(sayOutcome(first), "exit 0", first.log);
  await db.warehouse.unsafe(
    `create function public.slow() returns trigger language plpgsql as
       $$ begin perform pg_sleep(3); return null; end $$;
     create trigger slow before insert on m_data.${LEAD}
       for each statement execute function public.slow()`,
  );
  const settings = { "role": `'${owner}'`, "track_activities": "off" };
  for (const [name, value] of Object.entries(settings)) {
    await t.step(name, async () => {
      await db.warehouse.unsafe(
        `alter role ${db.loader} reset all; alter role ${db.loader} set ${name} = ${value}`,
      );
      const scene = await changeSource(db);
      const outcome = await loadHere(db, {
        STALL_TIMEOUT: "1",
        RETRY_ATTEMPTS: "1",
      });
      assertEquals(sayOutcome(outcome), "exit 0", outcome.log);
      await settle(db, {
        group: "Settings of the roles",
        fault:
          `\`${name}\`, and the warehouse is busy for longer than \`STALL_TIMEOUT\``,
        scene,
        outcome,
      });
    });
  }
  await t.step(
    "a role without pg_read_all_stats, and a process killed during a long statement",
    async () => {
      await db.warehouse.unsafe(
        `alter role ${db.loader} reset all; alter role ${db.loader} set role = '${owner}'`,
      );
      const scene = await changeSource(db);
      const program = watchProgram(["load", "--json"], db.environment);
      await until(async () =>
        (await db.warehouse.unsafe(
          `select from pg_stat_activity where wait_event = 'PgSleep'
           and datname = current_database()`,
        )).length > 0
      );
      program.kill("SIGKILL");
      const outcome = await program.finished;
      // The backend of the killed process is still busy.
      const next = await loadHere(db);
      assertEquals(sayOutcome(next), "exit 0", next.error?.line ?? next.log);
      await settle(db, {
        group: "Settings of the roles",
        fault: "`role`, and the process killed while the warehouse is busy",
        scene: { ...scene, old: scene.new },
        outcome,
      });
    },
  );
  await db.warehouse.unsafe(
    `alter role ${db.loader} reset all; drop owned by ${owner} cascade; drop role ${owner}`,
  );
});

Deno.test("JIT compiles only statements over whole tables", async () => {
  await using db = await loadedDatabases({ deals: 30, leads: 100 });
  await db.warehouse.unsafe(
    `create table public.seen (history text, jit text);
     grant insert on public.seen to ${db.loader};
     create function public.see() returns trigger language plpgsql as $$ begin
       insert into public.seen values (tg_table_name, pg_catalog.current_setting('jit'));
       return null;
     end $$`,
  );
  for (const history of ["run", "table_load", "event"]) {
    await db.warehouse.unsafe(
      `create trigger see after insert or update on marketing_data_service.${history}
         execute function public.see()`,
    );
  }
  assertEquals(sayOutcome(await loadHere(db)), "exit 0");
  const seen = await db.warehouse.unsafe(
    "select distinct history, jit from public.seen order by history",
  );
  assertEquals(seen.map((row) => ({ ...row })), [
    { history: "event", jit: "off" },
    { history: "run", jit: "off" },
    { history: "table_load", jit: "off" },
  ]);

  const { olist } = configOf(db);
  await using session = await Session.open(olist, {
    applicationName: "test",
    connectTimeoutSeconds: 10,
    stallTimeoutSeconds: 60,
  });
  await session.begin({ mode: "read committed", lockTimeoutSeconds: 10 });
  const jit = "select current_setting('jit') as jit";
  const rows = [
    ...await session.query(jit),
    ...await session.scan(jit),
    ...await session.query(jit),
  ];
  assertEquals(rows.map((row) => row.jit), ["off", "on", "off"]);
});
