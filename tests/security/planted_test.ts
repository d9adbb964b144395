import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { createDatabases, type Sql } from "../support/databases.ts";
import { runJson, runProgram } from "../support/program_here.ts";
import { startServer } from "../support/server.ts";
import { writeTablesFile } from "../support/tables_file.ts";

const ROOT = new URL("../../", import.meta.url);

/** Returns every word of the sources before a parenthesis: it may be a function of the server. */
async function wordsBeforeParentheses(folder = "src/"): Promise<Set<string>> {
  const words = new Set<string>();
  for await (const entry of Deno.readDir(new URL(folder, ROOT))) {
    const path = `${folder}${entry.name}`;
    if (entry.isDirectory) {
      for (const word of await wordsBeforeParentheses(`${path}/`)) {
        words.add(word);
      }
    } else if (/\.(ts|sql)$/.test(path)) {
      const text = await Deno.readTextFile(new URL(path, ROOT));
      for (const [, word] of text.matchAll(/\b([a-z_0-9]+)\s*\(/g)) {
        words.add(word!);
      }
    }
  }
  return words;
}

/** The types in the statements of the program. */
const TYPES =
  `{int2,int4,int8,numeric,float8,oid,xid,text,varchar,name,json,jsonb,bool,timestamptz,timestamp,interval,uuid,regclass,_text,_int8,_oid}`;

/**
 * Creates in `public` an overload of each function and operator, for every
 * combination of argument types with implicit casts to the built-in ones. Each one
 * counts its calls and fails.
 */
async function plant(sql: Sql, names: readonly string[]): Promise<number> {
  await sql.unsafe(`
    set local search_path = pg_catalog;
    create sequence public.planted_calls;
    grant all on sequence public.planted_calls to public;
    do $do$
    declare
      own record; l oid; r oid; arguments text; planted int := 0;
      types oid[] := array(select oid from pg_type where typnamespace = 'pg_catalog'::regnamespace and typname = any ('${TYPES}'::name[]));
      body text := $body$ begin perform nextval('public.planted_calls'); raise exception 'a planted function was called'; end $body$;
    begin
      for own in
        select distinct p.proname, combination.args from pg_proc p, lateral (
          with recursive fits (position, args) as (
            select 0, array[]::oid[]
            union all
            select position + 1, args || t from fits, lateral (
              select t from unnest(types) t
              where (select typtype = 'p' from pg_type where oid = p.proargtypes[position]) or t = p.proargtypes[position]
                or exists (select from pg_cast where castsource = t and casttarget = p.proargtypes[position] and castcontext = 'i')) candidates
            where position < p.pronargs)
          select args from fits where position = p.pronargs limit 400) combination
        where p.pronamespace = 'pg_catalog'::regnamespace and p.prokind in ('f', 'a', 'w') and p.pronargs <= 4
          and p.proname = any ('{${names}}'::name[])
      loop
        arguments := (select coalesce(string_agg(format_type(t, null), ', ' order by n), '') from unnest(own.args) with ordinality a (t, n));
        begin
          execute format('create function public.%I(%s) returns text language plpgsql as %L', own.proname, arguments, body);
          planted := planted + 1;
        exception when duplicate_function then null; end;
      end loop;
      execute format('create function public.planted_operator(anyelement, anyelement) returns boolean language plpgsql as %L', body);
      foreach l in array types loop
        foreach r in array types loop
          execute format('create function public.planted_operator(%s, %s) returns boolean language plpgsql as %L', format_type(l, null), format_type(r, null), body);
          for own in select distinct oprname from pg_operator where oprname = any ('{=,<>,<,<=,>,>=,||,~,!~,~~,+,-,*,/,%,&,|,#,->,->>,?,@>}'::name[]) loop
            execute format('create operator public.%s (leftarg = %s, rightarg = %s, function = public.planted_operator)',
              own.oprname, format_type(l, null), format_type(r, null));
            planted := planted + 1;
          end loop;
        end loop;
      end loop;
      perform setval('public.planted_calls', 1, false);
      create table public.planted_count as select planted;
      -- Relations and types that ours must not be taken for.
      create table public.pg_class (oid oid); create table public.pg_stat_activity (pid int);
      create domain public.xid8 as text;
    end $do$`);
  const [row] = await sql`select planted from public.planted_count`;
  return row!.planted;
}

async function callsOf(sql: Sql): Promise<number> {
  const [row] = await sql
    .unsafe(
      "select case when is_called then last_value else 0 end as calls from public.planted_calls",
    );
  return Number(row!.calls);
}

Deno.test("no function or operator that a role plants in public is called", async (t) => {
  await using db = await createDatabases({ rows: { deals: 30, leads: 40 } });
  const { source, warehouse, environment } = db;
  const names = [...await wordsBeforeParentheses()];
  for (const sql of [source, warehouse]) {
    const planted = await plant(sql, names);
    assert(planted > 3000, `${planted} planted`);
  }
  const checkCalls = async (what: string) => {
    assertEquals(await callsOf(source), 0, `${what}: called in the source`);
    assertEquals(
      await callsOf(warehouse),
      0,
      `${what}: called in the warehouse`,
    );
  };
  const run = (...words: string[]) =>
    t.step(words.join(" "), async () => {
      const { code, stderr } = await runJson(words, {
        ...environment,
        EVENT_PUBLISHER_TYPE: "file",
      });
      await checkCalls(words.join(" "));
      assertEquals(code, 0, stderr);
    });

  await t.step(
    "the planted functions take precedence without the protection",
    async () => {
      const [row] = await warehouse.unsafe(
        "select pg_catalog.count(*) as n from pg_catalog.pg_proc where pronamespace = 'public'::regnamespace::oid and proname::text operator(pg_catalog.=) 'pg_advisory_xact_lock'",
      );
      assert(Number(row!.n) > 0);
    },
  );
  await run("load");
  await run("load", "--mode", "full");
  await source.unsafe(
    "update marketing.closed_deals set business_type = 'x' where ctid operator(pg_catalog.<) '(0,3)'::tid",
  );
  await run("load");
  await source.unsafe(
    "delete from marketing.closed_deals where ctid operator(pg_catalog.=) '(0,5)'::tid",
  );
  await run("load", "--dry-run", "--rows", "5");
  await t.step("verify --rows with a key", async () => {
    await using file = await writeTablesFile(`tables:
  - { source: marketing.closed_deals, target: m_data.closed_deal, key: [mql_id] }
`);
    const { stdout } = await runProgram(["verify", "--rows", "5"], {
      ...environment,
      ...file.variables,
    });
    assertStringIncludes(stdout, "only in the target: mql_id");
    await checkCalls("verify --rows with a key");
  });
  await run("load");
  await run("verify");
  await run("runs");
  await run("events");
  await run("health");
  await run("schema", "ensure");
  await t.step("verify --against-mara", async () => {
    await runProgram(["verify", "--against-mara"], environment);
    await checkCalls("verify --against-mara");
  });
  await t.step("a view in place of the source", async () => {
    await source.unsafe(
      `alter table marketing.closed_deals rename to kept;
       create view marketing.closed_deals as select * from marketing.kept;
       grant select on marketing.closed_deals, marketing.kept to public;
       delete from marketing.kept where ctid operator(pg_catalog.=) '(0,6)'::tid`,
    );
  });
  await run("load", "--dry-run", "--rows", "5");
  await run("load");
  await run("load", "--mode", "full");
  await t.step("a trigger at the target", async () => {
    await warehouse.unsafe(
      `create function m_data.quiet() returns trigger language plpgsql as 'begin return null; end';
       create trigger quiet after insert or delete on m_data.closed_deal for each row execute function m_data.quiet()`,
    );
    await source.unsafe(
      "update marketing.kept set business_type = 'y' where ctid operator(pg_catalog.<) '(0,3)'::tid",
    );
  });
  await run("load");
  await run("load", "--mode", "full");
  await t.step("the service", async () => {
    await using server = await startServer(db, {});
    for (
      const path of ["/health", "/runs", "/events", "/", "/metrics", "/runs/x"]
    ) {
      const response = await server.fetch(path);
      await response.body?.cancel();
    }
    const response = await server.fetch("/load", { method: "POST" });
    assertEquals(response.status, 200, await response.text());
    await checkCalls("the service");
  });
});
