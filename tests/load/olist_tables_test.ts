import { assert, assertEquals } from "@std/assert";
import { createDatabases, type Sql } from "../support/databases.ts";
import {
  copyOlist,
  createEcommerce,
  FULL_SIZE,
  OLIST_TABLES,
  OLIST_TABLES_FILE,
  testWithOlist,
} from "../support/olist.ts";
import { runJson } from "../support/program_here.ts";

/** The sizes of the published data where OLIST_FULL_SIZE is set. */
const ROWS = Deno.env.get("OLIST_FULL_SIZE")
  ? FULL_SIZE
  : { customers: 2_000, items: 3_000, geolocations: 20_000 };

const ZONE = "Europe/Berlin";

interface Content {
  readonly rows: number;
  readonly distinct: number;
  readonly content: string;
  readonly columns: string;
}

/** Returns a table as text: its rows with their numbers of duplicates, and its columns with their types. */
async function contentOf(sql: Sql, relation: string): Promise<Content> {
  const [row] = await sql.unsafe(
    `select coalesce(sum(n), 0)::int as rows, count(*)::int as distinct,
       md5(string_agg(n || ' ' || row, E'\\n' order by row collate "C")) as content,
       (select string_agg(attname || ' ' || format_type(atttypid, atttypmod), ', ' order by attnum)
        from pg_attribute where attrelid = '${relation}'::regclass and attnum > 0) as columns
     from (select t::text as row, count(*) as n from ${relation} t group by 1) rows`,
  );
  return { ...row } as unknown as Content;
}

/**
 * One change of each table, and the rows that a load then inserts and deletes. A load
 * may replace all duplicates of a row to change their number.
 */
const CHANGES: readonly (readonly [sql: string, counts: [number, number]])[] = [
  [
    `update marketing.closed_deals set declared_monthly_revenue = declared_monthly_revenue + 0.01
     where mql_id = (select max(mql_id) from marketing.closed_deals)`,
    [1, 1],
  ],
  [
    `update marketing.marketing_qualified_leads set first_contact_date = first_contact_date + 1
     where mql_id = (select max(mql_id) from marketing.marketing_qualified_leads)`,
    [1, 1],
  ],
  [
    `update ecommerce.customers set customer_zip_code_prefix = null where customer_id = md5('customer7')`,
    [1, 1],
  ],
  [
    `update ecommerce.orders set order_purchase_timestamp = order_purchase_timestamp + interval '1 microsecond'
     where order_id = md5('order8')`,
    [1, 1],
  ],
  [
    `update ecommerce.order_items set price = -0.0, order_item_id = -1 where order_id = md5('order9') and order_item_id = 1`,
    [1, 1],
  ],
  [
    `update ecommerce.products set product_lenght_cm = product_lenght_cm + 1
     where product_id = (select max(product_id) from ecommerce.products where product_lenght_cm is not null)`,
    [1, 1],
  ],
  [
    `insert into ecommerce.product_category_name_translations values ('a', ''), ('a', null)`,
    [2, 0],
  ],
  [
    `delete from ecommerce.sellers where seller_id = (select max(seller_id) from ecommerce.sellers)`,
    [0, 1],
  ],
  [
    // One of several equal rows goes, and another one comes twice. Only the first semicolon is replaced.
    `delete from ecommerce.geolocation where ctid = (
       select max(ctid) from ecommerce.geolocation g group by g having count(*) = 5 order by g limit 1);
     insert into ecommerce.geolocation select '00001', 1e-300, 'NaN', 'a;b;c', E'\\n' from generate_series(1, 2)`,
    [6, 5],
  ],
];

testWithOlist(
  `load copies the nine Olist tables of deploy/mara/olist_tables.yaml (${ROWS.geolocations} geolocations)`,
  async (t) => {
    await using db = await createDatabases();
    await createEcommerce(db, ROWS);
    await copyOlist(db.source, "marketing.closed_deals");
    await copyOlist(db.source, "marketing.marketing_qualified_leads");
    await copyOlist(db.source, "ecommerce.products");
    await copyOlist(db.source, "ecommerce.sellers");
    await copyOlist(
      db.source,
      "ecommerce.product_category_name_translations",
    );
    const environment = {
      ...db.environment,
      LOAD_TIMEZONE: ZONE,
      TABLES_FILE: OLIST_TABLES_FILE,
    };
    await using source = db.connect("source");
    await using warehouse = db.connect("warehouse");
    for (const sql of [source, warehouse]) {
      await sql.unsafe(`set timezone = '${ZONE}'`);
    }
    /** Compares each target with its source, as PostgreSQL assigns the source's values to Mara's columns. */
    const compareAll = async () => {
      const contents = [];
      for (const { name, target, columns, select } of OLIST_TABLES) {
        await source.unsafe(
          `create temp table expected (${columns}); insert into expected ${select}`,
        );
        const expected = await contentOf(source, "expected");
        await source.unsafe("drop table expected");
        assertEquals(await contentOf(warehouse, target), expected, name);
        contents.push({ name, ...expected });
      }
      return contents;
    };
    const load = async () => {
      const { code, json, stderr } = await runJson(["load"], environment);
      assertEquals(code, 0, stderr);
      return json.results.results;
    };
    const modes = (results: { mode: string }[]) => results.map((r) => r.mode);

    await t.step("one command loads every value", async () => {
      const results = await load();
      const contents = await compareAll();
      assertEquals(
        results.map((r: { table: string; records_loaded: number }) => [
          r.table,
          r.records_loaded,
        ]),
        contents.map(({ name, rows }) => [name, rows]),
      );
      assertEquals(contents.map(({ rows }) => rows), [
        842,
        8_000,
        ROWS.customers,
        ROWS.customers,
        ROWS.items,
        32_951,
        71,
        3_095,
        ROWS.geolocations,
      ]);
      const { rows, distinct } = contents.at(-1)!;
      assert(rows - distinct > rows / 5, `${distinct} of ${rows}`);
    });
    await t.step("the second load writes nothing", async () => {
      assertEquals(modes(await load()), Array(9).fill("unchanged"));
    });
    await t.step("one change of each table is found", async () => {
      for (const [sql] of CHANGES) await db.source.unsafe(sql);
      const { code, json } = await runJson(["verify"], environment);
      assertEquals(code, 1);
      assertEquals(
        json.tables.map(({ table }: { table: string }) => table),
        OLIST_TABLES.map(({ name }) => name),
      );
      const results = await load();
      assertEquals(modes(results), Array(9).fill("delta"));
      for (const [i, result] of results.entries()) {
        const [inserted, deleted] = CHANGES[i]![1];
        const { rows_inserted, rows_deleted, table } = result;
        assertEquals(rows_inserted - rows_deleted, inserted - deleted, table);
        assert(rows_inserted <= inserted, `${table}: ${rows_inserted} rows`);
      }
      await compareAll();
    });
  },
);
