import { assertEquals } from "@std/assert";
import { load } from "../../src/load/load.ts";
import type { LoadEvent } from "../../src/runs/event.ts";
import {
  ALL,
  contextOf,
  createDatabases,
  type Databases,
} from "../support/databases.ts";
import { sourceContent, targetContent, until } from "../support/soundness.ts";

const FORGE =
  "update m_data.closed_deal set business_type = 'forged' where ctid = (select min(ctid) from m_data.closed_deal)";

/** Code that a load of the leads can call, and that changes the deals. */
const SCENE = `
  create schema extensions; grant usage on schema extensions to public;
  create table m_data.relay (n int);
  create view m_data.deals_view as select * from m_data.closed_deal;
  create function extensions.forge() returns int language plpgsql as $$ begin ${FORGE}; return 1; end $$;
  create function extensions.forging() returns trigger language plpgsql as $$ begin
    perform extensions.forge(); return null; end $$;
  create function m_data.forges_by_view() returns trigger language plpgsql as $$ begin
    update m_data.deals_view set business_type = 'forged'; return null; end $$;
  create function m_data.forges_text(v text) returns text language plpgsql as $$ begin
    perform extensions.forge(); return v; end $$;
  create function m_data.forges_unseen(v text) returns text language plpgsql immutable as $$ begin
    perform extensions.forge(); return v; end $$;
  create function m_data.is_forged(v text) returns boolean language plpgsql as $$ begin
    perform extensions.forge(); return true; end $$;
  create constraint trigger relayed after insert on m_data.relay deferrable initially deferred
    for each row execute function extensions.forging();`;

/** A trigger because of which the deals are loaded together with the leads. */
const WATCH =
  `create function m_data.watches() returns trigger language plpgsql as $$ begin return null; end $$;
   create trigger watching after insert on m_data.closed_deal
     for each statement execute function m_data.watches()`;

/** Ways for a load of the leads to change the deals, as DDL of the scene. */
const WAYS: Readonly<Record<string, string>> = {
  "a trigger":
    `create trigger forging after insert on m_data.marketing_qualified_lead
       for each row execute function extensions.forging()`,
  "a statement trigger of a DELETE":
    `create trigger forging before delete on m_data.marketing_qualified_lead
       for each statement execute function extensions.forging()`,
  "a deferred constraint trigger":
    `create constraint trigger forging after insert on m_data.marketing_qualified_lead
       deferrable initially deferred for each row execute function extensions.forging()`,
  "a trigger by way of another table's deferred trigger":
    `create function m_data.relays() returns trigger language plpgsql as $$ begin
       insert into m_data.relay values (1); return null; end $$;
     create trigger forging after insert on m_data.marketing_qualified_lead
       for each row execute function m_data.relays()`,
  "a trigger by way of a view":
    `create trigger forging after insert on m_data.marketing_qualified_lead
       for each row execute function m_data.forges_by_view()`,
  "a rule":
    `create rule forging as on delete to m_data.marketing_qualified_lead do also ${FORGE}`,
  "a foreign key":
    `alter table m_data.marketing_qualified_lead add primary key (mql_id);
     alter table m_data.closed_deal add foreign key (mql_id)
       references m_data.marketing_qualified_lead on delete cascade not valid`,
  "a check constraint":
    `alter table m_data.marketing_qualified_lead add check (m_data.is_forged(origin)) not valid`,
  "the check of a domain":
    `create domain m_data.checked as text check (m_data.is_forged(value));
     alter table m_data.marketing_qualified_lead alter column origin type m_data.checked`,
  "an index on an expression": `truncate m_data.marketing_qualified_lead;
     create index on m_data.marketing_qualified_lead (m_data.forges_unseen(origin))`,
  "the condition of an index": `truncate m_data.marketing_qualified_lead;
     create index on m_data.marketing_qualified_lead (origin) where m_data.forges_unseen(origin) <> 'x'`,
  "a partition key": `truncate m_data.marketing_qualified_lead;
     create table m_data.parent (like m_data.marketing_qualified_lead)
       partition by list (m_data.forges_unseen(origin));
     alter table m_data.parent attach partition m_data.marketing_qualified_lead for values in ('new')`,
};

/** Databases whose targets are loaded, and whose sources have changed since. */
async function loadedScene(): Promise<Databases> {
  const db = await createDatabases({ rows: { deals: 5, leads: 3 } });
  await db.source.unsafe(
    `delete from marketing.marketing_qualified_leads;
     insert into marketing.marketing_qualified_leads (mql_id, origin)
       select mql_id, 'old' from marketing.closed_deals`,
  );
  await using context = contextOf(db);
  assertEquals((await load(context, "cli", ALL)).status, "success");
  await db.warehouse.unsafe(SCENE);
  await db.source.unsafe(
    `update marketing.closed_deals set has_gtin = 'new';
     update marketing.marketing_qualified_leads set origin = 'new'`,
  );
  return db;
}

/** Waits until the deals are committed. */
async function committedDeals(db: Databases): Promise<void> {
  await until(async () =>
    (await targetContent(db)).closed_deal ===
      (await sourceContent(db)).closed_deal
  );
}

/** Starts a load whose leads wait for their lock until `meanwhile` is done. */
async function loadLeadsLast(
  db: Databases,
  meanwhile: (holder: Databases["warehouse"]) => Promise<unknown>,
) {
  await db.warehouse.unsafe(
    "grant all on all tables in schema m_data to public",
  );
  await using holder = db.connect("warehouse");
  await holder.unsafe(
    "begin; lock table m_data.marketing_qualified_lead in share row exclusive mode",
  );
  await using context = contextOf(db, {
    RETRY_ATTEMPTS: "2",
    LOCK_TIMEOUT: "1.5",
  });
  const running = load(context, "cli", ALL);
  await until(async () =>
    (await db.warehouse.unsafe(
      `select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'
         and application_name like 'marketing-data-service/%'`,
    )).length > 0
  );
  await meanwhile(holder);
  await holder.unsafe("commit");
  return await running;
}

/** Asserts that no table that is reported as loaded holds another row. */
async function assertHonest(db: Databases, event: LoadEvent): Promise<void> {
  const [wanted, held] = [await sourceContent(db), await targetContent(db)];
  const { results } = event.status === "success"
    ? event.results
    : event.details;
  for (const { table, status } of results) {
    if (status !== "success") continue;
    assertEquals(
      held[table],
      wanted[table],
      `${table}: ${JSON.stringify(event)}`,
    );
  }
}

for (const [what, ddl] of Object.entries(WAYS)) {
  Deno.test(`load reports no table as loaded that ${what} of the other table changes`, async () => {
    await using db = await loadedScene();
    await db.warehouse.unsafe(`${WATCH}; ${ddl}`);
    const event = await loadLeadsLast(db, () => committedDeals(db));
    await assertHonest(db, event);
  });
}

Deno.test("load reports no table as loaded that a new trigger of the other table changes", async () => {
  await using db = await loadedScene();
  const event = await loadLeadsLast(db, async (holder) => {
    await committedDeals(db);
    await holder.unsafe(WAYS["a trigger"]!);
  });
  await assertHonest(db, event);
});

Deno.test("load reports no table as loaded that an event trigger changes", async () => {
  await using db = await loadedScene();
  await db.warehouse.unsafe(
    `drop view m_data.deals_view; drop table m_data.marketing_qualified_lead; grant all on m_data.closed_deal to public;
     create function extensions.forging_ddl() returns event_trigger language plpgsql as $$ begin
       perform extensions.forge(); end $$;
     create event trigger forging on ddl_command_end when tag in ('CREATE TABLE', 'ALTER TABLE')
       execute function extensions.forging_ddl()`,
  );
  await using context = contextOf(db, { RETRY_ATTEMPTS: "1" });
  for (
    const options of [
      { ...ALL, atomic: true },
      { ...ALL, recreate: true, tables: ["closed_deal"] },
      ALL,
    ]
  ) {
    if (options === ALL) await db.warehouse.unsafe(WATCH);
    await assertHonest(db, await load(context, "cli", options));
  }
});

Deno.test("load reports no table as loaded that a trigger changes at the second attempt of the other table", async () => {
  await using db = await loadedScene();
  await db.warehouse.unsafe(
    `create sequence m_data.calls; grant all on sequence m_data.calls to public;
     create function m_data.forges_later() returns trigger language plpgsql as $$ begin
       if nextval('m_data.calls') > 1 then perform extensions.forge(); end if; return null; end $$;
     create trigger forging after insert on m_data.marketing_qualified_lead
       for each statement execute function m_data.forges_later();
     create sequence m_data.commits; grant all on sequence m_data.commits to public;
     create function m_data.fails_once() returns trigger language plpgsql as $$ begin
       if nextval('m_data.commits') = 1 then raise serialization_failure; end if; return null; end $$;
     create trigger failing after insert on marketing_data_service.event
       for each row execute function m_data.fails_once()`,
  );
  await using context = contextOf(db, { LOCK_TIMEOUT: "1.5" });
  const event = await load(context, "cli", ALL);
  await assertHonest(db, event);
});

for (
  const [what, deed] of [
    ["changes the other table", "perform extensions.forge()"],
    [
      "ends the session that has locked the other table, and changes it",
      `perform pg_terminate_backend(pid, 5000) from pg_locks
         where relation = 'm_data.closed_deal'::regclass and mode = 'ShareRowExclusiveLock';
       perform extensions.forge()`,
    ],
  ] as const
) {
  for (const parallel of ["1", "5"]) {
    Deno.test(`load of two targets with triggers, MAX_PARALLEL_TASKS=${parallel}, reports no table as loaded when one ${what}`, async () => {
      await using db = await loadedScene();
      await db.warehouse.unsafe(
        `grant all on all tables in schema m_data to public;
       ${WATCH};
       create function m_data.acts() returns trigger language plpgsql as $$ begin
         ${deed}; return null; end $$;
       create trigger acting after insert on m_data.marketing_qualified_lead
         for each statement execute function m_data.acts()`,
      );
      await using context = contextOf(db, {
        RETRY_ATTEMPTS: "2",
        LOCK_TIMEOUT: "1",
        MAX_PARALLEL_TASKS: parallel,
      });
      await assertHonest(db, await load(context, "cli", ALL));
    });
  }
}
