import { assertEquals } from "@std/assert";
import { castToTarget } from "../../src/diff/row_hash.ts";
import { load } from "../../src/load/load.ts";
import { MARKETING_TABLES } from "../../src/tables/marketing.ts";
import {
  ALL,
  contextOf,
  createDatabases,
  type Sql,
} from "../support/databases.ts";

/** The effects of a trigger on the target during a delta, and the expected result of the load. */
const TRIGGERS: Readonly<
  Record<string, { body: string; status: "success" | "failure" }>
> = {
  "takes another row away": {
    body: "delete from m_data.closed_deal where mql_id = 'bystander';",
    status: "failure",
  },
  "takes another row away and puts a third there": {
    body: `delete from m_data.closed_deal where mql_id = 'bystander';
      insert into m_data.closed_deal (mql_id) values ('stranger');`,
    status: "failure",
  },
  "changes another row, in a subtransaction": {
    body: `begin
        update m_data.closed_deal set has_gtin = 'no' where mql_id = 'bystander';
      exception when others then null; end;`,
    status: "failure",
  },
  "puts another row there, in a subtransaction": {
    body: `begin
        insert into m_data.closed_deal (mql_id) values ('stranger');
      exception when others then null; end;`,
    status: "failure",
  },
  "changes another row to what it was": {
    body:
      "update m_data.closed_deal set has_gtin = has_gtin where mql_id = 'bystander';",
    status: "success",
  },
  "writes elsewhere": {
    body: "insert into public.audit values (new.mql_id);",
    status: "success",
  },
};

for (const [what, { body, status }] of Object.entries(TRIGGERS)) {
  Deno.test(`load with a trigger that ${what} during a delta: ${status}`, async () => {
    await using db = await createDatabases({ rows: { deals: 300, leads: 5 } });
    await using context = contextOf(db);
    await db.source.unsafe(
      "insert into marketing.closed_deals (mql_id) values ('bystander'), ('changed')",
    );
    await load(context, "cli", ALL);
    await db.warehouse.unsafe(
      `create table public.audit (mql_id text); grant insert on public.audit to public;
       create function public.meddle() returns trigger language plpgsql as
         $f$ begin if new.mql_id = 'changed' then ${body} end if; return null; end $f$;
       create trigger meddle after insert on m_data.closed_deal
         for each row execute function public.meddle()`,
    );
    await db.source.unsafe(
      "update marketing.closed_deals set has_gtin = 'new' where mql_id = 'changed'",
    );
    const event = await load(context, "cli", ALL);
    assertEquals(event.status, status);
    const rows = await db.warehouse.unsafe(
      "select mql_id, has_gtin from m_data.closed_deal where mql_id in ('bystander', 'changed', 'stranger') order by 1",
    );
    assertEquals(rows.map((row) => [row.mql_id, row.has_gtin]), [
      ["bystander", null],
      ["changed", status === "success" ? "new" : null],
    ]);
    if (event.status === "failure") {
      const [deals] = event.details.results;
      assertEquals(
        deals!.status === "failure" && deals!.code,
        "verification_failed",
      );
    }
  });
}

Deno.test("a delta stays small when the first column has one value in all rows", async () => {
  await using db = await createDatabases();
  await using context = contextOf(db);
  await db.source.unsafe(
    `insert into marketing.closed_deals (mql_id, seller_id) select null, i::text from generate_series(1, 2000) i;
     insert into marketing.marketing_qualified_leads (mql_id, origin) select 'same', i::text from generate_series(1, 2000) i`,
  );
  await load(context, "cli", ALL);
  await db.source.unsafe(
    `update marketing.closed_deals set has_gtin = 'x' where seller_id = '7';
     delete from marketing.marketing_qualified_leads where origin = '7'`,
  );
  const event = await load(context, "cli", ALL);
  assertEquals(
    event.status === "success" &&
      event.results.results.map((
        r,
      ) => [r.mode, r.rows_inserted, r.rows_deleted]),
    [["delta", 1, 1], ["delta", 0, 1]],
  );
});

/** Changes between two loads, and the number of rows that a load then copies. */
const CHANGES: readonly {
  what: string;
  source?: string;
  warehouse?: string;
  copied: number;
}[] = [
  {
    what: "rows are changed",
    source:
      "update marketing.closed_deals set has_gtin = 'new' where mql_id in ('a', 'b')",
    copied: 2,
  },
  {
    what: "a row is added",
    source: "insert into marketing.closed_deals (mql_id) values ('c')",
    copied: 1,
  },
  {
    what: "a twin is added",
    source:
      "insert into marketing.closed_deals (mql_id, seller_id) values ('a', 'seller of a')",
    copied: 2,
  },
  {
    what: "a row with the key of another one is added",
    source:
      "insert into marketing.closed_deals (mql_id, has_gtin) values ('a', 'x')",
    copied: 1,
  },
  {
    what: "a key is changed",
    source: "update marketing.closed_deals set mql_id = 'z' where mql_id = 'a'",
    copied: 1,
  },
  {
    what: "a row is deleted and another one changed",
    source: `delete from marketing.closed_deals where mql_id = 'a';
      update marketing.closed_deals set has_gtin = 'new' where mql_id = 'b'`,
    copied: 1,
  },
  {
    what: "two rows exchange a value",
    source: `update marketing.closed_deals set seller_id =
      case mql_id when 'a' then 'seller of b' else 'seller of a' end where mql_id in ('a', 'b')`,
    copied: 2,
  },
  {
    what: "a row is written again unchanged",
    source:
      "update marketing.closed_deals set has_gtin = has_gtin where mql_id = 'a'",
    copied: 0,
  },
  {
    what: "a row is changed here and another one is damaged there",
    source:
      "update marketing.closed_deals set has_gtin = 'new' where mql_id = 'a'",
    warehouse:
      "update m_data.closed_deal set has_gtin = 'other' where mql_id = 'b'",
    copied: 2,
  },
  {
    what: "a row is damaged there",
    warehouse: "delete from m_data.closed_deal where mql_id = 'b'",
    copied: 1,
  },
  {
    what: "a row is changed and the source's transaction counter restarts",
    source:
      "update marketing.closed_deals set has_gtin = 'new' where mql_id = 'a'",
    warehouse: `update marketing_data_service.table_load
      set source_mark = json_build_object('deletions', source_mark ->> 'deletions', 'xid', '9223372036854775000')`,
    copied: 1,
  },
  {
    what: "a row is changed and the last load's mark is damaged",
    source:
      "update marketing.closed_deals set has_gtin = 'new' where mql_id = 'a'",
    warehouse:
      `update marketing_data_service.table_load set source_mark = '{"xid": "abc"}'`,
    copied: 1,
  },
  {
    what: "a row is changed and the last load has left no mark",
    source:
      "update marketing.closed_deals set has_gtin = 'new' where mql_id = 'a'",
    warehouse:
      "update marketing_data_service.table_load set source_mark = null",
    copied: 1,
  },
];

async function rowsOf(database: Sql, relation: string): Promise<string[]> {
  const { columns } = MARKETING_TABLES.find((t) => t.name === "closed_deal")!;
  const rows = await database.unsafe(
    `select row(${
      columns.map(castToTarget)
    })::text collate "C" as line from ${relation} order by line`,
  );
  return rows.map((row) => row.line);
}

for (const { what, source, warehouse, copied } of CHANGES) {
  Deno.test(`a load copies no more than ${copied} rows when ${what}`, async () => {
    await using db = await createDatabases({ rows: { deals: 2000, leads: 5 } });
    await using context = contextOf(db);
    await db.source.unsafe(
      "insert into marketing.closed_deals (mql_id, seller_id) values ('a', 'seller of a'), ('b', 'seller of b')",
    );
    await load(context, "cli", ALL);
    if (source) await db.source.unsafe(source);
    if (warehouse) await db.warehouse.unsafe(warehouse);
    for (const expected of [copied, 0]) {
      const event = await load(context, "cli", ALL);
      assertEquals(event.status, "success");
      const [deals] = event.status === "success" ? event.results.results : [];
      assertEquals(
        [deals!.mode, deals!.rows_inserted],
        [expected > 0 ? "delta" : "unchanged", expected],
      );
    }
    assertEquals(
      await rowsOf(db.warehouse, "m_data.closed_deal"),
      await rowsOf(db.source, "marketing.closed_deals"),
    );
  });
}
