/**
 * The tables that the service keeps equal, and their columns.
 *
 * DDL, casts, fingerprints, COPY lists and column checks are derived from this
 * list.
 *
 * @module
 */

/** PostgreSQL type of a target column, spelled as `format_type` prints it. */
type ColumnType =
  | "text"
  | "timestamp with time zone"
  | "double precision";

/** One column of a table; source and target columns have the same name. */
export interface Column {
  readonly name: string;
  /** Type in the warehouse. The source column is cast to it. */
  readonly type: ColumnType;
}

/** Name of a table as users say it: `load --table closed_deal`. */
export type TableName = "closed_deal" | "marketing_qualified_lead";

/** A source table and the warehouse table that is kept equal to it. */
export interface Table {
  readonly name: TableName;
  readonly source: { readonly schema: string; readonly name: string };
  readonly target: { readonly schema: string; readonly name: string };
  readonly columns: readonly Column[];
}

/** Schema of the target tables. Mara drops it with CASCADE, so nothing else of ours lives there. */
export const TARGET_SCHEMA = "m_data";

const text = (name: string): Column => ({ name, type: "text" });
const timestamp = (name: string): Column => ({
  name,
  type: "timestamp with time zone",
});
const double = (name: string): Column => ({ name, type: "double precision" });

/** Every table of the service, in the order in which results are reported. */
export const TABLES: readonly Table[] = [
  {
    name: "closed_deal",
    source: { schema: "marketing", name: "closed_deals" },
    target: { schema: TARGET_SCHEMA, name: "closed_deal" },
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
    target: { schema: TARGET_SCHEMA, name: "marketing_qualified_lead" },
    columns: [
      text("mql_id"),
      timestamp("first_contact_date"),
      text("landing_page_id"),
      text("origin"),
    ],
  },
];

/** Names of all tables, for messages and validation. */
export const TABLE_NAMES: readonly TableName[] = TABLES.map((t) => t.name);

/** The tables of the given names, each once, in the order of {@linkcode TABLES}. */
export function tablesNamed(names: readonly TableName[]): readonly Table[] {
  return TABLES.filter((table) => names.includes(table.name));
}

/**
 * SQL, lateral to `pg_attribute a`, of the stored type of a column: `oid` and
 * `typmod`. A domain stores its base type, through any number of domains.
 */
export const BASE_TYPE = `(
  with recursive domain (oid, typmod, depth) as (
    select a.atttypid, a.atttypmod, 0
    union all
    select t.typbasetype, t.typtypmod, domain.depth + 1
    from domain join pg_catalog.pg_type t on t.oid = domain.oid and t.typtype = 'd')
  select oid, typmod from domain order by depth desc limit 1)`;

/**
 * Returns why a source column of this type cannot be loaded into the target
 * column, or `undefined` when it can. `sourceType` is a domain's base type, spelled as
 * `format_type` prints it, `category` is `pg_type.typcategory`.
 */
export function incompatibility(
  column: Column,
  sourceType: string,
  category: string,
): string | undefined {
  const allowed = column.type === "text"
    ? category === "S" || category === "E" || sourceType === "uuid"
    : column.type === "double precision"
    ? category === "N" && NUMBERS.has(sourceType.replace(/\(.*\)/, ""))
    : DATES.has(sourceType.replace(/\(\d\)/, ""));
  return allowed
    ? undefined
    : `its type ${sourceType} cannot become ${column.type} without a change of meaning`;
}

const NUMBERS = new Set([
  "double precision",
  "real",
  "smallint",
  "integer",
  "bigint",
  "numeric",
]);

const DATES = new Set([
  "timestamp with time zone",
  "timestamp without time zone",
  "date",
]);

/** A warning for a source type whose values a double can round, or `undefined`. */
export function roundingWarning(
  column: Column,
  sourceType: string,
): string | undefined {
  return column.type === "double precision" &&
      /^(bigint|numeric)/.test(sourceType)
    ? `column "${column.name}" is ${sourceType} in the source and is rounded to double precision`
    : undefined;
}
