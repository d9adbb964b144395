/**
 * The nine tables of the Olist data: their sources, and how the pipelines of
 * mara-example-project-1 create and load them.
 *
 * @module
 */
import type { Databases, Sql } from "./databases.ts";
import { skip } from "./measure.ts";

/** The declarations of the nine tables. */
export const OLIST_TABLES_FILE =
  new URL("../../deploy/mara/olist_tables.yaml", import.meta.url).pathname;

/** A table as a pipeline of Mara creates and loads it. */
export interface MaraTable {
  readonly name: string;
  /** Schema-qualified. */
  readonly target: string;
  /** Columns of CREATE TABLE. */
  readonly columns: string;
  /** Query of the rows. Its columns have the target's order, and other names. */
  readonly select: string;
}

const MARKETING: readonly MaraTable[] = [
  {
    name: "closed_deal",
    target: "m_data.closed_deal",
    columns:
      `mql_id text, seller_id text, sdr_id text, sr_id text, won_date timestamp with time zone,
      business_segment text, lead_type text, lead_behaviour_profile text, has_company text,
      has_gtin text, average_stock text, business_type text,
      declared_product_catalog_size double precision, declared_monthly_revenue double precision`,
    select: "select * from marketing.closed_deals",
  },
  {
    name: "marketing_qualified_lead",
    target: "m_data.marketing_qualified_lead",
    columns:
      "mql_id text, first_contact_date timestamp with time zone, landing_page_id text, origin text",
    select: "select * from marketing.marketing_qualified_leads",
  },
];

const ECOMMERCE: readonly MaraTable[] = [
  {
    name: "customer",
    target: "ec_data.customer",
    columns:
      "customer_id text, customer_unique_id text, zip_code_prefix text, city text, state text",
    select: "select * from ecommerce.customers",
  },
  {
    name: "order",
    target: "ec_data.order",
    columns:
      `order_id text, customer_id text, order_status text, order_purchase_timestamp timestamp with time zone,
      order_approved_at timestamp with time zone, order_delivered_carrier_date timestamp with time zone,
      order_delivered_customer_date timestamp with time zone, order_estimated_delivery_date timestamp with time zone`,
    select: "select * from ecommerce.orders",
  },
  {
    name: "order_item",
    target: "ec_data.order_item",
    columns:
      `order_id text, order_item_id integer, product_id text, seller_id text,
      shipping_limit_date timestamp with time zone, price double precision, freight_value double precision`,
    select: "select * from ecommerce.order_items",
  },
  {
    name: "product",
    target: "ec_data.product",
    columns:
      `product_id text, product_category_name text, product_name_length integer,
      description_length integer, photos_quantity integer, weight_g integer,
      length_cm integer, height_cm integer, width_cm integer`,
    select: "select * from ecommerce.products",
  },
  {
    name: "product_category_name_translation",
    target: "ec_data.product_category_name_translation",
    columns: "product_category_name text, product_category_name_english text",
    select: "select * from ecommerce.product_category_name_translations",
  },
  {
    name: "seller",
    target: "ec_data.seller",
    columns: "seller_id text, zip_code_prefix text, city text, state text",
    select: "select * from ecommerce.sellers",
  },
  {
    name: "geolocation",
    target: "ec_data.geolocation",
    columns:
      "zip_code_prefix text, latitude double precision, longitude double precision, city text, state text",
    select:
      `select geolocation_zip_code_prefix, geolocation_lat, geolocation_lng,
      regexp_replace(geolocation_city, ';', '.'), geolocation_state from ecommerce.geolocation`,
  },
];

/** The tables of each pipeline, in the order of the declarations. */
export const MARA_TABLES = { marketing: MARKETING, ecommerce: ECOMMERCE };

/** All nine tables, in the order of the declarations. */
export const OLIST_TABLES: readonly MaraTable[] = [...MARKETING, ...ECOMMERCE];

/** DDL of the ecommerce schema of the source. */
const ECOMMERCE_SOURCE = `
  create schema ecommerce;
  create table ecommerce.customers (
    customer_id text, customer_unique_id text, customer_zip_code_prefix text, customer_city text, customer_state text);
  create table ecommerce.orders (
    order_id text, customer_id text, order_status text, order_purchase_timestamp timestamp,
    order_approved_at timestamptz, order_delivered_carrier_date timestamptz,
    order_delivered_customer_date timestamptz, order_estimated_delivery_date timestamptz);
  create table ecommerce.order_items (
    order_id text, order_item_id integer, product_id text, seller_id text,
    shipping_limit_date timestamptz, price double precision, freight_value double precision);
  create table ecommerce.products (
    product_id text, product_category_name text, product_name_length integer, description_length integer,
    product_photos_qty integer, product_weight_g integer, product_lenght_cm integer,
    product_height_cm integer, product_width_cm integer);
  create table ecommerce.product_category_name_translations (
    product_category_name text, product_category_name_english text);
  create table ecommerce.sellers (
    seller_id text, seller_zip_code_prefix text, seller_city text, seller_state text);
  create table ecommerce.geolocation (
    geolocation_zip_code_prefix text, geolocation_lat double precision, geolocation_lng double precision,
    geolocation_city text, geolocation_state text);`;

/** Numbers of rows of the generated tables. */
interface OlistRows {
  /** Also the number of orders. */
  readonly customers: number;
  readonly items: number;
  readonly geolocations: number;
}

/** Numbers of rows of the published data. */
export const FULL_SIZE: OlistRows = {
  customers: 99_441,
  items: 112_650,
  geolocations: 1_000_163,
};

/** Creates the ecommerce tables, and generates customers, orders, items and geolocations. */
export async function createEcommerce(
  { source, reader }: Databases,
  { customers, items, geolocations }: OlistRows,
): Promise<void> {
  await source.unsafe(ECOMMERCE_SOURCE);
  const city = (i: string) =>
    `(array['sao paulo', 'são josé dos campos', 'embu-guaçu', 'rio de janeiro', 'd''oeste "x"', null])[1 + ${i} % 6]`;
  const state = (i: string) => `(array['SP', 'RJ', 'MG', 'RS'])[1 + ${i} % 4]`;
  const zip = (i: string) =>
    `lpad((${i}::bigint * 7919 % 99990)::text, 5, '0')`;
  await source.unsafe(`
    insert into ecommerce.customers
    select md5('customer' || i), md5('person' || i % 96096), ${zip("i")}, ${
    city("i")
  }, ${state("i")}
    from generate_series(1, ${customers}) i;
    insert into ecommerce.orders
    select md5('order' || i), md5('customer' || i), (array['delivered', 'shipped', 'canceled'])[1 + i % 3],
      bought, case when i % 700 > 0 then bought at time zone 'UTC' + interval '17 min' end,
      case when i % 60 > 0 then bought at time zone 'UTC' + interval '2 days' end,
      case when i % 33 > 0 then bought at time zone 'UTC' + interval '9 days' end,
      date_trunc('day', bought) at time zone 'UTC' + interval '20 days'
    from generate_series(1, ${customers}) i,
      lateral (select timestamp '2016-09-04 21:15:19.123456' + i::bigint * 7919 % 66000000 * interval '1.000001 s') b (bought);
    insert into ecommerce.order_items
    select md5('order' || i % ${customers}), 1 + i / ${customers}, md5('product' || i % 32951), md5('seller' || i % 3095),
      timestamptz '2016-09-19 00:15:34+00' + i::bigint * 7919 % 66000000 * interval '1 s',
      (i * 37 % 673500) / 100.0, case when i % 383 > 0 then (i * 31 % 40968) / 100.0 end
    from generate_series(1, ${items}) i;
    -- A quarter of the rows are exact duplicates: each is there up to five times.
    insert into ecommerce.geolocation
    select ${zip("j")}, -23.5 - j::float8 / 7e6, -46.6 + j::float8 / 3e6,
      case j % 97 when 0 then 'a;b' else ${city("j")} end, ${state("j")}
    from generate_series(1, ${geolocations}) i, lateral (select case i % 4 when 0 then i / 16 else i end) d (j);
    grant usage on schema ecommerce to ${reader};
    grant select on all tables in schema ecommerce to ${reader}`);
}

/** Fills the tables that {@linkcode createEcommerce} leaves empty, for tests without the published data. */
export async function fillCatalog({ source }: Databases): Promise<void> {
  await source.unsafe(`
    insert into ecommerce.products
    select md5('product' || i), case when i % 50 > 0 then 'category ' || i % 71 end, i % 76,
      case when i % 50 > 0 then i % 3992 end, i % 20, i * 25, i % 105, i % 105, i % 118
    from generate_series(1, 500) i;
    insert into ecommerce.sellers
    select md5('seller' || i), lpad(i::text, 5, '0'), 'são paulo', 'SP' from generate_series(1, 100) i;
    insert into ecommerce.product_category_name_translations
    select 'category ' || i, 'category ' || i || ' in English' from generate_series(1, 71) i`);
}

/** Folder of the published data set. The data set is not part of the project. */
const FOLDER = Deno.env.get("OLIST_DATA") ??
  new URL("../../../shared/olist", import.meta.url).pathname;

/** Files of the published data, by the table of the source. */
const FILES = {
  "marketing.closed_deals": "closed_deals.csv",
  "marketing.marketing_qualified_leads": "marketing_qualified_leads.csv",
  "ecommerce.products": "ecommerce/olist_products_dataset.csv",
  "ecommerce.sellers": "ecommerce/olist_sellers_dataset.csv",
  "ecommerce.product_category_name_translations":
    "ecommerce/product_category_name_translation.csv",
} as const;

/** Copies a file of the published data into its table. */
export async function copyOlist(
  source: Sql,
  table: keyof typeof FILES,
): Promise<void> {
  const stream = await source.unsafe(
    `copy ${table} from stdin (format csv, header)`,
  ).writable();
  stream.end(await Deno.readFile(`${FOLDER}/${FILES[table]}`));
  await new Promise((done, fail) =>
    stream.on("finish", done).on("error", fail)
  );
}

/** Registers a test that needs the published data. It is skipped without the data. */
export function testWithOlist(
  name: string,
  fn: (t: Deno.TestContext) => Promise<void>,
): void {
  const missing = Object.values(FILES).find((file) => {
    try {
      return !Deno.statSync(`${FOLDER}/${file}`).isFile;
    } catch {
      return true;
    }
  });
  if (missing) {
    skip(name, `${missing} is not in ${FOLDER}; set OLIST_DATA to its folder`);
  }
  Deno.test({ name, ignore: missing !== undefined, fn });
}
