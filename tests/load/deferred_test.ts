import { assertEquals, assertMatch } from "@std/assert";
import { parseConfig } from "../../src/config/config.ts";
import { Pool } from "../../src/postgres/pool.ts";
import { migratedDatabases } from "../support/databases.ts";
import { runJson } from "../support/program_here.ts";
import { until } from "../support/server.ts";

/** Trigger functions that change the target after the writes of the load. */
const LATE_CHANGES: Readonly<Record<string, string>> = {
  "defers itself again and changes a row":
    `if pg_trigger_depth() > 3 then return null; end if;
     set constraints m_data.late deferred;
     update m_data.closed_deal set business_type = 'forged' where ctid = (select min(ctid) from m_data.closed_deal);
     return null;`,
  "defers all and changes a row by way of another table":
    `set constraints all deferred;
     insert into m_data.relay select 1 where not exists (select from m_data.relay);
     return null;`,
  "sets another search path and time zone, and changes a row":
    `perform set_config('search_path', 'hostile', true);
     perform set_config('timezone', 'Asia/Tokyo', true);
     perform set_config('datestyle', 'German', true);
     if pg_trigger_depth() > 1 then return null; end if;
     update m_data.closed_deal set business_type = 'forged' where ctid = (select min(ctid) from m_data.closed_deal);
     return null;`,
};

for (const [what, body] of Object.entries(LATE_CHANGES)) {
  for (const mode of ["auto", "full"]) {
    Deno.test(`load --mode ${mode} fails before the commit when a deferred trigger ${what}`, async () => {
      await using db = await migratedDatabases({
        rows: { deals: 5, leads: 3 },
      });
      const { environment, source, warehouse } = db;
      const first = await runJson(["load"], environment);
      assertEquals(first.code, 0, first.stderr);
      await warehouse.unsafe(
        `create table m_data.relay (n int);
         grant all on m_data.relay to public;
         create schema hostile; grant usage on schema hostile to public;
         create function hostile.count("any") returns bigint language internal immutable as 'int8inc_any';
         create function m_data.relayed() returns trigger language plpgsql as $$ begin
           update m_data.closed_deal set business_type = 'forged' where ctid = (select min(ctid) from m_data.closed_deal);
           return null; end $$;
         create constraint trigger relayed after insert on m_data.relay deferrable initially deferred
           for each row execute function m_data.relayed();
         create function m_data.change_late() returns trigger language plpgsql as $$ begin ${body} end $$;
         create constraint trigger late after insert or update on m_data.closed_deal deferrable initially deferred
           for each row execute function m_data.change_late()`,
      );
      await source.unsafe(
        "update marketing.closed_deals set business_segment = 'changed' where ctid = '(0,2)'",
      );
      const { code, stderr } = await runJson(
        ["load", "--mode", mode],
        environment,
      );
      assertEquals(code, 1, stderr);
      const rows = await warehouse
        .unsafe(
          "select from m_data.closed_deal where business_type = 'forged' or business_segment = 'changed'",
        );
      assertEquals(rows.length, 0);
    });
  }
}

Deno.test("load succeeds when a deferred trigger only reads, or writes elsewhere under the role's own search path", async () => {
  await using db = await migratedDatabases({ rows: { deals: 5, leads: 3 } });
  const { environment, source, warehouse, loader } = db;
  await runJson(["load"], environment);
  await warehouse.unsafe(
    `create schema audit; create table audit.changes (n int);
     grant usage on schema audit to public; grant all on audit.changes to public;
     create function m_data.note() returns trigger language plpgsql as $$ begin
       insert into changes values (1); return null; end $$;
     create constraint trigger late after insert or delete on m_data.closed_deal deferrable initially deferred
       for each row execute function m_data.note();
     create trigger now after insert or delete on m_data.closed_deal for each row execute function m_data.note()`,
  );
  await warehouse`alter role ${
    warehouse(loader)
  } set search_path = audit, public`;
  await source.unsafe(
    "update marketing.closed_deals set business_segment = 'changed' where ctid = '(0,2)'",
  );
  const { code, stderr, json } = await runJson(["load"], environment);
  assertEquals(code, 0, stderr);
  assertMatch(JSON.stringify(json), /"rows_inserted":1/);
  const changes = await warehouse.unsafe("select from audit.changes");
  assertEquals(changes.length, 4);
});

Deno.test("load survives short timeouts of the role and the database", async () => {
  await using db = await migratedDatabases({ rows: { deals: 50, leads: 80 } });
  const { environment, source, warehouse } = db;
  assertEquals((await runJson(["load"], environment)).code, 0);
  for (
    const [sql, role] of [[source, db.reader], [warehouse, db.loader]] as const
  ) {
    for (
      const name of [
        "statement_timeout",
        "lock_timeout",
        "idle_in_transaction_session_timeout",
      ]
    ) {
      await sql.unsafe(`alter role "${role}" set ${name} = '250ms'`);
    }
    const [row] = await sql.unsafe(
      "select current_database() as name, current_setting('server_version_num')::int as version",
    );
    if (row!.version >= 170000) {
      await sql.unsafe(
        `alter database "${row!.name}" set transaction_timeout = '250ms'`,
      );
    }
  }
  // Statements of the pool and of both transactions wait for longer than the timeouts.
  for (
    const [side, table] of [
      ["warehouse", "marketing_data_service.run"],
      ["warehouse", "m_data.closed_deal"],
      ["source", "marketing.closed_deals"],
    ] as const
  ) {
    await using other = db.connect(side);
    await other.unsafe(
      "select set_config(name, '0', false) from pg_settings where name = 'transaction_timeout'",
    );
    await other.unsafe(`begin; lock table ${table} in access exclusive mode`);
    const load = runJson(["load"], environment);
    await until(`a load waits for ${table}`, async () =>
      (await db[side].unsafe(
        `select from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()
           and application_name like 'marketing-data-service%'
           and query_start < clock_timestamp() - interval '400 ms'`,
      )).length > 0);
    await other.unsafe("commit");
    const { code, stderr } = await load;
    assertEquals(code, 0, `${table}: ${stderr}`);
  }
});

Deno.test("Pool.query() lifts the timeouts of the role from the first statement on", async () => {
  await using db = await migratedDatabases();
  for (
    const name of [
      "statement_timeout",
      "transaction_timeout",
      "idle_session_timeout",
    ]
  ) {
    const [known] = await db.warehouse.unsafe(
      `select from pg_settings where name = '${name}'`,
    );
    if (!known) continue;
    await db.warehouse.unsafe(`alter role ${db.loader} set ${name} = '50ms'`);
  }
  const config = parseConfig(db.environment, Deno.readTextFileSync);
  await using pool = new Pool(config.dwh, { ...config, max: 1 });
  const [row] = await pool.query("select 1 as n from pg_sleep(0.2)");
  assertEquals(row!.n, 1);
});
