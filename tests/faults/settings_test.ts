import { assertEquals } from "@std/assert";
import { duringLoad, sayOutcome, startLoad } from "./support/local_load.ts";
import { changeSource, loadedDatabases, settle } from "./support/scene.ts";

const LEAD = "marketing_qualified_lead";

/**
 * Settings that an administrator may have given to the roles. With `waits`
 * the load is made to wait for a lock for longer than the setting allows.
 */
const SETTINGS: readonly {
  readonly sql: string;
  readonly waits?: boolean;
  readonly since?: number;
  /** How the load ends; "exit 0" when not given. */
  readonly ends?: string;
}[] = [
  { sql: "set statement_timeout = '400ms'", waits: true },
  { sql: "set idle_in_transaction_session_timeout = '400ms'", waits: true },
  { sql: "set idle_session_timeout = '400ms'", waits: true },
  { sql: "set lock_timeout = '400ms'", waits: true },
  { sql: "set transaction_timeout = '400ms'", waits: true, since: 17 },
  {
    sql: "set default_transaction_read_only = on",
    ends: "exit 1, database_error",
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
  { sql: "set plan_cache_mode = 'force_generic_plan'" },
];

Deno.test("settings of the roles do not change what a load does", async (t) => {
  await using db = await loadedDatabases({ deals: 30, leads: 100 });
  const [server] = await db.warehouse.unsafe(
    "select current_setting('server_version_num')::int / 10000 as major",
  );
  for (const { sql, waits, since, ends = "exit 0" } of SETTINGS) {
    if (since && server!.major < since) continue;
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
      });
    });
  }
});

Deno.test("a request that was busy leaves the queue, however the role writes times", async () => {
  await using db = await loadedDatabases({ deals: 5, leads: 5 });
  const scene = await changeSource(db);
  await db.warehouse.unsafe(
    `alter role ${db.loader} set datestyle = 'SQL, DMY';
     alter role ${db.loader} set timezone = 'Asia/Kolkata'`,
  );
  await using other = db.connect("warehouse");
  await other.unsafe("begin; select pg_advisory_xact_lock(5714290)");
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
