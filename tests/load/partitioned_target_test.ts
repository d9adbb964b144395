import { assertEquals, assertStringIncludes } from "@std/assert";
import { migratedDatabases } from "../support/databases.ts";
import { runJson, runProgram } from "../support/program_here.ts";

Deno.test("load keeps a partitioned target partitioned, with full copies and deltas", async () => {
  await using db = await migratedDatabases({ rows: { deals: 5, leads: 400 } });
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

Deno.test("load refuses a partitioned target with a foreign partition, and writes nothing", async () => {
  await using db = await migratedDatabases({ rows: { deals: 5, leads: 5 } });
  await db.warehouse.unsafe(`
    create schema m_data authorization ${db.loader};
    create table m_data.marketing_qualified_lead (
      mql_id text, first_contact_date timestamptz, landing_page_id text, origin text
    ) partition by list (origin);
    create table m_data.here partition of m_data.marketing_qualified_lead default;
    create foreign data wrapper nowhere;
    create server elsewhere foreign data wrapper nowhere;
    create foreign table m_data.there partition of m_data.marketing_qualified_lead
      for values in ('social') server elsewhere;
    alter table m_data.marketing_qualified_lead owner to ${db.loader};
    alter table m_data.here owner to ${db.loader}`);
  for (const words of [["load"], ["verify"]]) {
    const { code, stderr, stdout } = await runProgram(
      [...words, "--table", "marketing_qualified_lead"],
      db.environment,
    );
    assertEquals(code, 1, stdout);
    assertStringIncludes(
      stderr + stdout,
      "has foreign partitions, and another server commits those separately: m_data.there. Detach them with ALTER TABLE m_data.marketing_qualified_lead DETACH PARTITION …",
    );
  }
  const [row] = await db.warehouse.unsafe(
    "select count(*)::int as count from m_data.here",
  );
  assertEquals(row!.count, 0);
});
