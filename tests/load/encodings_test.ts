import { assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { SOURCE_TABLES } from "../../demo/sample_data.ts";
import {
  comparedWith,
  compareTable,
  compareTables,
  type ComparisonOutcome,
} from "../../src/sync/compare_tables.ts";
import { Deliverer } from "../../src/delivery/deliverer.ts";
import { registerPublishers } from "../../src/delivery/outbox.ts";
import { load } from "../../src/load/load.ts";
import { parseTypeName } from "../../src/tables/column_types.ts";
import type { TableDeclaration } from "../../src/tables/declaration.ts";
import { MARKETING_TABLES } from "../../src/tables/marketing.ts";
import {
  ALL,
  configOf,
  connectAs,
  contextOf,
  createDatabases,
  type Sql,
} from "../support/databases.ts";

/** Creates a source and a warehouse with these encodings. */
async function encoded(encodings: { source: string; warehouse: string }) {
  const db = await createDatabases();
  const id = crypto.randomUUID().slice(0, 8);
  const names = {
    source: `mds_${id}_olist_encoded`,
    warehouse: `mds_${id}_dwh_encoded`,
  };
  const url = new URL(Deno.env.get("TEST_DATABASE_URL")!);
  const sides = {} as { source: Sql; warehouse: Sql };
  for (const side of ["source", "warehouse"] as const) {
    await db.source.unsafe(
      `create database ${names[side]} encoding '${
        encodings[side]
      }' locale 'C' template template0`,
    );
    sides[side] = connectAs(url, names[side]);
  }
  await sides.source.unsafe(`create schema marketing; ${SOURCE_TABLES}
    grant usage on schema marketing to ${db.reader};
    grant select on all tables in schema marketing to ${db.reader}`);
  await db.source.unsafe(
    `grant create on database ${names.warehouse} to ${db.loader}`,
  );
  const changes = {
    OLIST_DB_NAME: names.source,
    DWH_DB_NAME: names.warehouse,
    RETRY_ATTEMPTS: "1",
  };
  return {
    ...sides,
    context: (more: Record<string, string> = {}) =>
      contextOf(db, { ...changes, ...more }),
    config: configOf(db, changes),
    async [Symbol.asyncDispose]() {
      for (const side of ["source", "warehouse"] as const) {
        await sides[side].end({ timeout: 1 });
        await db.source.unsafe(`drop database ${names[side]} with (force)`);
      }
      await db[Symbol.asyncDispose]();
    },
  };
}

/** The bytes of every text, as UTF-8. */
async function textsOf(sql: Sql, relation: string): Promise<string[]> {
  const rows = await sql.unsafe(
    `select encode(convert_to(coalesce(mql_id, '~'), 'UTF8'), 'hex') || ' ' ||
       encode(convert_to(coalesce(has_gtin, '~'), 'UTF8'), 'hex') as texts
     from ${relation} order by 1`,
  );
  return rows.map((row) => row.texts);
}

for (
  const [source, warehouse] of [
    ["SQL_ASCII", "UTF8"],
    ["UTF8", "SQL_ASCII"],
    ["SQL_ASCII", "SQL_ASCII"],
    ["SQL_ASCII", "LATIN1"],
    ["LATIN1", "UTF8"],
    ["UTF8", "LATIN1"],
    ["LATIN1", "SQL_ASCII"],
  ] as const
) {
  Deno.test(`load copies texts beyond ASCII from ${source} to ${warehouse}, and then reports unchanged`, async () => {
    await using db = await encoded({ source, warehouse });
    for (const [first, second] of [["Müller", "é"], ["ÿ", null], ["", "ß:1"]]) {
      await db
        .source`insert into marketing.closed_deals (mql_id, has_gtin) values (${first!}, ${second!})`;
    }
    await using context = db.context();
    const modes: string[] = [];
    for (let i = 0; i < 2; i++) {
      const event = await load(context, "cli", ALL);
      assertEquals(event.status, "success", JSON.stringify(event));
      if (event.status === "success") {
        modes.push(event.results.results[0]!.mode);
      }
    }
    assertEquals(modes, ["full", "unchanged"]);
    assertEquals(
      await textsOf(db.warehouse, "m_data.closed_deal"),
      await textsOf(db.source, "marketing.closed_deals"),
    );
    // A delta among many more rows, and its verification.
    await db.source.unsafe(
      `insert into marketing.closed_deals (mql_id) select i::text from generate_series(1, 40) i`,
    );
    assertEquals((await load(context, "cli", ALL)).status, "success");
    await db
      .source`update marketing.closed_deals set has_gtin = 'è' where mql_id = 'Müller'`;
    const event = await load(context, "cli", ALL);
    assertEquals(
      event.status === "success" && event.results.results.map((r) => r.mode),
      ["delta", "unchanged"],
    );
    const [deals] = await compareTables(
      db.config,
      MARKETING_TABLES,
      undefined,
      compareTable,
    );
    assertEquals(
      deals && "comparison" in deals && deals.comparison.plan.mode,
      "unchanged",
    );
    const long = "é".repeat(999);
    await db
      .source`update marketing.closed_deals set has_gtin = ${
      long + "ö" + long
    } where mql_id = 'ÿ'`;
    await db
      .warehouse`update m_data.closed_deal set has_gtin = ${
      long + "ü" + long
    } where mql_id = 'ÿ'`;
    const keyed = { ...MARKETING_TABLES[0]!, key: ["mql_id"] };
    const [named] = await compareTables(
      db.config,
      [keyed],
      undefined,
      comparedWith({ rows: 2 }),
    );
    const { rows, total } =
      (named as Extract<ComparisonOutcome, { comparison: unknown }>).comparison
        .rows!;
    const { source: ours, target: theirs, position, ...sizes } = rows[0]!
      .columns![0]!;
    assertEquals([total, rows[0]!.row], [1, { mql_id: "ÿ" }]);
    assertEquals(theirs!.replace("ü", "ö"), ours);
    assertMatch(ours!, /^é+öé+$/);
    // The second byte of the letter differs.
    assertEquals([position, sizes.source_bytes], [2 * 999, 4 * 999 + 2]);
  });
}

for (
  const { source, warehouse, text, says } of [
    {
      source: "SQL_ASCII",
      warehouse: "UTF8",
      text: "E'M\\xfcller'",
      says: [
        `invalid byte sequence for encoding "UTF8": 0xfc`,
        "contains invalid UTF-8",
        "Correct",
      ],
    },
    {
      source: "SQL_ASCII",
      warehouse: "SQL_ASCII",
      text: "E'M\\xfcller'",
      says: [
        `invalid byte sequence for encoding "UTF8": 0xfc`,
        "contains invalid UTF-8",
        "Correct",
      ],
    },
    {
      source: "UTF8",
      warehouse: "LATIN1",
      text: "'5 €'",
      says: [
        "has no equivalent",
        "the warehouse encoding LATIN1 cannot represent a character",
        "Load into a database of encoding UTF8",
      ],
    },
  ]
) {
  for (const verify of ["content", "count"]) {
    Deno.test(`load reports a remedy for ${text} from ${source} to ${warehouse} with VERIFY=${verify}`, async () => {
      await using db = await encoded({ source, warehouse });
      await db.source.unsafe(
        `insert into marketing.closed_deals (mql_id) values ('fine'), (${text})`,
      );
      await using context = db.context({ VERIFY: verify });
      const event = await load(context, "cli", ALL);
      assertEquals(event.status, "failure", JSON.stringify(event));
      if (event.status !== "failure") return;
      const [deal, lead] = event.details.results;
      assertEquals(lead!.status, "success");
      assertEquals(deal!.status === "failure" && deal!.code, "value_invalid");
      for (const part of says) assertStringIncludes(event.error, part);
    });
  }
}

Deno.test("load replaces rows with invalid UTF-8 in a SQL_ASCII warehouse", async () => {
  await using db = await encoded({ source: "UTF8", warehouse: "SQL_ASCII" });
  await db.source.unsafe(
    `insert into marketing.closed_deals (mql_id) select 'ü' || i from generate_series(1, 40) i`,
  );
  await using context = db.context();
  assertEquals((await load(context, "cli", ALL)).status, "success");
  await db.warehouse.unsafe(
    "update m_data.closed_deal set has_gtin = E'\\xff' where ctid = '(0,1)'",
  );
  const event = await load(context, "cli", ALL);
  assertEquals(
    event.status === "success" && event.results.results.map((r) => r.mode),
    ["delta", "unchanged"],
    JSON.stringify(event),
  );
  assertEquals(
    await textsOf(db.warehouse, "m_data.closed_deal"),
    await textsOf(db.source, "marketing.closed_deals"),
  );
});

Deno.test("load names the columns whose parts two encodings sort differently", async () => {
  await using db = await encoded({ source: "LATIN1", warehouse: "UTF8" });
  await db.source.unsafe(
    `create table marketing.note (id int, "Words" jsonb);
     insert into marketing.note values (1, '{"é": 1, "aa": 2}');
     create table marketing.name (a name); insert into marketing.name values ('${
      "é".repeat(40)
    }');
     grant select on all tables in schema marketing to public`,
  );
  await using context = db.context();
  const loadWith = (
    columns: TableDeclaration["columns"],
    name = "note",
  ) => {
    const table: TableDeclaration = {
      name,
      source: { schema: "marketing", name },
      target: { schema: "m_data", name },
      columns,
    };
    return load(
      { ...context, config: { ...context.config, tables: [table] } },
      "cli",
      { ...ALL, tables: [name] },
    );
  };
  const refused = await loadWith(undefined);
  assertEquals(refused.status, "failure");
  if (refused.status !== "failure") return;
  const [entry] = refused.details.results;
  assertEquals(
    entry!.status === "failure" && entry!.code,
    "verification_failed",
  );
  assertStringIncludes(
    refused.error,
    'Declare "Words" as text in TABLES_FILE, with an expression such as value::text.',
  );
  const loaded = await loadWith([{
    name: "Words",
    type: parseTypeName("text"),
    expression: `"Words"::text`,
  }]);
  assertEquals(loaded.status, "success", JSON.stringify(loaded));
  // Its 40 letters have 80 bytes in UTF-8.
  const long = await loadWith(undefined, "name");
  assertEquals(long.status === "failure" && long.code, "value_invalid");
  const asText = [{ name: "a", type: parseTypeName("text") }];
  assertEquals((await loadWith(asText, "name")).status, "success");
});

Deno.test("load records letters of messages and names that the warehouse cannot represent as question marks", async () => {
  await using db = await encoded({ source: "UTF8", warehouse: "LATIN1" });
  await db.source.unsafe(
    `create table marketing.twice (id int, "数" int);
     insert into marketing.twice select i % 9, i from generate_series(1, 40) i;
     create table marketing."品目" (id int, "数" int); insert into marketing."品目" values (1, 2);
     grant select on all tables in schema marketing to public`,
  );
  await using context = db.context();
  const declare = (name: string, source: string): TableDeclaration => ({
    name,
    source: { schema: "marketing", name: source },
    target: { schema: "m_data", name },
    columns: [{ name: "id", type: parseTypeName("int") }],
    checks: [{ kind: "sql", sql: `select ${"true and ".repeat(20)}'é' = 'é'` }],
  });
  const tables = [
    { ...declare("twice", "twice"), key: ["id"] },
    declare("item", "品目"),
  ];
  const event = await load(
    { ...context, config: { ...context.config, tables } },
    "cli",
    { ...ALL, tables: tables.map(({ name }) => name) },
  );
  const [row] = await db.warehouse.unsafe(
    `select state, error, payload::text from marketing_data_service.run
       join marketing_data_service.event on run_id = run.id`,
  );
  assertEquals(row!.state, "failed");
  assertMatch(row!.error, / of marketing\.twice: (\(\d\), ){5}\?\. /);
  const stored = JSON.parse(row!.payload);
  const [twice, item] = stored.details.results;
  assertEquals([twice.code, item.status], ["key_not_unique", "success"]);
  assertEquals([item.source, item.warnings[0]], [
    'marketing."??"',
    'marketing."??" has columns that the load ignores: "?"',
  ]);
  assertEquals(event.run_id, stored.run_id);
});

Deno.test("the outbox records an error whose path the warehouse cannot represent", async () => {
  await using db = await encoded({ source: "UTF8", warehouse: "LATIN1" });
  const folder = await Deno.makeTempDir();
  try {
    await using context = db.context();
    const config = {
      ...context.config,
      eventPublisherType: "file" as const,
      eventFile: `${folder}/数/events`,
    };
    await load(context, "cli", ALL);
    await registerPublishers(context.warehouse, ["file"]);
    const { signal } = new AbortController();
    await new Deliverer({ ...context, config }).deliver(10, signal);
    const [row] = await db.warehouse.unsafe(
      "select failures, last_error from marketing_data_service.publisher",
    );
    assertEquals(row!.failures, 1);
    assertStringIncludes(row!.last_error, `${folder}/?/events`);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});
