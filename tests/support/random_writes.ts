/**
 * Random writes, maintenance and DDL on both sides of a {@linkcode ProofScene}, also
 * in transactions that stay open over several steps.
 *
 * @module
 */
import type { Databases, Sql } from "./databases.ts";
import { rowsSql } from "./proof_scene.ts";
import type { Random } from "./random.ts";

/** An open transaction of another writer. */
export interface Writer {
  readonly sql: Sql;
  state: "idle" | "open" | "prepared";
}

const someRows = (relation: string, count: number) =>
  `ctid in (select ctid from ${relation} order by random() limit ${count} for update skip locked)`;

/** A statement that writes rows of the relation. */
function write(random: Random, relation: string, id: number): string {
  const count = 1 + random.below(3);
  const insert = relation === "shop.item"
    ? rowsSql(id, id + count - 1)
    : `insert into raw.item (id, note) select ${id}, 'odd' from generate_series(1, ${count})`;
  return random.pick([
    ...Array(6).fill(insert),
    `update ${relation} set amount = -amount where ${
      someRows(relation, count)
    }`,
    `update ${relation} set note = note where ${someRows(relation, count)}`,
    `delete from ${relation} where ${someRows(relation, count)}`,
    `insert into ${relation} select * from ${relation} where ${
      someRows(relation, count)
    }`,
    `delete from ${relation} where ${someRows(relation, 1)}; ${insert}`,
    // Rows take the value of another row, or exchange theirs.
    `update ${relation} set id = (select id from ${relation} order by random() limit 1) where ${
      someRows(relation, count)
    }`,
    `update ${relation} r set id = o.id from (
       select id, coalesce(lead(ctid) over (), first_value(ctid) over ()) as next
       from ${relation} where ${
      someRows(relation, 2)
    }) o where r.ctid = o.next`,
    `do $$ begin begin update ${relation} set amount = amount + 1 where ${
      someRows(relation, count)
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

/** Does something at random on one of the sides, and returns what. */
export async function randomStep(
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
