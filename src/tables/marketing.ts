/**
 * The default tables: the two marketing tables of the Mara project.
 *
 * @module
 */
import { parseTypeName } from "./column_types.ts";
import type { Column, Table } from "./declaration.ts";

const columnOf = (type: string) => (name: string): Column => ({
  name,
  type: parseTypeName(type),
});
const text = columnOf("text");
const timestamp = columnOf("timestamptz");
const double = columnOf("double precision");

/** The default tables, in the order in which results are reported. */
export const MARKETING_TABLES: readonly Table[] = [
  {
    name: "closed_deal",
    source: { schema: "marketing", name: "closed_deals" },
    target: { schema: "m_data", name: "closed_deal" },
    columns: [
      text("mql_id"),
      text("seller_id"),
      text("sdr_id"),
      text("sr_id"),
      timestamp("won_date"),
      text("business_segment"),
      text("lead_type"),
      text("lead_behaviour_profile"),
      text("has_company"),
      text("has_gtin"),
      text("average_stock"),
      text("business_type"),
      double("declared_product_catalog_size"),
      double("declared_monthly_revenue"),
    ],
  },
  {
    name: "marketing_qualified_lead",
    source: { schema: "marketing", name: "marketing_qualified_leads" },
    target: { schema: "m_data", name: "marketing_qualified_lead" },
    columns: [
      text("mql_id"),
      timestamp("first_contact_date"),
      text("landing_page_id"),
      text("origin"),
    ],
  },
];
