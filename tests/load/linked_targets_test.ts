import { assertEquals, assertStringIncludes } from "@std/assert";
import type { LoadEvent } from "../../src/runs/event.ts";
import { load } from "../../src/load/load.ts";
import {
  ALL,
  contextOf,
  type Databases,
  migratedDatabases,
} from "../support/databases.ts";
import { until } from "../support/soundness.ts";

const ATOMIC = { ...ALL, atomic: true };

const KEY =
  "alter table m_data.marketing_qualified_lead add primary key (mql_id)";
const REFERENCE =
  "alter table m_data.closed_deal add foreign key (mql_id) references m_data.marketing_qualified_lead";

/** Loads deals and leads. Each deal has its lead. */
async function linked(link: string): Promise<Databases> {
  const db = await migratedDatabases({ rows: { deals: 20, leads: 5 } });
  await db.source.unsafe(
    `delete from marketing.marketing_qualified_leads;
     insert into marketing.marketing_qualified_leads (mql_id, origin) select distinct mql_id, 'old' from marketing.closed_deals`,
  );
  await using context = contextOf(db);
  assertEquals((await load(context, "cli", ATOMIC)).status, "success");
  await db.warehouse.unsafe(`${KEY}; ${link}`);
  return db;
}

const CHANGE = `update marketing.marketing_qualified_leads set origin = 'new'
   where mql_id in (select mql_id from marketing.closed_deals order by 1 limit 2);
   update marketing.closed_deals set has_gtin = 'new' where mql_id in (select max(mql_id) from marketing.closed_deals)`;

const codesOf = (event: LoadEvent) =>
  event.status === "failure"
    ? event.details.results.map((r) => r.status === "failure" && r.code)
    : [];

const heldDeals = async (db: Databases) =>
  (await db.warehouse.unsafe(
    "select md5(string_agg(d::text, ',' order by d::text)) as held from m_data.closed_deal d",
  ))[0]!.held;

const TRIGGER =
  `create function public.meddle() returns trigger language plpgsql as
     $f$ begin update m_data.closed_deal set has_company = 'other' where mql_id = old.mql_id; return null; end $f$;
   create trigger meddle after delete on m_data.marketing_qualified_lead for each row execute function public.meddle()`;

for (
  const [what, link, codes, message] of [
    [
      "a foreign key deletes its deals",
      `${REFERENCE} on delete cascade`,
      ["rolled_back", "target_incompatible"],
      "changes rows that refer to a replaced row",
    ],
    [
      "a trigger changes its deals",
      TRIGGER,
      ["verification_failed", "rolled_back"],
      "foreign keys that change rows of m_data.closed_deal",
    ],
  ] as const
) {
  Deno.test(`load --atomic loads nothing when a lead is replaced and ${what}`, async () => {
    await using db = await linked(link);
    await using context = contextOf(db);
    await db.source.unsafe(CHANGE);
    const before = await heldDeals(db);
    const event = await load(context, "cli", ATOMIC);
    assertEquals(codesOf(event), codes);
    assertStringIncludes(
      event.status === "failure" ? event.error : "",
      message,
    );
    assertEquals(await heldDeals(db), before);
    if (codes[0] !== "rolled_back") return;
    // With a key, the foreign key sees an update, and both tables are loaded.
    const tables = context.config.tables.map((table) =>
      table.source.name === "closed_deals"
        ? table
        : { ...table, key: ["mql_id"] }
    );
    const keyed = { ...context, config: { ...context.config, tables } };
    for (const atomic of [true, false]) {
      const { status } = await load(keyed, "cli", { ...ALL, atomic });
      assertEquals(status, "success");
      await db.source.unsafe(CHANGE.replaceAll("new", "newer"));
    }
  });
}

Deno.test("load --atomic respects a deferred foreign key", async () => {
  await using db = await linked(
    `${REFERENCE} deferrable initially deferred`,
  );
  await using context = contextOf(db);
  await db.source.unsafe(
    `${CHANGE}; insert into marketing.marketing_qualified_leads (mql_id) values ('fresh');
     insert into marketing.closed_deals (mql_id) values ('fresh')`,
  );
  const event = await load(context, "cli", ATOMIC);
  assertEquals(event.status, "success", JSON.stringify(event));
  await db.source.unsafe(
    "insert into marketing.closed_deals (mql_id) values ('nowhere')",
  );
  const broken = await load(context, "cli", ATOMIC);
  assertEquals(codesOf(broken).includes("constraint_violated"), true);
});

Deno.test("load --recreate loads a table with code and a foreign key to another loaded table", async () => {
  await using db = await linked(
    `${REFERENCE}; create function public.holds(text) returns boolean language sql as 'select true';
     alter table m_data.closed_deal add check (public.holds(has_gtin))`,
  );
  await using context = contextOf(db, {
    LOCK_TIMEOUT: "1",
    RETRY_ATTEMPTS: "1",
  });
  const event = await load(context, "cli", { ...ALL, recreate: true });
  assertEquals(codesOf(event), [false, "target_in_use"], JSON.stringify(event));
});

Deno.test("load names LOAD_ATOMIC when a trigger makes a table wait for the other one", async () => {
  await using db = await linked(TRIGGER);
  await using context = contextOf(db, {
    LOCK_TIMEOUT: "1",
    RETRY_ATTEMPTS: "1",
  });
  await db.source.unsafe(CHANGE);
  const event = await load(context, "cli", ALL);
  assertEquals(codesOf(event).includes("target_locked"), true);
  assertStringIncludes(
    event.status === "failure" ? event.error : "",
    "set LOAD_ATOMIC=true",
  );
});

Deno.test("load names LOAD_ATOMIC when deletes in the other table have locked a table", async () => {
  await using db = await linked(`${REFERENCE} on delete cascade`);
  await using context = contextOf(db, {
    LOCK_TIMEOUT: "1",
    RETRY_ATTEMPTS: "1",
  });
  await db.source.unsafe(CHANGE);
  // The lock of the transaction of the other table, if that comes first.
  await using other = db.connect("warehouse");
  await other.unsafe("begin; delete from m_data.marketing_qualified_lead");
  const event = await load(context, "cli", { ...ALL, tables: ["closed_deal"] });
  assertEquals(codesOf(event), ["target_locked"]);
  assertStringIncludes(
    event.status === "failure" ? event.error : "",
    "set LOAD_ATOMIC=true",
  );
});

for (const verify of ["content", "count"]) {
  Deno.test(`load with VERIFY=${verify} detects a target schema that is replaced mid-load`, async () => {
    await using db = await migratedDatabases({
      rows: { deals: 200, leads: 5 },
    });
    await using context = contextOf(db, { VERIFY: verify });
    const options = {
      ...ATOMIC,
      atomic: false,
      tables: ["closed_deal"],
    } as const;
    assertEquals((await load(context, "cli", options)).status, "success");
    // Reading is slow enough for a change meanwhile.
    await db.source.unsafe(
      `alter table marketing.closed_deals rename to deals;
       create view marketing.closed_deals as
         select d.* from marketing.deals d, (select pg_sleep(0.7) offset 0) pause;
       grant select on marketing.closed_deals to ${db.reader};
       update marketing.deals set has_gtin = 'new' where ctid = '(0,1)'`,
    );
    // The same rows in the same places, with one difference.
    await db.warehouse.unsafe(
      `create schema other authorization ${db.loader};
       create table other.closed_deal (like m_data.closed_deal);
       insert into other.closed_deal select * from m_data.closed_deal order by ctid;
       alter table other.closed_deal owner to ${db.loader}`,
    );
    await db.warehouse.unsafe(
      `delete from other.closed_deal where ctid = '(0,5)';
       insert into other.closed_deal (mql_id, lead_type) select mql_id, 'damaged' from m_data.closed_deal where ctid = '(0,5)'`,
    );
    const running = load(context, "cli", options);
    // The sums differ. Now the load reads the hashes of the rows.
    await until(async () =>
      (await db.source.unsafe(
        `select from pg_stat_activity where state = 'active' and datname = current_database()
           and application_name like 'marketing-data-service/%' and query like 'copy (select pg_catalog.hashtextextended%'`,
      )).length > 0
    );
    await db.warehouse.unsafe(
      "alter schema m_data rename to before; alter schema other rename to m_data",
    );
    const event = await running;
    assertEquals(event.status, "success", JSON.stringify(event));
    const held = async (relation: string, sql: Databases["source"]) =>
      (await sql.unsafe(
        `select md5(string_agg(d, ',' order by d)) as held from (select row(mql_id, lead_type, has_company, has_gtin)::text as d from ${relation}) rows`,
      ))[0]!.held;
    assertEquals(
      await held("m_data.closed_deal", db.warehouse),
      await held("marketing.deals", db.source),
    );
  });
}

Deno.test("load waits for the disk, even if the role disables synchronous_commit", async () => {
  await using db = await migratedDatabases({ rows: { deals: 5, leads: 5 } });
  await using context = contextOf(db);
  assertEquals((await load(context, "cli", ATOMIC)).status, "success");
  await db.warehouse.unsafe(
    `alter role ${db.loader} set synchronous_commit = off;
     create table public.seen (setting text); grant insert on public.seen to public;
     create function public.see() returns trigger language plpgsql as
       $f$ begin insert into public.seen values (current_setting('synchronous_commit')); return null; end $f$;
     create trigger see after insert on m_data.closed_deal for each statement execute function public.see()`,
  );
  await db.source.unsafe("update marketing.closed_deals set has_gtin = 'new'");
  assertEquals((await load(context, "cli", ATOMIC)).status, "success");
  const rows = await db.warehouse.unsafe(
    "select distinct setting from public.seen",
  );
  assertEquals(rows.map((row) => row.setting), ["on"]);
});
