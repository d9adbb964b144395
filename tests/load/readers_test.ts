import { assert, assertEquals } from "@std/assert";
import { load } from "../../src/load/load.ts";
import { ALL, contextOf, migratedDatabases } from "../support/databases.ts";

const FULL = { ...ALL, mode: "full" } as const;
const ROWS = { deals: 2000, leads: 6000 };

Deno.test("readers never wait and always count a whole table during loads", async () => {
  await using db = await migratedDatabases({ rows: ROWS });
  await using context = contextOf(db);
  await load(context, "cli", FULL);

  let isOver = false;
  let longest = 0;
  let reads = 0;
  const counts = new Set<number>();
  const seen = async (query: PromiseLike<Record<string, unknown>[]>) => {
    const started = performance.now();
    const [row] = await query;
    longest = Math.max(longest, performance.now() - started);
    reads++;
    counts.add(row!.n as number);
  };
  const count =
    "select count(*)::int as n from m_data.marketing_qualified_lead";
  const plain = (async () => {
    while (!isOver) await seen(db.warehouse.unsafe(count));
  })();
  const repeatable = (async () => {
    await using session = db.connect("warehouse");
    while (!isOver) {
      await session.unsafe("begin isolation level repeatable read");
      const inSnapshot = new Set<number>();
      for (let i = 0; i < 5; i++) {
        const [row] = await session.unsafe(count);
        inSnapshot.add(row!.n);
      }
      assertEquals(inSnapshot.size, 1);
      for (const n of inSnapshot) counts.add(n);
      await session.unsafe("commit");
    }
  })();

  for (let i = 0; i < 12; i++) {
    // Two sizes, so that the old table and the new one differ.
    await db.source.unsafe(
      i % 2 === 0
        ? "insert into marketing.marketing_qualified_leads (mql_id) values ('extra')"
        : "delete from marketing.marketing_qualified_leads where mql_id = 'extra'",
    );
    const event = await load(context, "cli", {
      ...FULL,
      mode: i % 3 === 0 ? "auto" : "full",
    });
    assertEquals(event.status, "success");
  }
  isOver = true;
  await Promise.all([plain, repeatable]);
  assert(reads > 50, `${reads} reads`);
  assertEquals([...counts].sort(), [6000, 6001]);
  // The promised limit is 50 ms. A busy host may add to it, but a lock would add seconds.
  assert(longest < 1000, `a reader waited ${longest} ms`);
});

Deno.test("a reader with an open transaction does not delay a load", async () => {
  await using db = await migratedDatabases({ rows: { deals: 10, leads: 10 } });
  await using context = contextOf(db, {
    LOCK_TIMEOUT: "1",
    RETRY_ATTEMPTS: "1",
  });
  await load(context, "cli", FULL);
  await using reader = db.connect("warehouse");
  await reader.unsafe("begin isolation level repeatable read");
  await reader.unsafe("select * from m_data.closed_deal");
  await db.source.unsafe("update marketing.closed_deals set has_gtin = 'new'");
  assertEquals((await load(context, "cli", FULL)).status, "success");
  const [old] = await reader.unsafe(
    "select count(*)::int as n from m_data.closed_deal where has_gtin = 'new'",
  );
  assertEquals(old!.n, 0, "the old transaction still sees the old table");
  await reader.unsafe("commit");
});

Deno.test("a transaction that began before a table was created sees all of its rows", async () => {
  await using db = await migratedDatabases({ rows: { deals: 10, leads: 10 } });
  await using context = contextOf(db);
  await using reader = db.connect("warehouse");
  for (const options of [ALL, { ...ALL, recreate: true }]) {
    await reader.unsafe("begin isolation level repeatable read");
    await reader.unsafe("select 1");
    assertEquals((await load(context, "cli", options)).status, "success");
    const [seen] = await reader.unsafe(
      "select count(*)::int as n from m_data.closed_deal",
    );
    assertEquals(seen!.n, 10);
    await reader.unsafe("commit");
  }
});
