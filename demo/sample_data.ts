/**
 * Source tables and sample rows of a marketing funnel, for the demo, the tests and
 * the benchmark. They are the same on every machine.
 *
 * @module
 */

/** Anything that runs SQL text. */
interface Executor {
  unsafe(text: string): PromiseLike<unknown>;
}

/** DDL of the source tables. They have no keys and no indexes, and all columns are nullable. */
export const SOURCE_TABLES = `
  create table marketing.closed_deals (
    mql_id text, seller_id text, sdr_id text, sr_id text, won_date timestamptz,
    business_segment text, lead_type text, lead_behaviour_profile text,
    has_company text, has_gtin text, average_stock text, business_type text,
    declared_product_catalog_size double precision, declared_monthly_revenue double precision
  );
  create table marketing.marketing_qualified_leads (
    mql_id text, first_contact_date date, landing_page_id text, origin text
  );`;

/**
 * Fills the source tables. Row i depends only on i, so the content is the same each
 * time. A larger table begins with the rows of a smaller one.
 */
export async function fillSource(
  sql: Executor,
  rows: { readonly deals: number; readonly leads: number },
): Promise<void> {
  await sql.unsafe(`
    insert into marketing.marketing_qualified_leads
    select md5('lead' || i),
      date '2017-06-14' + (i::bigint * 7919 % 352)::int,
      md5('page' || i % 495),
      (array['organic_search', 'paid_search', 'social', 'direct_traffic', 'email', 'referral', 'unknown', null])
        [1 + i * 31 % 8]
    from generate_series(1, ${rows.leads}) i`);
  await sql.unsafe(`
    insert into marketing.closed_deals
    select md5('lead' || i * 9), md5('seller' || i), md5('sdr' || i % 32), md5('sr' || i % 22),
      timestamptz '2017-12-05 02:00+00' + i::bigint * 7919 % 8000000 * interval '3.141593 s',
      (array['pet', 'car_accessories', 'home_appliances', 'food_drink', 'health_beauty', 'toys', 'watches'])[1 + i % 7],
      (array['online_medium', 'industry', 'online_big', 'online_small', 'offline', null])[1 + i % 6],
      (array['cat', 'eagle', 'wolf', 'shark', null, 'cat, wolf'])[1 + i * 5 % 6],
      case when i % 13 = 0 then (i % 2 = 0)::text end,
      case when i % 14 = 0 then (i % 3 = 0)::text end,
      case when i % 12 = 0 then (array['1-5', '5-20', '20-50', '50-200', '200+', 'unknown'])[1 + i % 6] end,
      (array['reseller', 'manufacturer', 'other'])[1 + i % 3],
      case when i % 12 = 0 then i % 2000 end,
      case when i % 20 = 0 then i * 1000.5 else 0 end
    from generate_series(1, ${rows.deals}) i`);
}
