import { assertEquals, assertStringIncludes } from "@std/assert";
import { type Databases, migratedDatabases } from "../support/databases.ts";
import { testWith } from "../support/debian.ts";
import { loadWithMara } from "../support/mara_load.ts";
import {
  createEcommerce,
  fillCatalog,
  OLIST_TABLES,
  OLIST_TABLES_FILE,
} from "../support/olist.ts";
import { runJson, runProgram } from "../support/program_here.ts";
import { writeTablesFile } from "../support/tables_file.ts";

function verify(db: Databases, ...words: string[]) {
  return runJson(["verify", "--against-mara", ...words], db.environment);
}

function maraTest(
  name: string,
  fn: (t: Deno.TestContext) => Promise<void>,
) {
  testWith(["psql", "sed"], name, fn);
}

maraTest(
  "verify --against-mara explains the dates of a Mara load",
  async () => {
    await using db = await migratedDatabases({
      rows: { deals: 50, leads: 300 },
    });
    for (const format of ["csv", "plain"] as const) {
      await loadWithMara(db, format);
      const { code, json } = await verify(db);
      assertEquals(code, 0, JSON.stringify(json));
      assertEquals(
        json.tables.map((t: { verdict: string; habits: unknown }) => [
          t.verdict,
          t.habits,
        ]),
        [["equal", {}], ["explained", { timezone: 300 }]],
      );
    }
    assertEquals((await runProgram(["verify"], db.environment)).code, 1);
    const text = await runProgram(["verify", "--against-mara"], db.environment);
    assertStringIncludes(
      text.stdout,
      "300 rows: a DATE or TIMESTAMP is in Europe/Berlin, and would be in UTC",
    );
    const same = await runJson(["verify", "--against-mara"], {
      ...db.environment,
      LOAD_TIMEZONE: "Europe/Berlin",
    });
    assertEquals([same.code, same.json.tables[1].verdict], [0, "equal"]);
  },
);

maraTest(
  "verify --against-mara explains blank lines and empty texts, and counts the rows",
  async () => {
    await using db = await migratedDatabases({
      rows: { deals: 20, leads: 40 },
    });
    await db.source.unsafe(`
    update marketing.closed_deals set lead_type = E'one\\n\\n\\ntwo\\n\\n; "quoted"'
    where sdr_id in (select sdr_id from marketing.closed_deals limit 3);
    update marketing.marketing_qualified_leads set origin = '' where origin = 'email'`);
    const [touched] = await db.source.unsafe(`select
    (select count(*)::int from marketing.closed_deals where lead_type like '%two%') as blank,
    (select count(*)::int from marketing.marketing_qualified_leads where origin = '') as empty`);
    await loadWithMara(db, "csv");
    const csv = await verify(db);
    assertEquals(csv.code, 0, JSON.stringify(csv.json));
    assertEquals(csv.json.tables[0].habits, { blank_lines: touched!.blank });
    assertEquals(csv.json.tables[1].habits, { timezone: 40 });

    // Without csv_format, a line break would split the row. So the texts are removed first.
    await db.source.unsafe("update marketing.closed_deals set lead_type = ''");
    await loadWithMara(db, "plain");
    const plain = await verify(db);
    assertEquals(plain.code, 0, JSON.stringify(plain.json));
    assertEquals(plain.json.tables[0].habits, { empty_texts: 20 });
    assertEquals(plain.json.tables[1].habits, {
      timezone: 40,
      empty_texts: touched!.empty,
    });
  },
);

maraTest(
  "verify --against-mara names the rows that no habit explains",
  async () => {
    await using db = await migratedDatabases({
      rows: { deals: 30, leads: 500 },
    });
    await loadWithMara(db, "csv");
    await db.warehouse.unsafe(`
    update m_data.closed_deal set declared_monthly_revenue = 12.5 where seller_id = md5('seller7');
    delete from m_data.marketing_qualified_lead where mql_id in (md5('lead3'), md5('lead4'));
    insert into m_data.marketing_qualified_lead values (null, now(), 'page', 'nowhere')`);
    const { code, json } = await verify(db);
    assertEquals(code, 1);
    const [deal, lead] = json.tables;
    assertEquals([deal.verdict, deal.missing, deal.surplus], [
      "different",
      1,
      1,
    ]);
    assertEquals(deal.missing_keys, deal.surplus_keys);
    assertEquals([lead.missing, lead.surplus], [2, 1]);
    assertEquals(lead.habits, { timezone: 500 });
    assertEquals(lead.surplus_keys, [null]);
    const { stdout } = await runProgram(
      ["verify", "--against-mara"],
      db.environment,
    );
    assertStringIncludes(
      stdout,
      "2 rows of the source are not in the target, such as ",
    );
  },
);

maraTest(
  "verify --against-mara explains nothing with a wrong --mara-timezone",
  async () => {
    await using db = await migratedDatabases({ rows: { deals: 5, leads: 60 } });
    await loadWithMara(db, "csv", { zone: "America/New_York" });
    const wrong = await verify(db);
    assertEquals([wrong.code, wrong.json.tables[1].missing], [1, 60]);
    const right = await verify(db, "--mara-timezone", "America/New_York");
    assertEquals(right.code, 0);
  },
);

/** The verdict and the habits of each table that is not equal. */
function notEqual(
  json: { tables: { table: string; verdict: string; habits: unknown }[] },
) {
  return json.tables.filter(({ verdict }) => verdict !== "equal")
    .map(({ table, verdict, habits }) => [table, verdict, habits]);
}

maraTest(
  "verify --against-mara explains a Mara load of the nine tables, and finds a change in each",
  async (t) => {
    await using db = await migratedDatabases({
      rows: { deals: 20, leads: 60 },
    });
    await createEcommerce(db, {
      customers: 200,
      items: 300,
      geolocations: 800,
    });
    await fillCatalog(db);
    const environment = { ...db.environment, TABLES_FILE: OLIST_TABLES_FILE };
    const verify = () => runJson(["verify", "--against-mara"], environment);
    for (const format of ["plain", "csv"] as const) {
      await t.step(`a ${format} copy`, async () => {
        await loadWithMara(db, format, { tables: OLIST_TABLES });
        const { code, json } = await verify();
        assertEquals(code, 0, JSON.stringify(json));
        assertEquals(notEqual(json), [
          ["marketing_qualified_lead", "explained", { timezone: 60 }],
          ["order", "explained", { timezone: 200 }],
        ]);
      });
    }
    await t.step("texts of renamed columns and of expressions", async () => {
      await db.source.unsafe(
        `update ecommerce.geolocation set geolocation_city = '' where geolocation_city = 'sao paulo';
         update ecommerce.customers set customer_city = '' where customer_id = md5('customer3');
         update ecommerce.sellers set seller_city = E'rio de janeiro \\\\rio \\\\\\\\ \\\\q\\\\N' where seller_id = md5('seller3')`,
      );
      const [empty] = await db.source.unsafe(
        "select count(*)::int as rows from ecommerce.geolocation where geolocation_city = ''",
      );
      await loadWithMara(db, "plain", { tables: OLIST_TABLES });
      const { code, json } = await verify();
      assertEquals(code, 0, JSON.stringify(json));
      assertEquals(notEqual(json), [
        ["marketing_qualified_lead", "explained", { timezone: 60 }],
        ["customer", "explained", { empty_texts: 1 }],
        ["order", "explained", { timezone: 200 }],
        ["seller", "explained", { backslashes: 1 }],
        ["geolocation", "explained", { empty_texts: empty!.rows }],
      ]);
      const [seller] = await db.warehouse.unsafe(
        "select city from ec_data.seller where seller_id = md5('seller3')",
      );
      assertEquals(seller!.city, "rio de janeiro \rio \\ qN");
    });
    await t.step("a change in each table", async () => {
      await db.warehouse.unsafe(
        `update m_data.closed_deal set won_date = won_date + interval '1 microsecond' where seller_id = md5('seller7');
         update m_data.marketing_qualified_lead set origin = 'x' where mql_id = md5('lead3');
         update ec_data.customer set city = 'x' where customer_id = md5('customer1');
         update ec_data.order set order_purchase_timestamp = order_purchase_timestamp + interval '1 h' where order_id = md5('order1');
         update ec_data.order_item set price = price + 1e-9 where order_id = md5('order5') and order_item_id = 1;
         update ec_data.product set length_cm = length_cm + 1 where product_id = md5('product1');
         update ec_data.product_category_name_translation set product_category_name = null where product_category_name = 'category 9';
         update ec_data.seller set zip_code_prefix = '1' where seller_id = md5('seller1');
         delete from ec_data.geolocation where ctid = (select max(ctid) from ec_data.geolocation g group by g having count(*) > 2 limit 1)`,
      );
      const { code, json } = await verify();
      assertEquals(code, 1);
      assertEquals(
        json.tables.map((
          t: { verdict: string; missing: number; surplus: number },
        ) => [t.verdict, t.missing, t.surplus]),
        [...Array(8).fill(["different", 1, 1]), ["different", 1, 0]],
      );
    });
  },
);

maraTest(
  "verify --against-mara compares tables without declared columns, and other types",
  async () => {
    await using db = await migratedDatabases();
    await db.source.unsafe(
      `create schema shop; create domain shop.day as date;
       create table shop.plain (
         id bigint, at timestamptz, local timestamp, day date, name varchar(20), code char(4),
         small real, amount numeric(10, 2), ok boolean, tags text[], doc json);
       insert into shop.plain
         select i, now(), now(), now(), case when i % 2 > 0 then E'a\n\nb' else '' end, 'x', 0.1, 1.10, true,
           case i when 4 then array[E'a\n\nb', ''] end, case i when 6 then E'{"a":\n\n1}' end::json
         from generate_series(1, 10) i;
       create table shop.cast (id bigint, day shop.day, small real, code char(4), at text, deleted boolean);
       insert into shop.cast
         select i, date '2024-07-01' + i, i / 10.0, 'x' || i, '2024-01-01', i > 20 from generate_series(1, 30) i;
       grant usage on schema shop to ${db.reader};
       grant select on all tables in schema shop to ${db.reader}`,
    );
    await using file = await writeTablesFile(`tables:
  - { source: shop.plain, target: raw.plain }
  - source: shop.cast
    target: raw.cast
    where: "not deleted"
    columns:
      day: timestamptz
      id: numeric
      next: { type: timestamptz, expression: "day + interval '1 day'" }
      small: double precision
      label: { type: text, from: code }
      parsed: { type: timestamptz, expression: "at::date" }
`);
    const environment = { ...db.environment, ...file.variables };
    const verify = () => runJson(["verify", "--against-mara"], environment);
    await loadWithMara(db, "csv", {
      tables: [
        {
          target: "raw.plain",
          columns:
            `id bigint, at timestamptz, local timestamp, day date, name varchar(20), code char(4),
          small real, amount numeric(10, 2), ok boolean, tags text[], doc json`,
          select: "select * from shop.plain",
        },
        {
          target: "raw.cast",
          columns:
            "day timestamptz, id numeric, next timestamptz, small double precision, label text, parsed timestamptz",
          select:
            `select day, id, day + interval '1 day', small, code, at::date from shop.cast where not deleted`,
        },
      ],
    });
    const first = await verify();
    assertEquals(first.code, 0, JSON.stringify(first.json));
    assertEquals(notEqual(first.json), [
      ["plain", "explained", { blank_lines: 7 }],
      ["cast", "explained", { timezone: 20, text_form: 20 }],
    ]);
    // A column that Mara's table does not have yet.
    await db.source.unsafe(
      "alter table shop.plain add column later text default ''",
    );
    const later = await verify();
    assertEquals(notEqual(later.json)[0], [
      "plain",
      "explained",
      { blank_lines: 7 },
    ]);
    await db.warehouse.unsafe(
      `update raw.plain set amount = 2 where id = 1;
       update raw.cast set label = 'x1' where id = 1`,
    );
    const { json } = await verify();
    assertEquals(
      json.tables.map((
        t: { missing: number; surplus: number; missing_keys: unknown },
      ) => [t.missing, t.surplus]),
      [[1, 1], [1, 1]],
    );
    assertEquals(json.tables[0].missing_keys, ["1"]);
  },
);

Deno.test("verify --against-mara reports equal tables of the service, and a missing target", async () => {
  await using db = await migratedDatabases({ rows: { deals: 5, leads: 5 } });
  const missing = await runProgram(
    ["verify", "--against-mara"],
    db.environment,
  );
  assertEquals(missing.code, 1);
  assertStringIncludes(missing.stdout, "MISSING");
  await runProgram(["load"], db.environment);
  const { code, json } = await verify(db);
  assertEquals(code, 0);
  assertEquals(json.tables.map((t: { verdict: string }) => t.verdict), [
    "equal",
    "equal",
  ]);
});

Deno.test("verify refuses an invalid or unused --mara-timezone", async () => {
  for (
    const words of [
      ["--against-mara", "--mara-timezone", "Mars"],
      ["--mara-timezone", "UTC"],
    ]
  ) {
    const { code, stderr } = await runProgram(["verify", ...words]);
    assertEquals(code, 64);
    assertStringIncludes(stderr, "--mara-timezone");
  }
});
