import {
  assertEquals,
  assertMatch,
  assertNotEquals,
  assertStringIncludes,
} from "@std/assert";
import { RunPage } from "../../src/http/pages/run_page.tsx";
import { findRun } from "../../src/runs/history.ts";
import { enqueueRun } from "../../src/runs/queue.ts";
import { Metrics } from "../../src/service/metrics.ts";
import { ALL, contextOf, migratedDatabases } from "../support/databases.ts";
import { runJson, runProgram } from "../support/program_here.ts";
import { writeTablesFile } from "../support/tables_file.ts";

Deno.test("load removes no more rows than MAX_SHRINK allows", async (t) => {
  await using db = await migratedDatabases({ withoutTables: true });
  const { source, warehouse } = db;
  await source.unsafe(
    `create schema shop;
     create table shop.items as select i as id, i % 20 as part from generate_series(1, 1000) i;
     create table shop.prices as table shop.items;
     create table shop.few as table shop.items limit 99;
     grant usage on schema shop to "${db.reader}";
     grant select on all tables in schema shop to "${db.reader}"`,
  );
  const declare = (where: string) =>
    writeTablesFile(`tables:
  - { source: shop.items, target: raw.items${where} }
  - { source: shop.prices, target: raw.prices, max_shrink: 0.7 }
  - { source: shop.few, target: raw.few }
`);
  await using file = await declare("");
  const run = (words: readonly string[], variables = file.variables) =>
    runJson(["load", ...words], { ...db.environment, ...variables });
  const rows = async (table: string) =>
    (await warehouse.unsafe(`select count(*)::int as n from raw.${table}`))[0]!
      .n;
  const refill = () =>
    source.unsafe(
      `truncate shop.items, shop.prices;
       insert into shop.items select i, i % 20 from generate_series(1, 1000) i;
       insert into shop.prices table shop.items`,
    );
  /** Loads the items, and expects a refusal that changes nothing. */
  const refuse = async (
    words: readonly string[],
    reason: string,
    variables = file.variables,
  ) => {
    const before = await rows("items");
    const { code, json, stderr } = await run(words, variables);
    assertEquals(code, 1, stderr);
    const [entry] = json.details?.results ?? json.tables;
    assertEquals(entry.code, "would_shrink", JSON.stringify(json));
    assertStringIncludes(entry.error, reason);
    assertStringIncludes(entry.error, "--allow-shrink --table NAME");
    assertStringIncludes(
      entry.error,
      '{"allow_shrink": true, "tables": ["NAME"]}',
    );
    assertEquals(await rows("items"), before);
    return json;
  };
  assertEquals((await run([])).code, 0);

  await t.step("a truncated source", async () => {
    await source.unsafe("truncate shop.items, shop.few");
    const reason =
      "the source has 0 rows where raw.items has 1,000, and MAX_SHRINK=0.9 requires at least 100";
    const { details } = await refuse([], reason);
    assertEquals(details.successful_tables, 2);
    assertEquals(await rows("few"), 0, "99 rows are not guarded");
    await refuse(["--table", "items", "--dry-run"], reason);
  });
  await t.step("a source cut to 5 %, in every mode", async () => {
    await source.unsafe(
      "insert into shop.items select i from generate_series(1, 50) i",
    );
    const reason = "the source has 50 rows where raw.items has 1,000";
    for (const flags of [[], ["--mode", "full"], ["--recreate"]]) {
      await refuse(["--table", "items", ...flags], reason);
      await refuse(["--table", "items", "--dry-run", ...flags], reason);
    }
    const { details } = await refuse(["--atomic"], reason);
    assertEquals(
      details.results.map(({ code }: { code: string }) => code),
      ["would_shrink", "rolled_back", "rolled_back"],
    );
    await using narrow = await declare(', where: "part = 3"');
    await refill();
    await refuse(
      ["--table", "items"],
      "the source has 50 rows where raw.items has 1,000",
      narrow.variables,
    );
  });
  await t.step("exactly the limit, of the variable and the table", async () => {
    await source.unsafe(
      "delete from shop.items where id > 100; delete from shop.prices where id > 299",
    );
    const { json } = await run([]);
    assertEquals(await rows("items"), 100);
    assertMatch(
      json.error,
      /raw\.prices has 1,000, and max_shrink=0\.7 .* 300\b/,
    );
    await source.unsafe("insert into shop.prices select 300");
    assertEquals((await run([])).code, 0);
    assertEquals(await rows("prices"), 300);
  });
  await t.step("rows of a target that no load has written", async () => {
    await warehouse.unsafe("drop table raw.items");
    await warehouse.unsafe(
      `create table raw.items as select i as id, 0 as part from generate_series(1, 5000) i;
       alter table raw.items owner to "${db.loader}"`,
    );
    await refuse(
      ["--table", "items"],
      "has 100 rows where raw.items has 5,000",
    );
    const { allow_shrink } = await allowed(["--recreate"]);
    assertEquals(allow_shrink, true);
  });
  await t.step("--allow-shrink and MAX_SHRINK=1 allow any number", async () => {
    await source.unsafe("truncate shop.items");
    assertEquals(
      (await run(["--table", "items", "--dry-run", "--allow-shrink"])).code,
      0,
    );
    await allowed([]);
    assertEquals(await rows("items"), 0);
    await source.unsafe("truncate shop.prices");
    const one = { ...file.variables, MAX_SHRINK: "1" };
    assertMatch((await run([], one)).json.error, /max_shrink=0\.7/);
    assertEquals(
      (await run(["--table", "prices", "--allow-shrink"])).code,
      0,
    );
  });
  await t.step(
    "requests with different limits do not share a run",
    async () => {
      await using context = contextOf(db);
      const enqueue = (allowShrink: boolean) =>
        enqueueRun(
          context.warehouse,
          { ...ALL, id: crypto.randomUUID(), trigger: "http", allowShrink },
          null,
          "a",
        );
      const [careful, free, again] = [
        await enqueue(false),
        await enqueue(true),
        await enqueue(true),
      ];
      assertEquals([careful.id === free.id, free.id === again.id], [
        false,
        true,
      ]);
    },
  );

  /** Loads the items with the flag, and returns the run of the history. */
  async function allowed(words: readonly string[]) {
    const { code, json } = await run([
      "--table",
      "items",
      "--allow-shrink",
      ...words,
    ]);
    assertEquals(code, 0, JSON.stringify(json));
    const stored = await runJson(["runs", "--id", json.run_id], {
      ...db.environment,
      ...file.variables,
    });
    return stored.json;
  }
});

Deno.test("load makes rows visible only if the checks of their table hold", async (t) => {
  await using db = await migratedDatabases({ withoutTables: true });
  const { source, warehouse } = db;
  await source.unsafe(
    `create schema shop;
     create table shop.orders as select i as id, i % 7 as part, 1.5 * i as price from generate_series(1, 500) i;
     create table shop.customers as select i as id, 'name ' || i as name from generate_series(1, 300) i;
     grant usage on schema shop to "${db.reader}";
     grant select on all tables in schema shop to "${db.reader}"`,
  );
  await warehouse.unsafe(
    `create function public.writes() returns boolean language plpgsql as $$ begin
       insert into raw.orders values (0, 0, 0); return true; end $$;
     create function public.unsets() returns boolean language plpgsql as $$ begin
       perform set_config('search_path', 'public', false), set_config('statement_timeout', '1', false);
       return true; end $$`,
  );
  /** Runs a command with these checks of the orders. */
  const run = async (
    checks: string,
    words = ["load"],
    variables: Record<string, string> = {},
  ) => {
    await using file = await writeTablesFile(`tables:
  - { source: shop.orders, target: raw.orders, checks: ${checks} }
  - source: shop.customers
    target: raw.customers
    columns: { id: int, name: text }
    checks: [{ not_null: [id, name] }, { unique: [id] }]
`);
    return await runJson(words, {
      ...db.environment,
      ...file.variables,
      ...variables,
    });
  };
  const held = async () =>
    (await warehouse.unsafe(
      `select (select md5(string_agg(o::text, ',' order by o)) from raw.orders o) as orders,
         (select md5(string_agg(c::text, ',' order by c)) from raw.customers c) as customers`,
    ))[0]!;
  /** Expects that the orders keep their rows and the customers are loaded. */
  const refuse = async (
    checks: string,
    reason: RegExp,
    words = ["load"],
    variables: Record<string, string> = {},
  ) => {
    const before = await held();
    const { code, json, stderr } = await run(checks, words, variables);
    assertEquals(code, 1, stderr);
    const [orders, customers] = json.details.results;
    assertEquals(orders.code, "check_failed", json.error);
    assertMatch(orders.error, reason);
    assertMatch(orders.error, /^Cannot load orders: check .* does not hold: /);
    assertEquals((await held()).orders, before.orders);
    return { customers, before, error: orders.error as string };
  };
  const change = () =>
    source.unsafe(
      "update shop.orders set price = price + 1; update shop.customers set name = name || '!'",
    );
  const HOLDING =
    `[{ not_null: [id, part] }, { not_null: [price] }, { unique: [id, part] },
      { sql: "select min(price) > 0 from raw.orders" }, { sql: "select public.unsets()" }, { sql: "select 'a${
      "🚀".repeat(90)
    }' <> ''" }]`;

  await t.step(
    "the event, the history, the page and the metrics show checks that hold",
    async () => {
      const names = [
        "not_null (id, part)",
        "not_null (price)",
        "unique (id, part)",
        "sql (select min(price) > 0 from raw.orders)",
        "sql (select public.unsets())",
        `sql (select 'a${"🚀".repeat(71)}…)`,
      ];
      for (
        const words of [["load"], ["load", "--atomic"], ["load", "--recreate"]]
      ) {
        const { json: event, stderr } = await run(HOLDING, words);
        assertEquals(event.status, "success", stderr);
        const [orders, customers] = event.results.integrity_checks;
        assertEquals(
          orders.checks,
          names.map((check) => ({ check, ok: true })),
        );
        assertEquals(customers.checks.length, 2);
        await using context = contextOf(db);
        const stored = (await findRun(context.warehouse, event.run_id))!;
        assertEquals(stored.table_loads[1]!.integrity_check, orders);
        assertEquals(stored.table_loads[1]!.phases.at(-1)!.phase, "check");
        const page = RunPage({
          now: new Date(),
          run: stored,
          live: undefined,
          tables: [],
          rows: new Map(),
        });
        assertStringIncludes(String(page), "unique (id, part); sql (select");
        const metrics = metricsOf(["orders"]);
        metrics.runEnded(event);
        assertStringIncludes(
          (await metrics.text()).body,
          'marketing_data_checks_total{table="orders",outcome="held"} 6',
        );
      }
    },
  );
  await t.step("a check that fails in one of two tables", async () => {
    await change();
    const checks =
      `[{ sql: "select max(price) < 100 from raw.orders" }, { unique: [part] }]`;
    const reason =
      /sql \(select max.*\) does not hold: it is FALSE; check unique \(part\) does not hold: \d occurs in \d\d rows/;
    const { customers, before } = await refuse(checks, reason);
    assertEquals(customers.rows_inserted, 300);
    await change();
    const after = await held();
    assertNotEquals(after.customers, before.customers);
    for (const flag of ["--atomic", "--recreate"]) {
      const { customers } = await refuse(checks, reason, ["load", flag]);
      assertEquals(
        customers.code,
        flag === "--atomic" ? "rolled_back" : undefined,
      );
      if (flag === "--atomic") assertEquals(await held(), after);
    }
    const metrics = metricsOf(["orders"]);
    metrics.runEnded((await run(checks)).json);
    assertStringIncludes(
      (await metrics.text()).body,
      'marketing_data_checks_total{table="orders",outcome="failed"} 1',
    );
  });
  await t.step("duplicates and NULL of the source", async () => {
    await source.unsafe(
      `insert into shop.orders select i, 1, 1 from generate_series(1, 7) i, generate_series(1, i);
       insert into shop.orders values (null, 1, 1), (null, 1, 1)`,
    );
    await refuse(
      "[{ unique: [id] }]",
      /unique \(id\) does not hold: 7 occurs in 8 rows, 6 occurs in 7 rows, .* 3 occurs in 4 rows, there are more such keys\./,
    );
    await refuse(
      "[{ not_null: [part, id] }]",
      /not_null \(part, id\) does not hold: "id" is NULL in 2 rows\./,
    );
    await source.unsafe(
      "delete from shop.orders where price = 1 or id is null",
    );
  });
  await t.step(
    "checks that fail, write, or answer something else",
    async () => {
      const cases: Record<string, RegExp> = {
        "select 1 / (count(*) - count(*)) > 0 from raw.orders":
          /division by zero/,
        "select public.writes()": /it writes, and a check may only read/,
        "select count(*) > 0 from orders": /relation "orders" does not exist/,
        "with gone as (delete from raw.orders returning 1) select true from gone":
          /data-modifying statement/,
        "select true, true": /only one column/,
        "select id > 0 from raw.orders": /it returns several rows, not one/,
        "select true where false": /it returns no row, not one/,
        "select count(*) from raw.orders": /it returns bigint, not boolean/,
        "select null::boolean": /it is NULL/,
        "values (array[true])": /it returns an array, not one boolean/,
      };
      const list = Object.keys(cases).map((sql) => ({ sql }));
      const { error } = await refuse(JSON.stringify(list), /does not hold/);
      for (const reason of Object.values(cases)) assertMatch(error, reason);
    },
  );
  await t.step("a check that takes longer than CHECK_TIMEOUT", async () => {
    await refuse(
      `[{ sql: "select pg_sleep(60) is not null" }]`,
      /pg_sleep.* statement timeout.* raise CHECK_TIMEOUT/,
      ["load"],
      { CHECK_TIMEOUT: "0.1" },
    );
  });
  await t.step("a check that reads another table", async () => {
    await source.unsafe("update shop.customers set name = 'new'");
    const checks =
      `[{ sql: "select bool_and(name = 'new') from raw.customers" }]`;
    assertEquals((await run(checks, ["load", "--atomic"])).code, 0);
    await using other = db.connect("warehouse");
    await other.unsafe(
      `begin; create table public.rates (rate int);
       grant select on public.rates to "${db.loader}"; commit;
       begin; lock table public.rates in access exclusive mode`,
    );
    await refuse(
      `[{ sql: "select count(*) = 0 from public.rates" }]`,
      /waits for a lock of another session for longer than LOCK_TIMEOUT\./,
      ["load"],
      { LOCK_TIMEOUT: "0.2" },
    );
  });
  await t.step(
    "the checks of a table that has not changed, also by verify",
    async () => {
      assertEquals((await run("[]")).code, 0);
      await refuse("[{ unique: [part] }]", /unique \(part\)/);
      assertEquals((await run(HOLDING, ["verify"])).code, 0);
      const { code, json } = await run("[{ unique: [part] }]", ["verify"]);
      assertEquals(code, 1);
      const [orders, customers] = json.tables;
      assertEquals([orders.equal, orders.checks[0].ok], [true, false]);
      assertEquals(customers.checks.length, 2);
      assertMatch(orders.checks[0].reason, /occurs in/);
    },
  );
  await t.step("a check of a column that the table lacks", async () => {
    const { code, json } = await run("[{ unique: [nr] }]");
    assertEquals(code, 78);
    assertMatch(
      json.error,
      /column "nr" of check unique \(nr\) is missing in shop\.orders\. Correct check/,
    );
  });
});

Deno.test("load updates the statistics of a target that it loads in full", async () => {
  await using db = await migratedDatabases({ rows: { deals: 50, leads: 200 } });
  const analyzed = async () =>
    (await db.warehouse.unsafe(
      `select relname, reltuples::int as rows, (select count(*)::int from pg_stats
         where schemaname = 'm_data' and tablename = relname) as columns
       from pg_class where relnamespace = 'm_data'::regnamespace and relkind = 'r' order by 1`,
    )).map(({ rows, columns }) => [rows, columns]);
  const load = (...words: string[]) =>
    runProgram(["load", ...words], db.environment);
  assertEquals((await load()).code, 0);
  assertEquals(await analyzed(), [[50, 14], [200, 4]]);

  await db.warehouse.unsafe(
    `alter table m_data.closed_deal set (autovacuum_enabled = false);
     alter table m_data.marketing_qualified_lead set (autovacuum_enabled = false)`,
  );
  await db.warehouse.unsafe(
    "delete from pg_statistic where starelid in (select oid from pg_class where relnamespace = 'm_data'::regnamespace)",
  );
  await db.source.unsafe(
    "update marketing.closed_deals set seller_id = 'x' where ctid = '(0,1)'",
  );
  assertEquals((await load()).code, 0);
  assertEquals(await analyzed(), [[50, 0], [200, 0]], "a delta does not");

  await db.warehouse.unsafe(
    `alter table m_data.closed_deal owner to postgres;
     grant select, insert, delete on m_data.closed_deal to "${db.loader}"`,
  );
  const { code, stderr } = await load("--mode", "full", "--atomic");
  assertEquals(code, 0, stderr);
  assertMatch(
    stderr,
    /WARN.*closed_deal: the statistics are not updated: .* no privilege to analyze m_data\.closed_deal/,
  );
  assertEquals(await analyzed(), [[50, 0], [200, 4]]);
});

function metricsOf(tables: readonly string[]): Metrics {
  return new Metrics({
    tables,
    pools: {},
    isLoading: () => false,
    lastSuccess: () => Promise.resolve(undefined),
    undelivered: () => Promise.resolve({}),
  });
}
