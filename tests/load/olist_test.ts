import { assertEquals } from "@std/assert";
import { createDatabases } from "../support/databases.ts";
import { copyOlist, testWithOlist } from "../support/olist.ts";
import { runJson, runProgram } from "../support/program_here.ts";

testWithOlist(
  "load copies the real Olist data with equal values, and then reports unchanged",
  async () => {
    await using db = await createDatabases();
    await copyOlist(db.source, "marketing.closed_deals");
    await copyOlist(db.source, "marketing.marketing_qualified_leads");
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
);
