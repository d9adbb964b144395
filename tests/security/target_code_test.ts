import { assertEquals, assertMatch } from "@std/assert";
import {
  copyDatabases,
  createDatabases,
  type Databases,
} from "../support/databases.ts";
import { runJson } from "../support/program_here.ts";

const FORGE =
  `update m_data.closed_deal set business_type = 'forged' where ctid = (select min(ctid) from m_data.closed_deal)`;

/** Code of a writer of the target that changes the target at the commit. */
const SCENE = `
  create table m_data.relay (n int); create table m_data.counterweight (n int);
  create function m_data.forge() returns int language plpgsql as $$ begin ${FORGE}; return 1; end $$;
  create function m_data.relayed() returns trigger language plpgsql as $$ begin
    perform m_data.forge(); return null; end $$;
  create constraint trigger relayed after insert on m_data.relay deferrable initially deferred
    for each row execute function m_data.relayed();
  create function m_data.relays(v text) returns boolean language plpgsql as $$ begin
    insert into m_data.relay select 1 where not exists (select from m_data.relay)
      and current_setting('application_name') like 'marketing-data-service/%';
    return true; end $$;
  create function m_data.relays_unseen(v text) returns text language plpgsql immutable as $$ begin
    perform m_data.relays(v); return v; end $$;
  create function m_data.opens_cursor(v text) returns boolean language plpgsql as $$ begin
    if not exists (select from pg_cursors) then
      execute 'declare forger cursor with hold for select m_data.forge()';
    end if; return true; end $$;
  grant all on all tables in schema m_data to public;`;

/** Returns DDL of a trigger that runs a statement. */
function adds(statement: string): string {
  return `create function m_data.adds() returns trigger language plpgsql as $$ begin
      execute '${statement}'; return null; end $$;
    create trigger adds after insert on m_data.closed_deal for each statement execute function m_data.adds()`;
}

/** The places where a target calls functions, as DDL. */
const CALLERS: Readonly<Record<string, string>> = {
  "a trigger adds a trigger to the recorded tables of the service": adds(
    "create or replace trigger planted after insert on marketing_data_service.table_load for each row execute function m_data.relayed()",
  ),
  "a trigger adds a trigger to the events of the service": adds(
    "create or replace trigger planted after insert on marketing_data_service.event for each row execute function m_data.relayed()",
  ),
  "a trigger adds a deferred trigger to the events of the service": adds(
    `drop trigger if exists planted on marketing_data_service.event;
     create constraint trigger planted after insert on marketing_data_service.event deferrable initially deferred
       for each row execute function m_data.relayed()`,
  ),
  "a trigger adds a rule to the runs of the service": adds(
    `create or replace rule planted as on update to marketing_data_service.run do also ${
      FORGE.replaceAll("'", "''")
    }`,
  ),
  "a trigger adds a check to the events of the service": adds(
    "alter table marketing_data_service.event add check (m_data.forge() = 1) not valid",
  ),
  "a trigger adds a view in the place of a table of the service": adds(
    `alter table marketing_data_service.table_load rename to moved;
     create view marketing_data_service.table_load as select * from marketing_data_service.moved;
     create trigger planted instead of insert on marketing_data_service.table_load
       for each row execute function m_data.relayed()`,
  ),
  "a trigger listens to its own notifications": adds(
    "listen planted; notify planted",
  ),
  "a check constraint writes a table with a deferred trigger":
    `alter table m_data.closed_deal add check (m_data.relays(business_type)) not valid`,
  "the check of a domain writes a table with a deferred trigger":
    `create domain m_data.checked as text check (m_data.relays(value));
     alter table m_data.closed_deal alter column business_type type m_data.checked`,
  "the check of a domain over a domain writes a table with a deferred trigger":
    `create domain m_data.inner_checked as text check (m_data.relays(value));
     create domain m_data.checked as m_data.inner_checked;
     alter table m_data.closed_deal alter column business_type type m_data.checked`,
  "an index writes a table with a deferred trigger":
    `create index on m_data.closed_deal (m_data.relays_unseen(business_type))`,
  "a check constraint opens a cursor that the commit runs":
    `alter table m_data.closed_deal add check (m_data.opens_cursor(business_type)) not valid`,
  "a trigger opens a cursor that the commit runs":
    `create function m_data.opening() returns trigger language plpgsql as $$ begin
       perform m_data.opens_cursor(''); return null; end $$;
     create trigger opening after insert on m_data.closed_deal for each row execute function m_data.opening()`,
  "a deferred trigger opens a cursor that the commit runs":
    `create function m_data.opening() returns trigger language plpgsql as $$ begin
       perform m_data.opens_cursor(''); return null; end $$;
     create constraint trigger opening after insert on m_data.closed_deal deferrable initially deferred
       for each row execute function m_data.opening()`,
  "a deferred trigger defers another one, and takes as many rows out of the server's counts":
    `create function m_data.late() returns trigger language plpgsql as $$ begin
       if not exists (select from m_data.relay) then
         set constraints all deferred;
         truncate m_data.counterweight;
         insert into m_data.relay values (1);
       end if;
       return null; end $$;
     create constraint trigger late after insert on m_data.closed_deal deferrable initially deferred
       for each row execute function m_data.late();
     create function m_data.early() returns trigger language plpgsql as $$ begin
       if not exists (select from m_data.counterweight) then insert into m_data.counterweight values (1), (2); end if;
       return null; end $$;
     create trigger early after insert on m_data.closed_deal for each row execute function m_data.early()`,
};

/** Creates loaded targets beside code that can forge their rows, and a change of the source. */
async function createScene(): Promise<Databases> {
  const db = await createDatabases({ rows: { deals: 5, leads: 3 } });
  const first = await runJson(["load"], db.environment);
  assertEquals(first.code, 0, first.stderr);
  await db.warehouse.unsafe(SCENE);
  await db.warehouse`alter table m_data.counterweight owner to ${
    db.warehouse(db.loader)
  }`;
  await db.source.unsafe(
    "update marketing.closed_deals set business_segment = 'changed' where ctid = '(0,2)'",
  );
  return db;
}

/** Copies the scene, and adds a caller of the code. */
async function copyScene(scene: Databases, ddl: string): Promise<Databases> {
  const db = await copyDatabases(scene);
  await db.warehouse.unsafe(
    `${ddl}; grant all on all tables in schema m_data to public`,
  );
  return db;
}

async function rowsOf({ source, warehouse }: Databases) {
  const [wanted] = await source.unsafe(
    "select json_agg(t order by t.mql_id) as rows from marketing.closed_deals t",
  );
  const [held] = await warehouse.unsafe(
    "select json_agg(t order by t.mql_id) as rows from m_data.closed_deal t",
  );
  return { wanted: wanted!.rows, held: held!.rows };
}

Deno.test("load commits no other row when the target calls code", async (t) => {
  await using scene = await createScene();
  for (
    const [what, name] of [
      ["writes a table with a deferred trigger", "relays"],
      ["opens a cursor that the commit runs", "opens_cursor"],
    ]
  ) {
    for (const atomic of ["false", "true"]) {
      await t.step(
        `load --recreate with LOAD_ATOMIC=${atomic}: a check constraint that it carries over ${what}`,
        async () => {
          await using db = await copyScene(
            scene,
            `alter table m_data.closed_deal add check (m_data.${name}(business_type))`,
          );
          await db.warehouse`alter table m_data.closed_deal owner to ${
            db.warehouse(db.loader)
          }`;
          const { code, stderr } = await runJson(["load", "--recreate"], {
            ...db.environment,
            LOAD_ATOMIC: atomic,
          });
          const { wanted, held } = await rowsOf(db);
          if (code === 0) assertEquals(held, wanted, stderr);
          else {
            assertEquals(code, 1, stderr);
            assertMatch(stderr, /after the copy the target holds 5 rows/);
          }
        },
      );
    }
  }

  for (const [what, ddl] of Object.entries(CALLERS)) {
    for (const mode of ["auto", "full"]) {
      await t.step(`load --mode ${mode}: ${what}`, async () => {
        await using db = await copyScene(scene, ddl);
        const { code, stderr } = await runJson(
          ["load", "--mode", mode],
          db.environment,
        );
        const { wanted, held } = await rowsOf(db);
        if (code === 0) assertEquals(held, wanted, stderr);
        else {
          const changed = await db.warehouse.unsafe(
            "select from m_data.closed_deal where business_type = 'forged' or business_segment = 'changed'",
          );
          assertEquals([code, changed.length], [1, 0], stderr);
        }
      });
    }
  }
});

Deno.test("load with VERIFY=count detects a row that a check constraint inserts", async () => {
  await using scene = await createScene();
  await using db = await copyScene(
    scene,
    `create function m_data.doubles(v text) returns boolean language plpgsql as $$ begin
       if v is distinct from 'extra' then
         insert into m_data.closed_deal (mql_id, business_type) select 'extra', 'extra'
         where not exists (select from m_data.closed_deal where business_type = 'extra');
       end if;
       return true; end $$;
     alter table m_data.closed_deal add check (m_data.doubles(business_type)) not valid`,
  );
  const { code, stderr } = await runJson(["load", "--mode", "full"], {
    ...db.environment,
    VERIFY: "count",
  });
  const { held } = await rowsOf(db);
  assertEquals([code, held.length], [1, 5], stderr);
});

Deno.test("load restores its settings after the check of a domain has changed them", async () => {
  await using scene = await createScene();
  await using db = await copyScene(
    scene,
    `create schema hostile; grant usage on schema hostile to public;
     create sequence hostile.calls; grant all on sequence hostile.calls to public;
     create function hostile.xor(bigint, bigint) returns bigint language sql as $$ select nextval('hostile.calls') $$;
     create operator hostile.# (function = hostile.xor, leftarg = bigint, rightarg = bigint);
     create table m_data.seen (name text, value text); grant all on m_data.seen to public;
     create function m_data.changes_settings(v text) returns boolean language plpgsql as $$ begin
       perform set_config('search_path', 'hostile, pg_catalog', true);
       perform set_config('synchronous_commit', 'off', true);
       return true; end $$;
     create domain m_data.checked as text check (m_data.changes_settings(value));
     alter table m_data.closed_deal alter column business_type type m_data.checked;
     create function m_data.note() returns trigger language plpgsql as $$ begin
       insert into m_data.seen select name, current_setting(name)
       from unnest(array['search_path', 'synchronous_commit']) name;
       return null; end $$;
     create trigger note after insert on marketing_data_service.event for each row execute function m_data.note();
     alter sequence hostile.calls restart`,
  );
  const { code, stderr } = await runJson(["load"], db.environment);
  assertEquals(code, 0, stderr);
  const seen = await db.warehouse.unsafe(
    "select name, value from m_data.seen order by name",
  );
  assertEquals(seen.map(({ value }) => value), [
    "pg_catalog, pg_temp",
    "on",
  ]);
  const [calls] = await db.warehouse.unsafe(
    "select is_called from hostile.calls",
  );
  assertEquals(calls!.is_called, false);
});
