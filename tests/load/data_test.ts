import { assertEquals } from "@std/assert";
import { MARKETING_TABLES } from "../../src/tables/marketing.ts";
import { compareTable, compareTables } from "../../src/sync/compare_tables.ts";
import { load } from "../../src/load/load.ts";
import {
  ALL,
  contextOf,
  type Databases,
  migratedDatabases,
  type Sql,
} from "../support/databases.ts";

/** Returns every row of the table in order, each value as its binary form. */
async function bytesOf(
  sql: Sql,
  table: "deals" | "leads",
  side: "source" | "target",
  timezone = "UTC",
) {
  const columns = table === "deals"
    ? [
      "mql_id",
      "seller_id",
      "won_date",
      "has_gtin",
      "declared_product_catalog_size",
      "declared_monthly_revenue",
    ]
    : [
      "mql_id",
      "first_contact_date::timestamptz",
      "landing_page_id",
      "origin",
    ];
  const send: Record<string, string> = {
    won_date: "timestamptz_send",
    "first_contact_date::timestamptz": "timestamptz_send",
    declared_product_catalog_size: "float8send",
    declared_monthly_revenue: "float8send",
  };
  const name = {
    source: {
      deals: "marketing.closed_deals",
      leads: "marketing.marketing_qualified_leads",
    },
    target: {
      deals: "m_data.closed_deal",
      leads: "m_data.marketing_qualified_lead",
    },
  }[side][table];
  const fields = columns.map((c) =>
    `coalesce(md5(${send[c] ?? "textsend"}(${c})), '~')`
  );
  const sets = await sql.unsafe(
    `set timezone = '${timezone}'; select ${
      fields.join(" || ' ' || ")
    } as row from ${name} order by 1`,
  );
  return (sets.at(-1) as unknown as { row: string }[]).map((r) => r.row);
}

async function assertEqualTables(db: Databases, timezone = "UTC") {
  for (const table of ["deals", "leads"] as const) {
    assertEquals(
      await bytesOf(db.warehouse, table, "target", timezone),
      await bytesOf(db.source, table, "source", timezone),
    );
  }
}

/** Texts that loaders are known to break. */
const TEXTS = [
  "",
  "\\N",
  "\\.",
  "\\",
  "\t",
  "\r",
  "\n",
  "\r\n",
  "a\n\nb",
  "\n\n\n",
  " ",
  "'",
  '"',
  '""',
  ";",
  ",",
  "a;b",
  "NULL",
  "null",
  "\\x00",
  "\u0001\u001f\u007f",
  "emoji 🦉👩‍👩‍👧",
  "ﷺ",
  "é",
  "e\u0301",
  "\ufeff",
  "{a,b}",
  "$1",
  "%s",
  "--",
  "/* */",
  "a".repeat(70_000),
  "ß".repeat(65_535),
  "end",
];

const NUMBERS = [
  "NaN",
  "Infinity",
  "-Infinity",
  "-0.0",
  "0.0",
  "1e-308",
  "4.9e-324",
  "1.7976931348623157e308",
  "0.1",
  "123456789.123456789",
  "-1",
  "9007199254740993",
];

const TIMES = [
  "infinity",
  "-infinity",
  "4713-01-01 00:00:00+00 BC",
  "0001-01-01 00:00:00+00",
  "294276-12-31 23:59:59.999999+00",
  "2018-03-25 01:30:00.123456+00",
  "1970-01-01 00:00:00+00",
];

Deno.test("load copies any value of the columns' types byte for byte", async (t) => {
  await using db = await migratedDatabases();
  await using context = contextOf(db);
  for (const text of [...TEXTS, null]) {
    await db
      .source`insert into marketing.closed_deals (mql_id, has_gtin) values (${text}, ${text})`;
    await db
      .source`insert into marketing.marketing_qualified_leads (mql_id, origin) values (${text}, ${text})`;
  }
  for (const number of NUMBERS) {
    await db.source.unsafe(
      `insert into marketing.closed_deals (mql_id, declared_product_catalog_size, declared_monthly_revenue)
       values ('n', '${number}', '${number}')`,
    );
  }
  for (const time of TIMES) {
    await db.source.unsafe(
      `insert into marketing.closed_deals (won_date) values ('${time}')`,
    );
  }
  for (
    const date of [
      "infinity",
      "-infinity",
      "4714-11-24 BC",
      "294276-12-31",
      "2018-02-29".replace("29", "28"),
    ]
  ) {
    await db.source.unsafe(
      `insert into marketing.marketing_qualified_leads (first_contact_date) values ('${date}')`,
    );
  }
  // Exact duplicates, each a different number of times, and rows of only NULLs.
  await db.source.unsafe(
    `insert into marketing.marketing_qualified_leads (mql_id) select 'twin' from generate_series(1, 7);
     insert into marketing.marketing_qualified_leads (mql_id) select null from generate_series(1, 3);
     insert into marketing.closed_deals (mql_id) select 'twin' from generate_series(1, 5)`,
  );

  await t.step("in a full load", async () => {
    assertEquals((await load(context, "cli", ALL)).status, "success");
    await assertEqualTables(db);
  });

  await t.step(
    "in a delta that may change only a sign of zero or the number of equal rows",
    async () => {
      await db.source.unsafe(
        `update marketing.closed_deals set declared_monthly_revenue = '0.0'
         where float8send(declared_monthly_revenue) = float8send('-0.0');
       delete from marketing.marketing_qualified_leads
         where ctid = (select min(ctid) from marketing.marketing_qualified_leads where mql_id = 'twin');
       update marketing.closed_deals set has_gtin = null where has_gtin = ''`,
      );
      const event = await load(context, "cli", ALL);
      assertEquals(event.status, "success");
      if (event.status === "success") {
        assertEquals(event.results.results.map((r) => r.mode), [
          "delta",
          "delta",
        ]);
      }
      await assertEqualTables(db);
    },
  );
});

Deno.test("load repairs two rows that have exchanged a value", async (t) => {
  await using db = await migratedDatabases({ rows: { deals: 40, leads: 40 } });
  await using context = contextOf(db);
  assertEquals((await load(context, "cli", ALL)).status, "success");
  const exchange = (column: string, key: string, pair: number) =>
    db.warehouse.unsafe(
      `update m_data.closed_deal a set ${column} = b.${column}
       from m_data.closed_deal b, (select min(k) as one, max(k) as two from (
         select ${key} as k from m_data.closed_deal order by ${key} offset ${pair} limit 2) two) keys
       where (a.${key}, b.${key}) in ((one, two), (two, one))`,
    );
  for (const column of ["mql_id", "seller_id", "won_date"]) {
    await t.step(column, async () => {
      const key = column === "seller_id" ? "mql_id" : "seller_id";
      // The sum of a hash that is linear in its columns stays the same for most pairs.
      for (let pair = 0; pair < 12; pair++) {
        await exchange(column, key, pair);
        const [deals] = await compareTables(
          context.config,
          [MARKETING_TABLES[0]!],
          undefined,
          compareTable,
        );
        assertEquals(
          deals && "comparison" in deals && deals.comparison.rowsToCopy,
          2,
          `pair ${pair}`,
        );
        await exchange(column, key, pair);
      }
      await exchange(column, key, 0);
      assertEquals((await load(context, "cli", ALL)).status, "success");
      await assertEqualTables(db);
    });
  }
});

Deno.test("load copies a text of 50 MB byte for byte", async () => {
  await using db = await migratedDatabases();
  await using context = contextOf(db);
  await db.source.unsafe(
    `insert into marketing.closed_deals (mql_id, has_gtin)
     select 'big', string_agg(md5(i::text), '') from generate_series(1, 1638400) i;
     insert into marketing.closed_deals (mql_id) values ('small')`,
  );
  assertEquals((await load(context, "cli", ALL)).status, "success");
  await assertEqualTables(db);
});

for (const timezone of ["UTC", "Europe/Berlin"]) {
  Deno.test(`load converts a DATE to midnight of LOAD_TIMEZONE ${timezone}, in summer and winter`, async () => {
    await using db = await migratedDatabases();
    await using context = contextOf(db, { LOAD_TIMEZONE: timezone });
    await db.source.unsafe(
      `insert into marketing.marketing_qualified_leads (mql_id, first_contact_date)
       values ('summer', '2018-07-01'), ('winter', '2018-01-15')`,
    );
    await load(context, "cli", ALL);
    const rows = await db.warehouse.unsafe(
      `select mql_id, to_char(first_contact_date at time zone '${timezone}', 'YYYY-MM-DD HH24:MI:SS') as local,
         extract(epoch from first_contact_date)::int as epoch
       from m_data.marketing_qualified_lead order by mql_id`,
    );
    const berlin = timezone === "Europe/Berlin";
    assertEquals(rows.map((r) => [r.mql_id, r.local, r.epoch]), [
      ["summer", "2018-07-01 00:00:00", 1530403200 - (berlin ? 7200 : 0)],
      ["winter", "2018-01-15 00:00:00", 1515974400 - (berlin ? 3600 : 0)],
    ]);
    await assertEqualTables(db, timezone);
  });
}

Deno.test("load compares a source in another encoding by text and copies it", async () => {
  await using db = await migratedDatabases();
  const name = `mds_${crypto.randomUUID().slice(0, 8)}_latin1`;
  await db.source.unsafe(
    `create database ${name} encoding 'LATIN1' locale 'C' template template0`,
  );
  const { connectAs } = await import("../support/databases.ts");
  const latin = connectAs(new URL(Deno.env.get("TEST_DATABASE_URL")!), name);
  try {
    const { SOURCE_TABLES } = await import("../../demo/sample_data.ts");
    await latin.unsafe(`create schema marketing; ${SOURCE_TABLES}
      grant usage on schema marketing to ${db.reader};
      grant select on all tables in schema marketing to ${db.reader}`);
    await latin`insert into marketing.closed_deals (mql_id, won_date, declared_monthly_revenue)
      values (${"Müller"}, now(), 1.5), (${null}, null, null)`;
    await using context = contextOf(db, { OLIST_DB_NAME: name });
    const first = await load(context, "cli", ALL);
    assertEquals(first.status, "success");
    const second = await load(context, "cli", ALL);
    assertEquals(second.status, "success");
    if (second.status !== "success") return;
    const [deal] = second.results.results;
    assertEquals(deal!.mode, "unchanged");
    assertEquals(deal!.warnings.length, 1);
    const [row] = await db.warehouse.unsafe(
      "select mql_id from m_data.closed_deal where mql_id is not null",
    );
    assertEquals(row!.mql_id, "Müller");
  } finally {
    await latin.end();
    await db.source.unsafe(`drop database ${name} with (force)`);
  }
});

Deno.test("load ignores notices of the source between the rows of a COPY", async () => {
  await using db = await migratedDatabases({ rows: { deals: 5, leads: 5 } });
  await using context = contextOf(db);
  await db.source.unsafe(
    `alter table marketing.marketing_qualified_leads rename to leads;
     create function marketing.loud(text) returns text language plpgsql as
       $f$ begin if random() < 0.05 then raise notice '%', repeat('n', 50); end if; return $1; end $f$;
     create view marketing.marketing_qualified_leads as
       select marketing.loud(mql_id) as mql_id, first_contact_date, landing_page_id, origin from marketing.leads;
     insert into marketing.leads (mql_id, origin) select i, repeat(md5(i::text), 10) from generate_series(1, 60000) i;
     grant select on marketing.marketing_qualified_leads to ${db.reader}`,
  );
  const event = await load(context, "cli", { ...ALL, mode: "full" });
  assertEquals(event.status, "success", JSON.stringify(event));
});
