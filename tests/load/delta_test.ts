import { Buffer } from "node:buffer";
import { assertEquals } from "@std/assert";
import { connectionOf } from "../../src/context.ts";
import { diffRows } from "../../src/diff/find_difference.ts";
import { copyRows } from "../../src/postgres/copy.ts";
import { castToTarget } from "../../src/diff/row_hash.ts";
import { load } from "../../src/load/load.ts";
import { Session } from "../../src/postgres/session.ts";
import { parseTypeName } from "../../src/tables/column_types.ts";
import { MARKETING_TABLES } from "../../src/tables/marketing.ts";
import {
  ALL,
  contextOf,
  migratedDatabases,
  type Sql,
} from "../support/databases.ts";
import { Random } from "../support/random.ts";

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
    await using db = await migratedDatabases({
      rows: { deals: 300, leads: 5 },
    });
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
  await using db = await migratedDatabases();
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

Deno.test("a delta has any number of rows, although a statement names only some", async () => {
  await using db = await migratedDatabases();
  await using context = contextOf(db);
  await db.source.unsafe(
    "insert into marketing.marketing_qualified_leads (mql_id, origin) select i::text, 'old' from generate_series(1, 150000) i",
  );
  await load(context, "cli", ALL);
  await db.source.unsafe(
    "update marketing.marketing_qualified_leads set origin = 'new' where mql_id::int % 15 < 7",
  );
  const event = await load(context, "cli", ALL);
  const [, leads] = event.status === "success" ? event.results.results : [];
  assertEquals(
    [leads!.mode, leads!.rows_inserted, leads!.rows_deleted],
    ["delta", 70_000, 70_000],
  );
  const [found] = await db.warehouse.unsafe(
    `select count(*)::int, count(*) filter (where (origin = 'new') = (mql_id::int % 15 < 7))::int as right
     from m_data.marketing_qualified_lead`,
  );
  assertEquals(found, { count: 150_000, right: 150_000 });

  // A foreign key must see all rows at once: each row refers to the next one.
  await db.warehouse.unsafe(
    `alter table m_data.marketing_qualified_lead add primary key (mql_id),
       add foreign key (landing_page_id) references m_data.marketing_qualified_lead`,
  );
  await db.source.unsafe(
    `insert into marketing.marketing_qualified_leads (mql_id, landing_page_id)
     select i::text, nullif(i + 1, 170001)::text from generate_series(150001, 170000) i`,
  );
  assertEquals((await load(context, "cli", ALL)).status, "success");
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
    copied: 1,
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
    what: "a row is changed and the last load's mark is of an older version",
    source:
      "update marketing.closed_deals set has_gtin = 'new' where mql_id = 'a'",
    warehouse:
      `update marketing_data_service.table_load set source_mark = '{"deletions": "0", "xid": "abc"}'`,
    copied: 1,
  },
  {
    what: "a row is changed and the source does not count it",
    source:
      `update marketing.closed_deals set has_gtin = 'new' where mql_id = 'a';
      select pg_stat_reset()`,
    warehouse:
      `update marketing_data_service.table_load set source_mark = '{"changes": "0"}'`,
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

Deno.test("a load copies only the rows that differ", async (t) => {
  await using db = await migratedDatabases({ rows: { deals: 2000, leads: 5 } });
  await using context = contextOf(db);
  for (const { what, source, warehouse, copied } of CHANGES) {
    await t.step(`when ${what}: ${copied}`, async () => {
      await db.source.unsafe(
        `delete from marketing.closed_deals where length(mql_id) = 1;
         insert into marketing.closed_deals (mql_id, seller_id) values ('a', 'seller of a'), ('b', 'seller of b')`,
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
});

const SEED = Number(Deno.env.get("RANDOM_SEED") ?? Date.now() % 1_000_000);

Deno.test(`a delta writes exactly the rows that differ, in every kind of table (RANDOM_SEED=${SEED})`, async () => {
  const random = new Random(SEED);
  await using db = await migratedDatabases({ withoutTables: true });
  await using shared = contextOf(db);
  await db.source.unsafe(
    `create schema rnd; create table rnd.t (hash int, needed text);
     create view rnd.v as select * from rnd.t;
     insert into rnd.t select i / 2, i / 3 from generate_series(1, 6000) i;
     insert into rnd.t select null from generate_series(1, 500);
     grant usage on schema rnd to "${db.reader}"; grant select on rnd.t, rnd.v to "${db.reader}"`,
  );
  await db.warehouse.unsafe(
    `create schema raw; grant create, usage on schema raw to "${db.loader}";
     create table raw.parts (hash int, needed text) partition by hash (hash);
     create table raw.part_0 partition of raw.parts for values with (modulus 2, remainder 0);
     create table raw.part_1 partition of raw.parts for values with (modulus 2, remainder 1);
     alter table raw.parts owner to "${db.loader}";`,
  );
  // Names that the program's SQL uses, too.
  const columns = [{ name: "hash", type: parseTypeName("integer") }, {
    name: "needed",
    type: parseTypeName("text"),
  }];
  // The view has no ctid, nor have the rows of a partitioned target.
  const tables = [["t", "plain"], ["v", "view"], ["t", "parts"], [
    "v",
    "mapped",
  ]].map(([source, name]) => ({
    name: name!,
    source: { schema: "rnd", name: source! },
    target: { schema: "raw", name: name! },
    columns,
    ...(name === "mapped" ? { where: "true" } : {}),
  }));
  const context = { ...shared, config: { ...shared.config, tables } };
  const options = { ...ALL, tables: tables.map(({ name }) => name) };
  let before = new Map<string, number>();
  for (let round = 0; round < 8; round++) {
    if (round > 0) {
      await changeRows(db.source, random);
      if (random.chance(0.3)) {
        await db.warehouse.unsafe(
          "update marketing_data_service.table_load set source_mark = null",
        );
      }
    }
    const event = await load(context, "cli", options);
    const results = event.status === "success" ? event.results.results : [];
    assertEquals(results.length, tables.length, JSON.stringify(event));
    const after = await copiesOf(db.source, "rnd.t");
    const [inserted, deleted] = [
      surplus(after, before),
      surplus(before, after),
    ];
    for (const result of results) {
      assertEquals(
        [result.table, result.rows_inserted, result.rows_deleted],
        [result.table, inserted, deleted],
      );
      assertEquals(await copiesOf(db.warehouse, `raw.${result.table}`), after);
    }
    before = after;
  }
});

/** Inserts, updates or deletes up to five percent of the rows, or all of that, scattered or side by side. */
async function changeRows(source: Sql, random: Random): Promise<void> {
  const share = random.pick([0.0002, 0.002, 0.01, 0.05]);
  // A page has about 200 of the 6,500 rows.
  const some = () => {
    const first = random.below(28);
    return random.chance(0.5)
      ? `random() < ${share}`
      : `ctid >= '(${first},1)' and ctid < '(${first + 1},1)'`;
  };
  const kinds = [
    () => `insert into rnd.t select * from rnd.t where ${some()}`,
    () => `insert into rnd.t select -hash, 'new' from rnd.t where ${some()}`,
    () => `update rnd.t set needed = random() where ${some()}`,
    () => `delete from rnd.t where ${some()}`,
    () => `update rnd.t set needed = needed where ${some()}`,
  ];
  const changes = random.chance(0.4) ? kinds : [random.pick(kinds)];
  await source.unsafe(changes.map((change) => change()).join(";"));
}

/** Returns the number of copies of each row. */
async function copiesOf(
  database: Sql,
  relation: string,
): Promise<Map<string, number>> {
  const rows = await database.unsafe(
    `select r::text as row, count(*)::int as copies from ${relation} r group by 1 order by 1`,
  );
  return new Map(rows.map(({ row, copies }) => [row, copies]));
}

/** Returns how many rows `here` has more than `there`. */
function surplus(
  here: ReadonlyMap<string, number>,
  there: ReadonlyMap<string, number>,
): number {
  return [...here].reduce(
    (sum, [row, copies]) => sum + Math.max(copies - (there.get(row) ?? 0), 0),
    0,
  );
}

/** Lets a session receive its data in pieces of 1 to 40 bytes. */
function receiveInPieces({ socket }: Session, random: Random): void {
  const emit = socket.emit;
  socket.emit = function (event: string, ...values: unknown[]) {
    if (event !== "data") {
      return Reflect.apply(emit, socket, [event, ...values]);
    }
    const chunk = values[0] as Buffer;
    for (let at = 0; at < chunk.length;) {
      const end = at + 1 + random.below(40);
      Reflect.apply(emit, socket, [
        "data",
        Buffer.from(chunk.subarray(at, end)),
      ]);
      at = end;
    }
    return true;
  } as typeof emit;
}

Deno.test(`diffRows() and copyRows() need not one pass, nor whole messages (RANDOM_SEED=${SEED})`, async () => {
  const random = new Random(SEED);
  await using db = await migratedDatabases({ withoutTables: true });
  await using context = contextOf(db);
  await db.warehouse.unsafe(
    `create table public.a (id int); create table public.b (id int); create table public.c (id int);
     insert into public.a select i % 3000 from generate_series(1, 9000) i;
     insert into public.b select i from generate_series(2500, 9000) i order by random();
     grant select on public.a, public.b to "${db.loader}"; grant insert on public.c to "${db.loader}"`,
  );
  const connection = connectionOf(context.config, "test");
  const found: string[][][] = [];
  for (const maxPending of [1024, 2 ** 20]) {
    await using one = await Session.open(context.config.dwh, connection);
    await using other = await Session.open(context.config.dwh, connection);
    if (maxPending === 1024) receiveInPieces(one, random);
    for (const session of [one, other]) {
      await session.begin({ mode: "read committed", lockTimeoutSeconds: 1 });
    }
    const { difference, source, target } = await diffRows({
      table: {
        name: "t",
        source: { schema: "public", name: "a" },
        target: { schema: "public", name: "b" },
        columns: [{ name: "id", type: parseTypeName("integer") }],
      },
      source: { session: one, relation: "public.a", hasStableCtid: true },
      target: { session: other, relation: "public.b", hasStableCtid: false },
      method: { kind: "native", seed: 7n },
    }, maxPending);
    assertEquals([source.count, target.count], [9000, 6501]);
    assertEquals(difference.isWhole, true);
    assertEquals([difference.source.count, difference.target.count], [
      8500,
      6001,
    ]);
    found.push([
      [...difference.source.hashes()].sort(),
      [...difference.target.hashes()].sort(),
    ]);
    // The session is still usable.
    const copied = await copyRows(
      one,
      "select * from public.a",
      other,
      "public.c",
      "binary",
      () => {},
    );
    assertEquals([copied.rows, copied.sourceRows], [9000, 9000]);
    assertEquals((await one.query("select 1 as one"))[0]!.one, 1);
    await other.commit();
  }
  assertEquals(found[0], found[1]);
  const [row] = await db.warehouse.unsafe(
    "select count(*)::int as copies, sum(id)::int as sum from public.c",
  );
  assertEquals([row!.copies, row!.sum], [18_000, 18_000 / 3000 * 2999 * 1500]);
});
