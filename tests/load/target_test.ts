import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import {
  createDatabases,
  type Databases,
  migratedDatabases,
} from "../support/databases.ts";
import { runJson, runProgram } from "../support/program_here.ts";

const ROWS = { deals: 20, leads: 20 };
const LEAD = "m_data.marketing_qualified_lead";
const SCHEMA = "create schema m_data authorization $loader;";
const COLUMNS =
  "mql_id text, first_contact_date timestamptz, landing_page_id text, origin text";
const TABLE =
  `${SCHEMA} create table ${LEAD} (${COLUMNS}); insert into ${LEAD} values ('old');
  alter table ${LEAD} owner to $loader;`;
const ONE = ["--table", "marketing_qualified_lead"];

interface Case {
  readonly name: string;
  readonly warehouse: string;
  readonly code: string;
  readonly says: readonly string[];
  readonly words?: readonly string[];
}

const CASES: readonly Case[] = [
  {
    name: "a generated column",
    warehouse:
      `${SCHEMA} create table ${LEAD} (mql_id text, first_contact_date timestamptz, landing_page_id text,
      origin text generated always as ('x' || mql_id) stored); alter table ${LEAD} owner to $loader`,
    code: "target_incompatible",
    says: [`column "origin"`, "is generated", "DROP EXPRESSION"],
  },
  {
    name: "an identity column",
    warehouse:
      `${SCHEMA} create table ${LEAD} (mql_id int generated always as identity, first_contact_date timestamptz,
      landing_page_id text, origin text); alter table ${LEAD} owner to $loader`,
    code: "target_incompatible",
    says: [`column "mql_id"`, "is integer, not text"],
  },
  {
    name: "a rule in place of DELETE",
    warehouse:
      `${TABLE} create rule keep as on delete to ${LEAD} do instead nothing`,
    code: "target_incompatible",
    says: ["in place of DELETE: keep", "DROP RULE"],
  },
  {
    name: "a rule in place of DELETE, with --recreate",
    warehouse:
      `${TABLE} create rule keep as on delete to ${LEAD} do instead nothing`,
    words: ["--recreate"],
    code: "target_incompatible",
    says: ["in place of DELETE: keep", "DROP RULE"],
  },
  {
    name: "a table without the privilege to insert, with --recreate",
    warehouse: `${TABLE} revoke insert on ${LEAD} from $loader`,
    words: ["--recreate"],
    code: "permission_denied",
    says: ["lacks INSERT on", "Run GRANT SELECT, INSERT, DELETE ON"],
  },
  {
    name: "row-level security that applies to the role, with --recreate",
    warehouse: `${TABLE} alter table ${LEAD} enable row level security;
      alter table ${LEAD} force row level security`,
    words: ["--recreate"],
    code: "permission_denied",
    says: ["row-level security of m_data", "BYPASSRLS"],
  },
  {
    name: "a sequence with the name of the target",
    warehouse:
      `${SCHEMA} create sequence ${LEAD}; alter sequence ${LEAD} owner to $loader`,
    code: "target_incompatible",
    says: ["is not a table but a sequence", "Drop or rename it"],
  },
  {
    name: "an index with the name of the target",
    warehouse:
      `${SCHEMA} create table m_data.other (a int); create index marketing_qualified_lead on m_data.other (a)`,
    code: "target_incompatible",
    says: ["is not a table but an index", "Drop or rename it"],
  },
  {
    name: "a composite type with the name of the target",
    warehouse: `${SCHEMA} create type ${LEAD} as (a int)`,
    code: "target_incompatible",
    says: ["is not a table but a composite type", "Drop or rename it"],
  },
  {
    name: "a domain with the name of the target",
    warehouse: `${SCHEMA} create domain ${LEAD} as text`,
    code: "target_incompatible",
    says: ["is not a table but a type", "Drop or rename it"],
  },
  {
    name: "an enum with the name of the target, with --recreate",
    warehouse: `${SCHEMA} create type ${LEAD} as enum ('a')`,
    words: ["--recreate"],
    code: "target_incompatible",
    says: ["is not a table but a type"],
  },
  {
    name: "a target of another role without the needed grants",
    warehouse:
      `${SCHEMA} create table ${LEAD} (${COLUMNS}); grant select on ${LEAD} to $loader`,
    code: "permission_denied",
    says: [
      "lacks INSERT, DELETE on",
      `GRANT SELECT, INSERT, DELETE ON "m_data"."marketing_qualified_lead" TO "$loader"`,
    ],
  },
  {
    name: "a target with INSERT on some columns only",
    warehouse:
      `${SCHEMA} create table ${LEAD} (${COLUMNS}); grant select, delete, insert (mql_id, origin) on ${LEAD} to $loader`,
    code: "permission_denied",
    says: ["lacks INSERT on"],
  },
  {
    name: "a schema without USAGE",
    warehouse:
      `create schema m_data; create table ${LEAD} (${COLUMNS}); grant all on ${LEAD} to $loader`,
    code: "permission_denied",
    says: ["has no USAGE privilege on schema m_data", "GRANT USAGE ON SCHEMA"],
  },
  {
    name: "a schema without CREATE",
    warehouse: "create schema m_data; grant usage on schema m_data to $loader",
    code: "permission_denied",
    says: [
      "has no privilege to create m_data.marketing_qualified_lead",
      "CREATE ON SCHEMA",
    ],
  },
  {
    name: "row-level security that applies to the role",
    warehouse: `${TABLE} alter table ${LEAD} enable row level security;
      alter table ${LEAD} force row level security`,
    code: "permission_denied",
    says: ["row-level security of m_data", "BYPASSRLS"],
  },
  {
    name: "a published target without a replica identity",
    warehouse: `${TABLE} create publication everything for all tables`,
    code: "target_incompatible",
    says: ["is published and has no replica identity", "REPLICA IDENTITY FULL"],
  },
  {
    name: "a NOT NULL column with NULLs in the source",
    warehouse: `${TABLE} alter table ${LEAD} alter column origin set not null`
      .replace("values ('old')", "values ('old', null, null, 'x')"),
    code: "constraint_violated",
    says: ["origin"],
  },
];

/** Runs SQL as superuser in the warehouse. Replaces the names of the roles. */
function inWarehouse(db: Databases, sql: string) {
  return db.warehouse.unsafe(sql.replaceAll("$loader", db.loader));
}

for (const { name, warehouse, code, says, words = [] } of CASES) {
  Deno.test(`load and load --dry-run report a target that cannot be written: ${name}`, async () => {
    await using db = await migratedDatabases({ rows: ROWS });
    await db.source.unsafe(
      "update marketing.marketing_qualified_leads set origin = null where mql_id = md5('lead1')",
    );
    await inWarehouse(db, warehouse);
    const state = () =>
      db.warehouse.unsafe(
        `select relname::text, relkind::text, oid from pg_class where relnamespace = 'm_data'::regnamespace order by 1`,
      );
    const before = await state();
    for (const mode of [["--dry-run"], []]) {
      const result = await runJson(
        ["load", ...ONE, ...mode, ...words],
        { ...db.environment, RETRY_ATTEMPTS: "1" },
      );
      assertEquals(result.code, 1, result.stdout + result.stderr);
      const [entry] = mode.length > 0
        ? result.json.tables
        : result.json.details.results;
      assertEquals(entry.code, code, result.stdout);
      for (const part of says) {
        assertStringIncludes(
          entry.error,
          part.replaceAll("$loader", db.loader),
        );
      }
    }
    assertEquals([...await state()], [...before]);
  });
}

Deno.test("load names an event trigger that changes the owner of new tables", async () => {
  await using db = await migratedDatabases({ rows: ROWS });
  assertEquals((await runProgram(["load"], db.environment)).code, 0);
  await inWarehouse(
    db,
    `drop table ${LEAD};
     create function public.take_over() returns event_trigger language plpgsql security definer as $f$
       declare command record;
       begin for command in select * from pg_event_trigger_ddl_commands() where object_type = 'table' loop
         execute format('alter table %s owner to postgres', command.object_identity);
       end loop; end $f$;
     create event trigger take_over on ddl_command_end when tag in ('CREATE TABLE')
       execute function public.take_over()`,
  );
  const { code, json } = await runJson(["load", ...ONE], {
    ...db.environment,
    RETRY_ATTEMPTS: "1",
  });
  assertEquals(code, 1);
  const [entry] = json.details.results;
  assertEquals(entry.code, "permission_denied");
  assertStringIncludes(entry.message, `belongs to role "postgres"`);
  assertStringIncludes(entry.remedy, "event trigger");
  assertStringIncludes(entry.remedy, "take_over");
});

Deno.test("load names an event trigger that changes the owner of the history", async () => {
  await using db = await createDatabases({ rows: ROWS });
  await inWarehouse(
    db,
    `create function public.take_over() returns event_trigger language plpgsql security definer as $f$
       declare command record;
       begin for command in select * from pg_event_trigger_ddl_commands() where object_type = 'schema' loop
         execute format('alter schema %s owner to postgres', command.object_identity);
       end loop; end $f$;
     create event trigger take_over on ddl_command_end when tag in ('CREATE SCHEMA')
       execute function public.take_over()`,
  );
  const { code, json } = await runJson(["load"], db.environment);
  assertEquals([code, json.code], [1, "permission_denied"]);
  assertStringIncludes(
    json.error,
    "event trigger that changes owners (take_over)",
  );
});

Deno.test("schema ensure reports another object with the name of a target", async () => {
  await using db = await migratedDatabases({ rows: ROWS });
  await inWarehouse(db, `${SCHEMA} create sequence ${LEAD}`);
  const { code, json } = await runJson(["schema", "ensure"], db.environment);
  assertEquals([code, json.code], [1, "target_incompatible"]);
  assertStringIncludes(json.error, "is not a table but a sequence");
});

Deno.test("load compares domains by their base types on both sides", async () => {
  await using db = await migratedDatabases({ rows: ROWS });
  await db.source.unsafe(`
    create domain public.name as text check (value <> 'never');
    create domain public.whole as numeric(12, 2);
    create domain public.price as public.whole check (value > -1e9);
    create domain public.ratio as double precision;
    create domain public.day as date;
    create domain public.moment as timestamptz;
    alter table marketing.closed_deals alter column won_date type public.moment,
      alter column declared_monthly_revenue type public.price,
      alter column declared_product_catalog_size type public.ratio, alter column lead_type type public.name;
    alter table marketing.marketing_qualified_leads alter column first_contact_date type public.day`);
  await inWarehouse(
    db,
    `${SCHEMA}
     create domain public.label as text;
     create domain public.label2 as public.label check (value <> 'never');
     create domain public.moment as timestamptz;
     create domain public.ratio as double precision check (value > -1e9);
     create table m_data.closed_deal (mql_id public.label2, seller_id text, sdr_id text, sr_id text, won_date public.moment,
       business_segment text, lead_type text, lead_behaviour_profile text, has_company text, has_gtin text,
       average_stock text, business_type text, declared_product_catalog_size float8,
       declared_monthly_revenue public.ratio);
     create table ${LEAD} (mql_id public.label, first_contact_date public.moment, landing_page_id text, origin text);
     alter table m_data.closed_deal owner to $loader; alter table ${LEAD} owner to $loader`,
  );
  const first = await runJson(["load"], db.environment);
  assertEquals(first.code, 0, first.stdout);
  await db.source.unsafe(
    "update marketing.closed_deals set declared_monthly_revenue = 12.5 where mql_id = (select min(mql_id) from marketing.closed_deals)",
  );
  for (const words of [["load"], ["load", "--mode", "full"], ["verify"]]) {
    const { code, stdout } = await runProgram(words, db.environment);
    assertEquals(code, 0, stdout);
  }
  const [source] = await db.source.unsafe(
    "select md5(string_agg(mql_id || won_date::text || declared_monthly_revenue::float8::text, ',' order by mql_id, seller_id)) as sum from marketing.closed_deals",
  );
  const [target] = await db.warehouse.unsafe(
    "select md5(string_agg(mql_id || won_date::text || declared_monthly_revenue::text, ',' order by mql_id, seller_id)) as sum from m_data.closed_deal",
  );
  assertEquals({ ...source }, { ...target });
});

Deno.test("load reports a target domain that refuses a value, and a domain over another type", async () => {
  await using db = await migratedDatabases({ rows: ROWS });
  await inWarehouse(
    db,
    `${SCHEMA} create domain public.short as text check (length(value) < 5);
     create domain public.day as date;
     create table ${LEAD} (mql_id public.short, first_contact_date timestamptz, landing_page_id text, origin text);
     create table m_data.closed_deal (mql_id text, seller_id text, sdr_id text, sr_id text, won_date public.day,
       business_segment text, lead_type text, lead_behaviour_profile text, has_company text, has_gtin text,
       average_stock text, business_type text, declared_product_catalog_size float8, declared_monthly_revenue float8);
     alter table ${LEAD} owner to $loader; alter table m_data.closed_deal owner to $loader`,
  );
  const { code, json } = await runJson(["load"], db.environment);
  assertEquals(code, 1);
  const [deal, lead] = json.details.results;
  assertEquals([deal.code, lead.code], [
    "target_incompatible",
    "constraint_violated",
  ]);
  assertStringIncludes(deal.message, "(date), not timestamp with time zone");
});

Deno.test("load --recreate keeps objects with similar names, and needs no temporary name", async () => {
  await using db = await migratedDatabases({ rows: ROWS });
  assertEquals((await runProgram(["load"], db.environment)).code, 0);
  await inWarehouse(
    db,
    `create table ${LEAD}__recreate (note text); insert into ${LEAD}__recreate values ('kept')`,
  );
  const { code, stdout } = await runProgram(
    ["load", "--recreate"],
    db.environment,
  );
  assertEquals(code, 0, stdout);
  const kept = await db.warehouse.unsafe(`select note from ${LEAD}__recreate`);
  assertEquals(kept.map(({ note }) => note), ["kept"]);
});

Deno.test("load --recreate names the session that locks the table", async () => {
  await using db = await migratedDatabases({ rows: ROWS });
  assertEquals((await runProgram(["load"], db.environment)).code, 0);
  await using reader = db.connect("warehouse");
  await reader.unsafe(`begin; select count(*) from ${LEAD}`);
  const { code, json } = await runJson(["load", "--recreate", ...ONE], {
    ...db.environment,
    LOCK_TIMEOUT: "0.3",
    RETRY_ATTEMPTS: "1",
  });
  assertEquals(code, 1);
  const [entry] = json.details.results;
  assertEquals(entry.code, "target_locked");
  assertStringIncludes(entry.message, "is used by another session");
  await reader.unsafe("rollback");
});

/** Returns all properties of a table, as PostgreSQL describes them. */
const BELONGINGS = `
  select 'owner' as what, pg_get_userbyid(relowner)::text as is from pg_class where oid = $1::regclass
  union all select 'privileges', a::text from pg_class, unnest(relacl) a where oid = $1::regclass
  union all select 'column privileges', attname || ' ' || a::text from pg_attribute, unnest(attacl) a where attrelid = $1::regclass
  union all select 'identity', relreplident::text from pg_class where oid = $1::regclass
  union all select 'options', array_to_string(reloptions, ',') from pg_class where oid = $1::regclass
  union all select 'persistence', relpersistence::text from pg_class where oid = $1::regclass
  union all select 'security', relrowsecurity::text || relforcerowsecurity::text from pg_class where oid = $1::regclass
  union all select 'index', pg_get_indexdef(indexrelid) || indisclustered::text || indisreplident::text from pg_index where indrelid = $1::regclass
  union all select 'constraint', conname || ' ' || pg_get_constraintdef(oid) from pg_constraint where conrelid = $1::regclass
  union all select 'trigger', pg_get_triggerdef(oid) || tgenabled::text from pg_trigger where tgrelid = $1::regclass and not tgisinternal
  union all select 'rule', pg_get_ruledef(oid) || ev_enabled::text from pg_rewrite where ev_class = $1::regclass
  union all select 'policy', polname || polcmd::text || polpermissive::text || coalesce(pg_get_expr(polqual, polrelid), '')
    || coalesce(pg_get_expr(polwithcheck, polrelid), '') || polroles::text from pg_policy where polrelid = $1::regclass
  union all select 'statistics', pg_get_statisticsobjdef(oid) from pg_statistic_ext where stxrelid = $1::regclass
  union all select 'column', concat_ws(' ', attname, attnotnull, attstattarget, attoptions, attstorage, attcompression,
    pg_get_expr(adbin, adrelid)) from pg_attribute left join pg_attrdef on adrelid = attrelid and adnum = attnum
    where attrelid = $1::regclass and attnum > 0 and not attisdropped
  union all select 'type', concat_ws(' ', attname, format_type(atttypid, atttypmod), collname)
    from pg_attribute left join pg_collation c on c.oid = attcollation
    where attrelid = $1::regclass and attnum > 0 and not attisdropped
  union all select 'table', concat_ws(' ', amname, format_type(nullif(reloftype, 0), null), spcname)
    from pg_class c join pg_am m on m.oid = relam left join pg_tablespace t on t.oid = reltablespace where c.oid = $1::regclass
  union all select 'index storage', concat_ws(' ', relname, spcname, reloptions, (
      select string_agg(attstattarget::text, ' ' order by attnum) from pg_attribute where attrelid = c.oid and attstattarget >= 0))
    from pg_index join pg_class c on c.oid = indexrelid left join pg_tablespace t on t.oid = reltablespace
    where indrelid = $1::regclass
  union all select 'statistics target', stxname || ' ' || coalesce(stxstattarget, -1) from pg_statistic_ext where stxrelid = $1::regclass
  union all select 'comment', description || objsubid::text from pg_description
    where objoid = $1::regclass or objoid in (select indexrelid from pg_index where indrelid = $1::regclass)
      or objoid in (select oid from pg_constraint where conrelid = $1::regclass)
      or objoid in (select oid from pg_trigger where tgrelid = $1::regclass)
      or objoid in (select oid from pg_policy where polrelid = $1::regclass)
      or objoid in (select oid from pg_rewrite where ev_class = $1::regclass)
      or objoid in (select oid from pg_statistic_ext where stxrelid = $1::regclass)
  union all select 'publication', row(p.*)::text from pg_publication_tables p where tablename = split_part($1::regclass::text, '.', 2)
  order by 1, 2`;

Deno.test("load --recreate keeps all properties of the table", async () => {
  await using db = await migratedDatabases({ rows: ROWS });
  assertEquals((await runProgram(["load"], db.environment)).code, 0);
  const [version] = await db.warehouse.unsafe(
    "select current_setting('server_version_num')::int / 10000 as major",
  );
  const columnLists = version!.major >= 15;
  await inWarehouse(
    db,
    `create role "$loader_other"; create role "$loader_third"; create role "$loader_owners";
     grant "$loader_owners" to $loader; grant create on schema m_data to "$loader_owners";
     create table public.origins (origin text primary key);
     insert into public.origins select distinct origin from ${LEAD} where origin is not null;
     grant references, select on public.origins to "$loader_owners", $loader;
     create function public.note() returns trigger language plpgsql as $f$ begin return new; end $f$;
     create table public.log (id text);
     grant insert on public.log to "$loader_owners";
     alter table ${LEAD} set (fillfactor = 71, autovacuum_enabled = off, toast.autovacuum_enabled = off),
       alter column origin set default 'unknown', alter column mql_id set not null,
       alter column mql_id set statistics 77, alter column mql_id set (n_distinct = -1),
       alter column landing_page_id set storage external, alter column origin set compression pglz,
       add constraint lead_key primary key (mql_id),
       add constraint "Of 'age" check (first_contact_date > '1900-01-01'),
       add constraint lead_origin foreign key (origin) references public.origins,
       add constraint lead_self foreign key (mql_id) references ${LEAD};
     create unique index "By ""page" on ${LEAD} (mql_id, (lower(landing_page_id))) where origin <> 'x';
     create unique index lead_identity on ${LEAD} (mql_id);
     alter table ${LEAD} replica identity using index lead_identity, cluster on lead_identity;
     create statistics m_data.lead_stats on landing_page_id, origin from ${LEAD};
     create trigger note before insert on ${LEAD} for each row when (new.origin = 'x') execute function public.note();
     create trigger silent after insert on ${LEAD} for each row execute function public.note();
     create constraint trigger late after insert on ${LEAD} deferrable initially deferred for each row execute function public.note();
     alter table ${LEAD} disable trigger silent;
     create rule logged as on update to ${LEAD} do also insert into public.log values (new.mql_id);
     create policy few on ${LEAD} for select to "$loader_other" using (origin = 'x');
     create policy narrow on ${LEAD} as restrictive for insert with check (origin <> 'y');
     alter table ${LEAD} enable row level security;
     comment on table ${LEAD} is 'the ''leads'''; comment on column ${LEAD}.origin is 'from';
     comment on index m_data.lead_identity is 'an index'; comment on constraint lead_key on ${LEAD} is 'a key';
     comment on trigger note on ${LEAD} is 'a trigger'; comment on policy few on ${LEAD} is 'a policy';
     comment on rule logged on ${LEAD} is 'a rule'; comment on statistics m_data.lead_stats is 'statistics';
     grant select on ${LEAD} to public; grant select, insert on ${LEAD} to "$loader_other" with grant option;
     grant update (origin), references (mql_id) on ${LEAD} to "$loader_third" with grant option;
     revoke truncate on ${LEAD} from $loader;
     create publication leads for table ${LEAD} ${
      columnLists ? "(mql_id, origin) where (mql_id <> 'none')" : ""
    };
     alter publication leads owner to $loader;
     alter table ${LEAD} owner to "$loader_owners";
     alter default privileges for role $loader in schema m_data grant all on tables to "$loader_third"`,
  );
  const describe = async () =>
    (await db.warehouse.unsafe(BELONGINGS, [LEAD])).map(({ what, is }) =>
      `${what}: ${is}`
    );
  const before = await describe();
  assert(before.length > 35, before.join("\n"));
  const [{ oid: oldOid }] = await db.warehouse.unsafe(
    `select '${LEAD}'::regclass::oid as oid`,
  ) as unknown as [{ oid: number }];
  const recreated = await runJson(["load", "--recreate"], db.environment);
  assertEquals(recreated.code, 0, recreated.stdout + recreated.stderr);
  assertEquals(await describe(), before);
  const [{ oid }] = await db.warehouse.unsafe(
    `select '${LEAD}'::regclass::oid as oid`,
  ) as unknown as [{ oid: number }];
  assert(oid !== oldOid);
  await db.warehouse.unsafe(
    `drop publication leads; drop schema m_data cascade;
     drop owned by "${db.loader}_other", "${db.loader}_third", "${db.loader}_owners";
     drop role "${db.loader}_other", "${db.loader}_third", "${db.loader}_owners"`,
  );
});

Deno.test("load --recreate keeps domains, collations and the storage of indexes", async () => {
  await using db = await migratedDatabases({ rows: ROWS });
  await using admin = db.connect("warehouse");
  const space = `${db.loader}_space`;
  await admin.unsafe("set allow_in_place_tablespaces = on");
  await admin.unsafe(`create tablespace ${space} location ''`);
  const [version] = await admin.unsafe(
    "select current_setting('server_version_num')::int / 10000 as major",
  );
  const method = version!.major >= 15 ? "using heap_again" : "";
  await inWarehouse(
    db,
    `${SCHEMA} grant create on tablespace ${space} to $loader;
     create access method heap_again type table handler heap_tableam_handler;
     create domain m_data.id as text collate "C" check (value <> '');
     create table ${LEAD} (mql_id m_data.id, first_contact_date timestamptz, landing_page_id text collate "C",
       origin varchar collate "POSIX", constraint lead_key primary key (mql_id) with (fillfactor = 71)
       using index tablespace ${space}) ${method};
     create index lead_page on ${LEAD} (landing_page_id, lower(origin)) with (fillfactor = 72) tablespace ${space};
     alter index m_data.lead_page alter column 2 set statistics 73;
     create statistics m_data.lead_stats on landing_page_id, origin from ${LEAD};
     alter statistics m_data.lead_stats set statistics 74;
     alter statistics m_data.lead_stats owner to $loader;
     alter table ${LEAD} alter column mql_id set storage external;
     alter table ${LEAD} alter column origin type text collate "POSIX";
     alter table ${LEAD} owner to $loader`,
  );
  const describe = async () =>
    (await db.warehouse.unsafe(BELONGINGS, [LEAD])).map(({ what, is }) =>
      `${what}: ${is}`
    );
  const before = await describe();
  const recreated = await runJson(
    ["load", "--recreate", ...ONE],
    db.environment,
  );
  assertEquals(recreated.code, 0, recreated.stdout + recreated.stderr);
  assertEquals(await describe(), before);
  const next = await runJson(["load", ...ONE], db.environment);
  assertEquals(next.code, 0, next.stdout + next.stderr);

  await inWarehouse(
    db,
    `drop table ${LEAD}; create type m_data.lead as (${COLUMNS}); alter type m_data.lead owner to $loader;
     create table ${LEAD} of m_data.lead; alter table ${LEAD} owner to $loader`,
  );
  const typed = await describe();
  const again = await runJson(["load", "--recreate", ...ONE], db.environment);
  assertEquals(again.code, 0, again.stdout + again.stderr);
  assertEquals(await describe(), typed);
  await admin.unsafe("drop schema m_data cascade");
  await admin.unsafe(`drop tablespace ${space}`);
});

Deno.test("load --recreate keeps the replica identity of a published table, so that the next load can delete", async () => {
  await using db = await migratedDatabases({ rows: ROWS });
  assertEquals((await runProgram(["load"], db.environment)).code, 0);
  await inWarehouse(
    db,
    `create publication everything for all tables;
     alter table ${LEAD} replica identity full; alter table m_data.closed_deal replica identity full;
     alter table marketing_data_service.table_load replica identity full`,
  );
  const first = await runProgram(["load", "--recreate"], db.environment);
  assertEquals(first.code, 0, first.stdout + first.stderr);
  await db.source.unsafe(
    "delete from marketing.marketing_qualified_leads where mql_id = md5('lead1')",
  );
  const next = await runJson(["load", ...ONE], db.environment);
  assertEquals(next.code, 0, next.stdout + next.stderr);
  assertEquals(next.json.results.results[0].rows_deleted > 0, true);
});

const LOSSES: readonly (readonly [string, string, string])[] = [
  ["a view", `create view public.v as select * from ${LEAD}`, "view public.v"],
  [
    "a materialized view",
    `create materialized view public.v as select origin from ${LEAD}`,
    "materialized view public.v",
  ],
  [
    "a foreign key from elsewhere",
    `alter table ${LEAD} add primary key (mql_id);
     create table public.child (id text references ${LEAD})`,
    "constraint child_id_fkey on table public.child",
  ],
  [
    "a function that returns its rows",
    `create function public.f() returns setof ${LEAD} language sql as 'select * from ${LEAD}'`,
    "function public.f()",
  ],
  [
    "a policy of another table",
    `create table public.other (id text);
     create policy p on public.other using (exists (select from ${LEAD} where mql_id = id))`,
    "policy p on table public.other",
  ],
  [
    "its place in another table's partitions",
    `create table public.parent (${COLUMNS}) partition by list (mql_id);
     alter table public.parent attach partition ${LEAD} default`,
    "its place under public.parent",
  ],
  [
    "inheritance",
    `create table public.parent (mql_id text); alter table ${LEAD} inherit public.parent`,
    "its place under public.parent",
  ],
  [
    "a publication of another role",
    `create publication theirs for table ${LEAD}`,
    "its place in publication theirs",
  ],
  [
    "an index on a column that the new table lacks",
    `alter table ${LEAD} add column note text; create index noted on ${LEAD} (note)`,
    "noted on column note",
  ],
  [
    "an owned sequence",
    `create sequence public.numbers; alter sequence public.numbers owner to $loader;
     alter sequence public.numbers owned by none; alter table ${LEAD} add column n int;
     alter sequence public.numbers owner to $loader; create sequence m_data.s;
     alter sequence m_data.s owner to $loader; alter sequence m_data.s owned by ${LEAD}.n`,
    "sequence m_data.s",
  ],
  [
    "another owner",
    `alter table ${LEAD} owner to postgres; grant all on ${LEAD} to $loader`,
    "its owner, role postgres",
  ],
  [
    "a domain that the role may not use",
    `create domain public.origin as text; revoke usage on type public.origin from public;
     alter table ${LEAD} alter column origin type public.origin`,
    "type public.origin of column origin, which role",
  ],
  [
    "a domain in a schema that the role may not use",
    `create schema hidden; create domain hidden.origin as text;
     alter table ${LEAD} alter column origin type hidden.origin`,
    "type hidden.origin of column origin, which role",
  ],
];

for (const [name, sql, loss] of LOSSES) {
  Deno.test(`load --recreate names objects that it cannot keep before it drops anything: ${name}`, async () => {
    await using db = await migratedDatabases({ rows: ROWS });
    assertEquals((await runProgram(["load"], db.environment)).code, 0);
    await inWarehouse(db, sql);
    const oid = () =>
      db.warehouse.unsafe(`select '${LEAD}'::regclass::oid as oid`);
    const before = await oid();
    for (const words of [["--dry-run"], []]) {
      const { code, json, stdout } = await runJson(
        ["load", "--recreate", ...ONE, ...words],
        db.environment,
      );
      assertEquals(code, 1, stdout);
      const [entry] = words.length > 0 ? json.tables : json.details.results;
      assertEquals(entry.code, "target_in_use", stdout);
      assertStringIncludes(entry.error, "cannot be recreated without a loss");
      assertStringIncludes(entry.error, loss);
      assertStringIncludes(entry.error, "Drop or detach the named objects");
    }
    assertEquals([...await oid()], [...before]);
  });
}
