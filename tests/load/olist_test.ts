import { assertEquals } from "@std/assert";
import { createDatabases } from "../support/databases.ts";
import { runJson, runProgram } from "../support/program.ts";

/** Folder of the published data set. The data set is not part of the project. */
const FOLDER = Deno.env.get("OLIST_DATA") ??
  new URL("../../../shared/olist", import.meta.url).pathname;

const isThere = (() => {
  try {
    return Deno.statSync(`${FOLDER}/closed_deals.csv`).isFile;
  } catch {
    return false;
  }
})();

if (!isThere) {
  Deno.stderr.writeSync(new TextEncoder().encode(
    `SKIPPED: the Olist marketing funnel data is not in ${FOLDER}; set OLIST_DATA to its folder.\n`,
  ));
}

Deno.test({
  name:
    "load copies the real Olist data with equal values, and then reports unchanged",
  ignore: !isThere,
  async fn() {
    await using db = await createDatabases();
    for (const table of ["closed_deals", "marketing_qualified_leads"]) {
      const stream = await db.source.unsafe(
        `copy marketing.${table} from stdin (format csv, header)`,
      )
        .writable();
      stream.end(await Deno.readFile(`${FOLDER}/${table}.csv`));
      await new Promise((done, fail) =>
        stream.on("finish", done).on("error", fail)
      );
    }
    const environment = { ...db.environment, LOAD_TIMEZONE: "Europe/Berlin" };
    const first = await runJson(["load"], environment);
    assertEquals(first.code, 0, first.stderr);
    assertEquals(
      first.json.results.results.map((r: { records_loaded: number }) =>
        r.records_loaded
      ),
      [842, 8000],
    );
    const order = 'order by t::text collate "C"';
    for (
      const [source, target] of [
        [
          "select * from marketing.closed_deals",
          "select * from m_data.closed_deal",
        ],
        [
          `select mql_id, first_contact_date::timestamp at time zone 'Europe/Berlin', landing_page_id, origin
           from marketing.marketing_qualified_leads`,
          "select * from m_data.marketing_qualified_lead",
        ],
      ]
    ) {
      const rows = (query: string) =>
        `select t::text as row from (${query}) t ${order}`;
      assertEquals(
        (await db.warehouse.unsafe(rows(target!))).map((r) => r.row),
        (await db.source.unsafe(rows(source!))).map((r) => r.row),
      );
    }
    const second = await runJson(["load"], environment);
    assertEquals(
      second.json.results.results.map((r: { mode: string }) => r.mode),
      ["unchanged", "unchanged"],
    );
    assertEquals((await runProgram(["verify"], environment)).code, 0);
  },
});
