import { assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { enqueueRun } from "../../src/runs/queue.ts";
import { ALL, contextOf, createDatabases } from "../support/databases.ts";
import { runJson } from "../support/program_here.ts";
import { writeTablesFile } from "../support/tables_file.ts";

Deno.test("load removes no more rows than MAX_SHRINK allows", async (t) => {
  await using db = await createDatabases({ withoutTables: true });
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
    assertStringIncludes(entry.error, "--allow-shrink");
    assertStringIncludes(entry.error, '{"allow_shrink": true}');
    assertEquals(await rows("items"), before);
    return json;
  };
  assertEquals((await run([])).code, 0);

  await t.step("a truncated source", async () => {
    await source.unsafe("truncate shop.items, shop.few");
    const reason =
      "the source has 0 rows where raw.items has 1000, and MAX_SHRINK=0.9 requires at least 100";
    const { details } = await refuse([], reason);
    assertEquals(details.successful_tables, 2);
    assertEquals(await rows("few"), 0, "99 rows are not guarded");
    await refuse(["--table", "items", "--dry-run"], reason);
  });
  await t.step("a source cut to 5 %, in every mode", async () => {
    await source.unsafe(
      "insert into shop.items select i from generate_series(1, 50) i",
    );
    const reason = "the source has 50 rows where raw.items has 1000";
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
      "the source has 50 rows where raw.items has 1000",
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
      /raw\.prices has 1000, and max_shrink=0\.7 .* 300\b/,
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
    await refuse(["--table", "items"], "has 100 rows where raw.items has 5000");
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
  await t.step("requests that differ in it share no run", async () => {
    await using context = contextOf(db);
    const enqueue = (allowShrink: boolean) =>
      enqueueRun(
        context.warehouse,
        { ...ALL, trigger: "http", allowShrink },
        null,
        "a",
      );
    const [careful, free, again] = [
      await enqueue(false),
      await enqueue(true),
      await enqueue(true),
    ];
    assertEquals([careful.id === free.id, free.id === again.id], [false, true]);
  });

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
