import { assert } from "@std/assert";
import { Random } from "../support/random.ts";
import { IS_THOROUGH } from "../support/thorough.ts";
import { contextOf, type Databases, type Sql } from "../support/databases.ts";
import { connectionOf } from "../../src/context.ts";
import { Session } from "../../src/postgres/session.ts";
import { PhaseClock } from "../../src/sync/progress.ts";
import { openSnapshot } from "../../src/sync/snapshot.ts";
import {
  beginWithLocks,
  type LastLoad,
  syncTable,
} from "../../src/sync/sync_table.ts";
import {
  assertEqualItems,
  ITEM,
  itemDatabases,
  loadItems,
  rowsSql,
  startScenes,
} from "../support/proof_scene.ts";

/** Number of random steps. A synchronization, and a comparison of all values, follows each. */
const STEPS = Number(
  Deno.env.get("RANDOM_STEPS") ?? (IS_THOROUGH ? 5000 : 200),
);
const SEED = Number(Deno.env.get("RANDOM_SEED") ?? Date.now() % 1_000_000);

/** An open transaction of another writer. */
interface Writer {
  readonly sql: Sql;
  state: "idle" | "open" | "prepared";
}

const some = (relation: string, count: number) =>
  `ctid in (select ctid from ${relation} order by random() limit ${count} for update skip locked)`;

/** A statement that writes rows of the relation. */
function write(random: Random, relation: string, id: number): string {
  const count = 1 + random.below(3);
  const insert = relation === "shop.item"
    ? rowsSql(id, id + count - 1)
    : `insert into raw.item (id, note) select ${id}, 'odd' from generate_series(1, ${count})`;
  return random.pick([
    insert,
    insert,
    insert,
    `update ${relation} set amount = -amount where ${some(relation, count)}`,
    `update ${relation} set note = note where ${some(relation, count)}`,
    `delete from ${relation} where ${some(relation, count)}`,
    `delete from ${relation} where ${some(relation, 1)}; ${insert}`,
    `do $$ begin begin update ${relation} set amount = amount + 1 where ${
      some(relation, count)
    }; exception when division_by_zero then null; end; end $$`,
    `do $$ begin begin ${insert}; perform 1 / 0; exception when division_by_zero then null; end; end $$`,
  ]);
}

/** Statements that must not change what a load finds, or that rewrite a table. */
const MAINTENANCE = [
  "vacuum $",
  "vacuum freeze $",
  "analyze $",
  "vacuum full $",
  "select txid_current()",
  "checkpoint",
  "alter table $ alter note set statistics 50",
];

/** DDL of the source, which waits for open transactions and then gives up. */
const DDL = [
  "alter table shop.item drop amount; alter table shop.item add amount numeric default 7",
  "create table shop.kept as select * from shop.item; update shop.kept set amount = 1; truncate shop.item; insert into shop.item (id, amount, mood, day, note) select id, amount, mood, day, note from shop.kept; drop table shop.kept",
  "alter type shop.mood rename value 'sad' to 'x'; alter type shop.mood rename value 'glad' to 'sad'; alter type shop.mood rename value 'x' to 'glad'",
];

async function step(
  random: Random,
  db: Pick<Databases, "source" | "warehouse">,
  writers: readonly Writer[],
  id: number,
): Promise<string> {
  const side = random.chance(0.7) ? "source" : "warehouse";
  const relation = side === "source" ? "shop.item" : "raw.item";
  const kind = random.next();
  if (kind < 0.25) {
    const sql = write(random, relation, id);
    await db[side].unsafe(sql);
    return `${side}: ${sql}`;
  }
  if (kind < 0.45) {
    const sql = random.pick(MAINTENANCE).replace("$", relation);
    await db[side].unsafe(sql).catch(() => {});
    return `${side}: ${sql}`;
  }
  if (kind < 0.5) {
    const sql = random.pick(DDL);
    await db.source.unsafe(`begin; ${sql}; commit`)
      .catch(() => db.source.unsafe("rollback"));
    return sql;
  }
  if (kind < 0.65) return "nothing";
  const number = random.below(writers.length);
  const writer = writers[number]!;
  // A transaction that has written to the target would keep the load from its lock.
  const isTarget = number === 0;
  const run = async (sql: string) => {
    await writer.sql.unsafe(sql).catch(async () => {
      await writer.sql.unsafe("rollback");
      writer.state = "idle";
    });
    return `writer ${number}: ${sql}`;
  };
  const name = `'random ${number}'`;
  switch (writer.state) {
    case "idle":
      writer.state = "open";
      return await run(
        `begin; set local lock_timeout = '20ms'; ${
          isTarget || random.chance(0.5) ? "select txid_current()" : write(
            random,
            relation === "raw.item" ? "shop.item" : relation,
            id,
          )
        }`,
      );
    case "prepared":
      writer.state = "idle";
      return await run(
        `${random.pick(["commit", "rollback"])} prepared ${name}`,
      );
    case "open": {
      const sql = write(random, isTarget ? "raw.item" : "shop.item", id);
      const end = random.next();
      if (isTarget || end < 0.4) {
        writer.state = "idle";
        return await run(
          `${sql}; ${random.pick(["commit", "commit", "rollback"])}`,
        );
      }
      if (end < 0.55) {
        writer.state = "prepared";
        return await run(`${sql}; prepare transaction ${name}`);
      }
      return await run(
        random.pick([
          sql,
          `savepoint a; ${sql}`,
          `savepoint a; ${sql}; rollback to a`,
          `savepoint a; savepoint b; ${sql}; release a`,
        ]),
      );
    }
  }
}

Deno.test(`a load that trusts row versions is right after random steps (RANDOM_SEED=${SEED})`, async () => {
  const random = new Random(SEED);
  await using source = await startScenes();
  await using warehouse = await startScenes();
  await using db = await itemDatabases(source, warehouse);
  await using target = db.connect("warehouse");
  await using one = db.connect("source");
  await using two = db.connect("source");
  await using left = db.connect("source");
  await using right = db.connect("warehouse");
  for (const sql of [left, right]) {
    await sql.unsafe("set lock_timeout = '20ms'");
  }
  const writers: Writer[] = [target, one, two].map((sql) => ({
    sql,
    state: "idle",
  }));
  // It creates what a load needs.
  await loadItems(db);
  await using context = contextOf(db);
  const { config } = context;
  const connection = connectionOf(config, "test");
  await using session = await Session.open(config.dwh, connection);
  let last: LastLoad | undefined;
  /** Makes the target equal as a load does, without its run and its event. */
  const sync = async () => {
    await using snapshot = await openSnapshot(config, connection, [ITEM]);
    await beginWithLocks([ITEM], session, config);
    const result = await syncTable(
      {
        config,
        connection,
        snapshot,
        mode: "auto",
        recreate: false,
        allowShrink: true,
        isAlone: true,
        lastLoads: new Map(last ? [["item", last]] : []),
      },
      ITEM,
      session,
      new PhaseClock("item", () => {}),
    );
    await session.commit();
    const isProven = result.verified !== undefined &&
      result.verified.seed === last?.verified?.seed;
    last = { ...snapshot.marks.get("item")!, verified: result.verified };
    return { mode: result.mode, isProven };
  };
  const done: string[] = [];
  const counts = { unchanged: 0, delta: 0, full: 0 };
  let read = 0;
  for (let i = 0; i < STEPS; i++) {
    done.push(
      await step(
        random,
        { source: left, warehouse: right },
        writers,
        10_000 + 10 * i,
      ),
    );
    try {
      const { mode, isProven } = await sync();
      await assertEqualItems(db);
      if (isProven) counts[mode]++;
      else read++;
    } catch (error) {
      throw new Error(done.slice(-15).join("\n"), { cause: error });
    }
  }
  for (const writer of writers) {
    if (writer.state === "prepared") {
      await writer.sql.unsafe(
        `rollback prepared 'random ${writers.indexOf(writer)}'`,
      );
    }
  }
  const found = JSON.stringify({ counts, read });
  // Otherwise the steps would test nothing.
  assert(
    counts.unchanged > STEPS / 20 && counts.delta > STEPS / 100 &&
      read > STEPS / 10,
    found,
  );
});
