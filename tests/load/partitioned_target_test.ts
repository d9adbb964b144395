import { assertEquals } from "@std/assert";
import { createDatabases } from "../support/databases.ts";
import { runJson, runProgram } from "../support/program.ts";

Deno.test("load keeps a partitioned target partitioned, by full copies and by deltas", async () => {
  await using db = await createDatabases({ rows: { deals: 5, leads: 400 } });
  await db.warehouse.unsafe(`
    create schema m_data authorization ${db.loader};
    create table m_data.marketing_qualified_lead (
      mql_id text, first_contact_date timestamptz, landing_page_id text, origin text
    ) partition by hash (mql_id);
    create table m_data.lead_0 partition of m_data.marketing_qualified_lead
      for values with (modulus 2, remainder 0);
    create table m_data.lead_1 partition of m_data.marketing_qualified_lead
      for values with (modulus 2, remainder 1);
    alter table m_data.marketing_qualified_lead owner to ${db.loader};
    alter table m_data.lead_0 owner to ${db.loader};
    alter table m_data.lead_1 owner to ${db.loader}`);
  const words = ["load", "--table", "marketing_qualified_lead"];
  const modes: string[] = [];
  const load = async () => {
    const { code, json, stderr } = await runJson(words, db.environment);
    assertEquals(code, 0, stderr);
    modes.push(json.results.results[0].mode);
  };
  await load();
  await db.source.unsafe(
    `update marketing.marketing_qualified_leads set origin = 'changed'
     where mql_id in (md5('lead1'), md5('lead2'), md5('lead3'))`,
  );
  await load();
  await load();
  assertEquals(modes, ["full", "delta", "unchanged"]);
  const verify = await runProgram(
    ["verify", "--table", "marketing_qualified_lead"],
    db.environment,
  );
  assertEquals(verify.code, 0, verify.stdout);
  const [row] = await db.warehouse.unsafe(`select
    (select count(*)::int from m_data.lead_0) as first,
    (select count(*)::int from m_data.lead_1) as second`);
  assertEquals(row!.first + row!.second, 400);
  assertEquals(row!.first > 0 && row!.second > 0, true);
});
