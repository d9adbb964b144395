import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import type { DifferingRow } from "../../src/diff/differing_rows.ts";
import { type Databases, migratedDatabases } from "../support/databases.ts";
import { runJson, runProgram } from "../support/program_here.ts";
import { startServer } from "../support/server.ts";
import { writeTablesFile } from "../support/tables_file.ts";

/** Creates tables of schema `shop` in the source, and lets the program read them. */
async function createSource(db: Databases, sql: string): Promise<void> {
  await db.source.unsafe(
    `create schema shop; ${sql};
     grant usage on schema shop to "${db.reader}";
     grant select on all tables in schema shop to "${db.reader}"`,
  );
}

/** Returns the rows that `verify` names, by table. */
async function namedRows(
  environment: Readonly<Record<string, string>>,
  ...args: string[]
) {
  const { code, json, stderr } = await runJson(
    ["verify", "--rows", "100", ...args],
    environment,
  );
  assert(code === 0 || code === 1, stderr);
  return new Map<string, Found>(
    json.tables.map((
      { table, differing_rows }: { table: string; differing_rows: Found },
    ) => [table, differing_rows]),
  );
}

interface Found {
  readonly named_by: string;
  readonly is_key_ambiguous: boolean;
  readonly total: number | null;
  readonly rows: readonly DifferingRow[];
}

/** Returns each row as a line: its name, its copies on both sides, and the columns that differ. */
function linesOf({ rows }: Found): string[] {
  return rows.map(({ row, source, target, columns = [] }) =>
    [
      JSON.stringify(row),
      `${source}:${target}`,
      ...columns.map((c) =>
        `${c.column} ${JSON.stringify(c.source)} ${JSON.stringify(c.target)}${
          c.format === "hex" ? " hex" : ""
        }`
      ),
    ].join(" ")
  );
}

Deno.test("verify --rows names exactly the rows that differ", async (t) => {
  await using db = await migratedDatabases({ withoutTables: true });
  await createSource(
    db,
    `create type public.mood as enum ('sad', 'ok');
     create table shop.item (id int, part text, note text, price numeric, seen timestamp, ratio float8, moods public.mood[], code char(4), long text);
     insert into shop.item select i, 'p' || i % 3, 'note ' || i, i / 4.0, '2024-01-01'::timestamp + i * interval '1 hour', i, array['ok']::public.mood[], 'a', repeat('x', 10)
       from generate_series(1, 5000) i;
     create table shop.log (kind text, value text);
     insert into shop.log select 'k' || i % 50, 'v' || i from generate_series(1, 3000) i;
     insert into shop.log select 'twice', null from generate_series(1, 5);
     create view shop.recent as select id, part, note from shop.item where id <= 1000;
     create table shop.pair (tenant text, id int, note text);
     insert into shop.pair select 'one', i, 'x' from generate_series(1, 100) i`,
  );
  await db.warehouse.unsafe(`create type public.mood as enum ('sad', 'ok')`);
  await using file = await writeTablesFile(`tables:
  - { source: shop.item, target: d.item, key: [id, part], columns: {
      id: bigint, part: text, note: text, price: { type: "numeric(10,1)", expression: "price * 2" },
      seen: timestamptz, ratio: double precision, moods: "public.mood[]", code: char(4), long: text } }
  - { source: shop.log, target: d.log }
  - { source: shop.recent, target: d.recent, key: [id] }
  - { source: shop.pair, target: d.pair, key: [tenant, id] }
`);
  const environment = {
    ...db.environment,
    ...file.variables,
    LOAD_TIMEZONE: "Europe/Berlin",
  };
  const loaded = await runProgram(["load"], environment);
  assertEquals(loaded.code, 0, loaded.stderr);

  await t.step("equal tables have none", async () => {
    const found = await namedRows(environment);
    for (const { total, rows } of found.values()) {
      assertEquals([total, rows], [0, []]);
    }
  });

  await t.step("by key, with the columns and both values", async () => {
    const huge = "'é' || repeat('long text ', 300000)";
    await db.source.unsafe(
      `update shop.item set note = null where id = 7;
       update shop.item set note = 'NULL', price = price + 1 where id = 8;
       update shop.item set note = E'a\\u0301' where id = 9;
       update shop.item set ratio = '-0.0' where id = 10;
       update shop.item set moods = '{sad,ok}' where id = 11;
       update shop.item set code = 'a b' where id = 12;
       update shop.item set long = ${huge} || '1' || ${huge} where id = 13;
       delete from shop.item where id = 14;
       insert into shop.item (id, part) values (-1, null)`,
    );
    await db.warehouse.unsafe(
      `update d.item set note = '' where id = 7;
       update d.item set note = E'\\u00e1' where id = 9;
       update d.item set ratio = 0 where id = 10;
       update d.item set seen = seen + interval '1 microsecond' where id = 10;
       update d.item set long = ${huge} || '2' || ${huge} where id = 13;
       insert into d.item (id, part) values (15, 'other')`,
    );
    const item = (await namedRows(environment, "--table", "item")).get("item")!;
    assertEquals([item.named_by, item.total], ["key", 10]);
    const [long] = item.rows.flatMap(({ columns = [] }) =>
      columns.filter(({ column }) => column === "long")
    );
    const before = 2 + 3_000_000;
    assertEquals(
      [long!.position, long!.source_bytes, long!.target_bytes],
      [before, 2 * before + 1, 2 * before + 1],
    );
    assert(long!.source!.length <= 200);
    const at = long!.source!.indexOf("1");
    assertEquals(
      [long!.target!.slice(0, at), long!.target![at]],
      [long!.source!.slice(0, at), "2"],
    );
    assertEquals(
      linesOf(item).map((line) => line.replace(/(?<= long ).*/, "…")),
      [
        '{"id":"-1","part":null} 1:0',
        '{"id":"7","part":"p1"} 1:1 note null ""',
        '{"id":"8","part":"p2"} 1:1 note "NULL" "note 8" price "6.0" "4.0"',
        '{"id":"9","part":"p0"} 1:1 note "a\u0301" "\u00e1"',
        '{"id":"10","part":"p1"} 1:1 seen "2024-01-01 10:00:00+01" "2024-01-01 10:00:00.000001+01" ratio "-0" "0"',
        '{"id":"11","part":"p2"} 1:1 moods "{sad,ok}" "{ok}"',
        '{"id":"12","part":"p0"} 1:1 code "a b " "a   "',
        '{"id":"13","part":"p1"} 1:1 long …',
        '{"id":"14","part":"p2"} 0:1',
        '{"id":"15","part":"other"} 0:1',
      ],
    );
  });

  await t.step("verify without --rows points to it", async () => {
    const plain = await runProgram(["verify"], environment);
    assertStringIncludes(plain.stdout, "Use `verify --rows 20`");
    assertStringIncludes(plain.stdout, "; 8 rows to copy, 9 to delete\n");
    const { code, stdout } = await runProgram(
      [
        "load",
        "--dry-run",
        "--mode",
        "full",
        "--rows",
        "2",
        "--table",
        "recent",
      ],
      environment,
    );
    assertEquals(code, 0);
    assertStringIncludes(stdout, "recent: 2 of 5 rows that differ\n  ");
    assertStringIncludes(stdout, "would copy 1,000 of 1,000 rows");
  });

  await t.step("without a key by all columns, with the copies", async () => {
    await db.source.unsafe(
      `delete from shop.log where value in ('v5', 'v6');
       insert into shop.log values ('k7', 'v7'), ('new', null), ('new', 'NULL')`,
    );
    await db.warehouse.unsafe(
      `delete from d.log where ctid in (select ctid from d.log where kind = 'twice' limit 2)`,
    );
    const log = (await namedRows(environment, "--table", "log")).get("log")!;
    assertEquals(log.named_by, "all columns");
    assertEquals(linesOf(log), [
      '{"kind":"k5","value":"v5"} 0:1',
      '{"kind":"k6","value":"v6"} 0:1',
      '{"kind":"k7","value":"v7"} 2:1',
      '{"kind":"new","value":null} 1:0',
      '{"kind":"new","value":"NULL"} 1:0',
      '{"kind":"twice","value":null} 5:3',
    ]);
  });

  await t.step("in a view", async () => {
    const recent = (await namedRows(environment, "--table", "recent"))
      .get("recent")!;
    assertEquals(linesOf(recent), [
      '{"id":"-1"} 1:0',
      '{"id":"7"} 1:1 note null "note 7"',
      '{"id":"8"} 1:1 note "NULL" "note 8"',
      '{"id":"9"} 1:1 note "a\u0301" "note 9"',
      '{"id":"14"} 0:1',
    ]);
  });

  await t.step("a key that is not unique does not name rows", async () => {
    await db.source.unsafe(
      "insert into shop.pair values ('one', 5, 'y')",
    );
    await db.warehouse.unsafe("insert into d.pair values ('one', 5, 'x')");
    const pair = (await namedRows(environment, "--table", "pair")).get("pair")!;
    assertEquals(linesOf(pair), [
      '{"tenant":"one","id":"5","note":"x"} 1:2',
      '{"tenant":"one","id":"5","note":"y"} 1:0',
    ]);
    assertEquals([pair.named_by, pair.is_key_ambiguous], ["all columns", true]);
  });

  await t.step("all rows differ, or one side has none", async () => {
    await db.source.unsafe("update shop.item set note = note || '!'");
    const of = async (max: string, sql: string) => {
      await db.warehouse.unsafe(sql);
      const { json } = await runJson(
        ["verify", "--table", "item", "--rows", max],
        environment,
      );
      return json.tables[0].differing_rows as Found;
    };
    const first = await of("3", "select");
    assertEquals(first.rows.length, 3);
    assertEquals((await of("3", "select")).rows, first.rows);
    assertEquals((await of("1000", "delete from d.item")).rows.length, 1000);
    const { total, rows } = await of("2", "select");
    assertEquals([total, rows.map((r) => `${r.source}:${r.target}`)], [5000, [
      "1:0",
      "1:0",
    ]]);
  });
});

Deno.test("a load stores its first rows with SHOW_ROWS only, and no event has them", async (t) => {
  await using db = await migratedDatabases({ withoutTables: true });
  await createSource(
    db,
    `create table shop.person (id int, name text, note text);
     insert into shop.person select i, 'name ' || i, repeat('n', 100) from generate_series(1, 3000) i;
     create table shop.event (id int, name text);
     insert into shop.event select i, 'name ' || i from generate_series(1, 1000) i`,
  );
  await using file = await writeTablesFile(`tables:
  - { source: shop.person, target: d.person, key: [id] }
  - { source: shop.event, target: d.event }
`);
  const environment = { ...db.environment, ...file.variables };
  /** Changes a few rows, loads them, and returns the run with what it stored. */
  let newId = 0;
  const load = async (mark: string, variables: Record<string, string>) => {
    await db.source.unsafe(
      `update shop.person set name = '<b>${mark}\u202e</b>' where id between 1 and 30;
       delete from shop.person where id = ${100 + --newId};
       insert into shop.person values (${newId}, '${mark}', null);
       update shop.event set name = '${mark}' where id = 1`,
    );
    const { code, json, stderr } = await runJson(["load"], {
      ...environment,
      ...variables,
    });
    assertEquals(code, 0, stderr);
    assert(!JSON.stringify(json).includes(mark), "the event contains data");
    const stored = await db.warehouse.unsafe(
      `select table_name, differing_rows::text as rows, result::text as result from marketing_data_service.table_load
       where run_id = '${json.run_id}' order by table_name`,
    );
    const [{ payload }] = await db.warehouse.unsafe(
      `select payload::text from marketing_data_service.event where run_id = '${json.run_id}'`,
    ) as unknown as [{ payload: string }];
    assert(!payload.includes(mark));
    for (const { result } of stored) assert(!result.includes(mark));
    return { id: json.run_id as string, stored };
  };
  assertEquals((await runProgram(["load"], environment)).code, 0);

  await t.step("unset, nothing is stored", async () => {
    const { stored } = await load("first", {});
    assertEquals(stored.map(({ rows }) => rows), [null, null]);
  });
  const shown = await load("second one", { SHOW_ROWS: "true" });
  await t.step("set, twenty rows of a table with a key are stored", () => {
    const [event, person] = shown.stored;
    assertEquals(event!.rows, null);
    const { total, rows } = JSON.parse(person!.rows) as Found;
    assertEquals([total, rows.length], [32, 20]);
    assert(person!.rows.length < 16_384);
  });
  await t.step("the page shows them while SHOW_ROWS is set", async () => {
    for (const value of ["true", "false"]) {
      await using server = await startServer(db, {
        ...file.variables,
        SHOW_ROWS: value,
      });
      const page = await server.fetch(`/runs/${shown.id}`, {
        headers: { accept: "text/html" },
      });
      const html = await page.text();
      assertEquals(html.includes("second one"), value === "true");
      if (value === "false") continue;
      assertStringIncludes(html, "person: 20 of 32 rows that changed");
      assertStringIncludes(
        html,
        "<mark>second one</mark>\\u{202e}&lt;/b&gt;&quot;",
      );
      assert(!html.includes("\u202e"));
    }
  });
});
