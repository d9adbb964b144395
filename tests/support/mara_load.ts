/**
 * Loads tables as the pipelines of mara-example-project-1 do.
 *
 * @module
 */
import type { Databases } from "./databases.ts";
import { MARA_TABLES, type MaraTable } from "./olist.ts";

/** The formats of Mara's `Copy`: CSV with `csv_format=True`, and plain text without. */
type MaraFormat = "csv" | "plain";

interface MaraLoad {
  readonly tables?: readonly Omit<MaraTable, "name">[];
  /** Time zone of the sessions. */
  readonly zone?: string;
  /** Role that owns the tables. Without it, the superuser owns them, and the service may read them. */
  readonly role?: string;
  /** Whether to keep the schemas, as Mara does when its SQL file and dates are as before. */
  readonly keepsSchemas?: boolean;
}

/**
 * Loads tables as a Mara pipeline does. It creates schemas and tables again, and
 * pipes by position: `psql | sed '/^$/d' | psql` with `PGTZ` on both sides and
 * `delimiter_char=';'`.
 */
export async function loadWithMara(
  db: Databases,
  format: MaraFormat,
  {
    tables = MARA_TABLES.marketing,
    zone = "Europe/Berlin",
    role,
    keepsSchemas = false,
  }: MaraLoad = {},
): Promise<void> {
  const psql = (side: "OLIST" | "DWH", flags = "") =>
    `PGTZ=${zone} PGOPTIONS='--client-min-messages=warning${
      role && side === "DWH" ? ` --role=${role}` : ""
    }' psql --username=postgres ` +
    `--host=${db.environment[`${side}_DB_HOST`]} --port=${
      db.environment[`${side}_DB_PORT`]
    } --no-psqlrc --set ON_ERROR_STOP=on ${
      db.environment[`${side}_DB_NAME`]
    } ${flags}`;
  await using warehouse = db.connect("warehouse");
  if (role) await warehouse.unsafe(`set role ${role}`);
  const schemas = new Set(tables.map(({ target }) => target.split(".")[0]!));
  for (const schema of keepsSchemas ? [] : schemas) {
    await warehouse.unsafe(
      `drop schema if exists ${schema} cascade; create schema ${schema};
       ${role ? "" : `grant usage on schema ${schema} to ${db.loader}`}`,
    );
  }
  for (const { target, columns, select } of tables) {
    await warehouse.unsafe(
      `drop table if exists ${target} cascade; create table ${target} (${columns});
       ${role ? "" : `grant select on ${target} to ${db.loader}`}`,
    );
    const read = format === "csv"
      ? `echo "copy (${select}) to stdout with csv delimiter ';'" | ${
        psql("OLIST")
      }`
      : `echo "${select};" | ${
        psql("OLIST", `--tuples-only --no-align --field-separator=';'`)
      }`;
    const write = psql(
      "DWH",
      `--command="copy ${target} from stdin with ${
        format === "csv" ? "csv " : ""
      }delimiter as ';' null as ''"`,
    );
    const { success, stderr } = await new Deno.Command("sh", {
      args: ["-c", `${read} | sed '/^$/d' | ${write}`],
    }).output();
    const text = new TextDecoder().decode(stderr);
    if (!success || text) throw new Error(`${target}: ${text}`);
  }
}
