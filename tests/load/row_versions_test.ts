import { assertEquals, assertStringIncludes } from "@std/assert";
import type { Databases } from "../support/databases.ts";
import type { TableDeclaration } from "../../src/tables/declaration.ts";
import {
  ITEM,
  itemDatabases,
  type Loaded,
  loadItems,
  ROWS,
  rowsSql,
  startScenes,
} from "../support/proof_scene.ts";
import { runJson } from "../support/program_here.ts";

/** Loads, and then checks that the next load can use what this one leaves behind. */
async function settle(db: Databases): Promise<void> {
  await loadItems(db);
  assertEquals((await loadItems(db)).isProven, true);
}

const proven = ({ isProven, entry }: Loaded) => ({
  isProven,
  mode: entry.mode,
  inserted: entry.rows_inserted,
});

/** Changes the horizon in what the last load has left behind. */
async function moveHorizon(
  { warehouse }: Databases,
  side: string,
  by: string,
): Promise<void> {
  const path = `{verified,${side},horizon}`;
  await warehouse.unsafe(
    `update marketing_data_service.table_load set source_mark = jsonb_set(source_mark::jsonb, '${path}',
       to_jsonb(((source_mark #>> '${path}')::bigint ${by})::text)) where source_mark -> 'verified' is not null`,
  );
}

/** Changes after which the row versions are not what the last load has verified. */
const CHANGES: Readonly<
  Record<string, (db: Databases) => Promise<unknown>>
> = {
  "the source drops a column and adds one of its name": ({ source }) =>
    source.unsafe(
      "alter table shop.item drop amount; alter table shop.item add amount numeric default 7",
    ),
  "the source adds a column with a default": ({ source }) =>
    source.unsafe("alter table shop.item add extra int default 7"),
  "the source renames an enum's label": ({ source }) =>
    source.unsafe("alter type shop.mood rename value 'sad' to 'blue'"),
  "the source exchanges two labels of an enum": ({ source }) =>
    source.unsafe(
      "alter type shop.mood rename value 'glad' to 'sad'; alter type shop.mood rename value 'blue' to 'glad'",
    ),
  "VACUUM FULL of the source": ({ source }) =>
    source.unsafe("vacuum full shop.item"),
  "VACUUM FULL of the target": ({ warehouse }) =>
    warehouse.unsafe("vacuum full raw.item"),
  "CLUSTER of the source": async ({ source }) => {
    await source.unsafe("create index item_id on shop.item (id)");
    await source.unsafe("cluster shop.item using item_id");
  },
  "TRUNCATE and as many other rows": ({ source }) =>
    source.unsafe(`truncate shop.item; ${rowsSql(1001, 1000 + ROWS)}`),
  "COPY FREEZE of as many other rows": ({ source }) =>
    source.begin(async (sql) => {
      await sql.unsafe(
        "create table shop.saved as select * from shop.item; update shop.saved set id = id + 1; truncate shop.item",
      );
      await sql.unsafe("copy shop.saved to program 'cat > rows_of_item'");
      await sql.unsafe("copy shop.item from program 'cat rows_of_item' freeze");
    }),
  "a table with the same name and other rows": ({ source, reader }) =>
    source.unsafe(
      `create table shop.twin as select * from shop.item; update shop.twin set amount = amount + 1;
       alter table shop.item rename to before; alter table shop.twin rename to item; grant select on shop.item to "${reader}"`,
    ),
  "a row is deleted and another one inserted": ({ source }) =>
    source.unsafe(
      `delete from shop.item where ctid = (select min(ctid) from shop.item); ${
        rowsSql(5000, 5000)
      }`,
    ),
  "an update keeps the number of rows": ({ source }) =>
    source.unsafe(
      "update shop.item set amount = -amount where ctid = (select min(ctid) from shop.item)",
    ),
  "an update in a subtransaction": ({ source }) =>
    source.unsafe(
      `do $$ begin begin update shop.item set amount = -1 where ctid = (select min(ctid) from shop.item);
       exception when division_by_zero then null; end; end $$`,
    ),
  "an unlogged source": ({ source }) =>
    source.unsafe("alter table shop.item set unlogged"),
  "a source that is logged again": ({ source }) =>
    source.unsafe("alter table shop.item set logged"),
  "row security, for a role that it does not bind": ({ source, reader }) =>
    source.unsafe(
      `alter role "${reader}" bypassrls; alter table shop.item enable row level security`,
    ),
  "no row security any more": ({ source, reader }) =>
    source.unsafe(
      `alter role "${reader}" nobypassrls; alter table shop.item disable row level security`,
    ),
  "a writer of the target keeps the number of rows": ({ warehouse }) =>
    warehouse.unsafe(
      "update raw.item set amount = -amount where ctid = (select min(ctid) from raw.item)",
    ),
  "a writer of the target deletes and inserts": ({ warehouse }) =>
    warehouse.unsafe(
      `delete from raw.item where ctid = (select min(ctid) from raw.item); insert into raw.item (id) values (6000)`,
    ),
  "the target is truncated and filled": ({ warehouse }) =>
    warehouse.unsafe(
      `create table public.saved as select id + 1 as id, amount, mood, day, note from raw.item; truncate raw.item;
       insert into raw.item select * from public.saved; drop table public.saved`,
    ),
  "both sides change alike": ({ source, warehouse }) =>
    Promise.all([
      source.unsafe(
        "delete from shop.item where ctid = (select min(ctid) from shop.item)",
      ),
      warehouse.unsafe(
        "delete from raw.item where ctid = (select min(ctid) from raw.item)",
      ),
    ]),
  "other roles may write the history": ({ warehouse }) =>
    warehouse.unsafe(
      "grant insert on marketing_data_service.table_load to public",
    ),
  "the source exchanges the names of two columns": ({ source }) =>
    source.unsafe(
      `alter table shop.item alter mood type text; alter table shop.item rename note to x;
       alter table shop.item rename mood to note; alter table shop.item rename x to mood`,
    ),
};

/** Open transactions. `before` runs before the load whose state the next one uses, and `after` after it. */
const TRANSACTIONS: Readonly<
  Record<string, {
    side: "source" | "warehouse";
    before: string;
    after: string;
  }>
> = {
  "wrote before and commits after": {
    side: "source",
    before:
      `begin; delete from shop.item where ctid = (select min(ctid) from shop.item); ${
        rowsSql(9000, 9000)
      }`,
    after: "commit",
  },
  "began before and writes after": {
    side: "source",
    before: "begin; insert into shop.other values (1)",
    after:
      `delete from shop.item where ctid = (select min(ctid) from shop.item); ${
        rowsSql(9001, 9001)
      }; commit`,
  },
  "wrote in a subtransaction": {
    side: "source",
    before:
      `begin; savepoint a; update shop.item set amount = -1 where ctid = (select min(ctid) from shop.item)`,
    after: "release a; commit",
  },
  "began a subtransaction before and writes after": {
    side: "source",
    before:
      "begin; savepoint a; insert into shop.other values (1); savepoint b; insert into shop.other values (2)",
    after:
      "update shop.item set amount = -1 where ctid = (select min(ctid) from shop.item); release a; commit",
  },
  "is prepared before and committed after": {
    side: "source",
    before:
      `begin; update shop.item set amount = -1 where ctid = (select min(ctid) from shop.item); prepare transaction 'mds'`,
    after: "commit prepared 'mds'",
  },
  "of the target began before and writes after": {
    side: "warehouse",
    before: "begin; create table public.mark ()",
    after:
      "update raw.item set amount = -1 where ctid = (select min(ctid) from raw.item); commit",
  },
  "of the target began a subtransaction before and writes after": {
    side: "warehouse",
    before:
      "begin; create table public.mark (); savepoint a; create table public.mark_2 ()",
    after:
      "update raw.item set amount = -1 where ctid = (select min(ctid) from raw.item); commit",
  },
};

Deno.test("row versions prove that nothing, or only new rows, must be read", async (t) => {
  await using source = await startScenes();
  await using warehouse = await startScenes();
  await using db = await itemDatabases(source, warehouse);
  await settle(db);

  await t.step("unchanged and appended, with VACUUM in between", async () => {
    for (const sql of [db.source, db.warehouse]) {
      await sql.unsafe("vacuum freeze");
    }
    await db.source.unsafe("analyze; insert into shop.other values (1)");
    assertEquals(proven(await loadItems(db)), {
      isProven: true,
      mode: "unchanged",
      inserted: 0,
    });
    await db.source.unsafe(rowsSql(ROWS + 1, ROWS + 3));
    await using other = db.connect("source");
    await other.unsafe(`begin; savepoint a; ${rowsSql(400, 400)}; commit`);
    const first = await loadItems(db);
    assertEquals(proven(first), {
      isProven: true,
      mode: "delta",
      inserted: 4,
    });
    const second = await loadItems(db);
    assertEquals(proven(second).isProven, true);
    assertEquals(second.entry.checksum, first.entry.checksum);
  });

  await t.step("appended by key, and in an atomic run", async () => {
    const keyed = { ...ITEM, key: ["id"] };
    await loadItems(db, {}, keyed);
    await db.source.unsafe(rowsSql(401, 402));
    assertEquals(
      proven(await loadItems(db, {}, keyed, { atomic: true })),
      { isProven: true, mode: "delta", inserted: 2 },
    );
  });

  await t.step("rows of transactions above one that still runs", async () => {
    await settle(db);
    await using other = db.connect("source");
    await other.unsafe("begin; insert into shop.other values (1)");
    await db.source.unsafe(rowsSql(601, 602));
    await loadItems(db);
    await db.source.unsafe(rowsSql(603, 604));
    assertEquals(proven(await loadItems(db)), {
      isProven: true,
      mode: "delta",
      inserted: 2,
    });
    assertEquals(proven(await loadItems(db)).isProven, true);
    await other.unsafe(
      `${
        rowsSql(605, 605)
      }; delete from shop.item where ctid = (select min(ctid) from shop.item); commit`,
    );
    assertEquals(proven(await loadItems(db)).isProven, false);
  });

  let isUsable = false;
  for (const [what, change] of Object.entries(CHANGES)) {
    await t.step(`not used: ${what}`, async () => {
      if (isUsable) assertEquals((await loadItems(db)).isProven, true);
      await change(db);
      assertEquals((await loadItems(db)).isProven, false);
      isUsable = !/unlogged|row security, for|other roles/.test(what);
      await db.warehouse.unsafe(
        "revoke insert on marketing_data_service.table_load from public",
      );
    });
  }

  for (const [what, { side, before, after }] of Object.entries(TRANSACTIONS)) {
    await t.step(`not used: a transaction that ${what}`, async () => {
      await using other = db.connect(side);
      await other.unsafe(before);
      // A later transaction that has ended, so that the snapshot reaches beyond both.
      await db[side].unsafe("select txid_current()");
      // It leaves the state that the next one could use.
      await loadItems(db);
      await other.unsafe(after);
      assertEquals((await loadItems(db)).isProven, false);
      await db.warehouse.unsafe(
        "drop table if exists public.mark, public.mark_2",
      );
    });
  }

  await t.step("not used: other settings, declarations and modes", async () => {
    const [id, amount, ...rest] = ITEM.columns!;
    const computed = { ...amount!, expression: "amount" };
    await db.source.unsafe(
      `create view shop.seen as select * from shop.item; grant select on shop.seen to "${db.reader}"`,
    );
    const cases: [Record<string, string>, TableDeclaration?][] = [
      [{ LOAD_TIMEZONE: "Asia/Tokyo" }],
      [{ LOAD_TIMEZONE: "Etc/UTC" }],
      [{ LOAD_MODE: "full" }],
      [{ VERIFY: "count" }],
      [{}, { ...ITEM, where: "true" }],
      [{}, { ...ITEM, key: ["id"] }],
      [{}, { ...ITEM, columns: [id!, computed, ...rest] }],
      [{}, { ...ITEM, source: { schema: "shop", name: "seen" } }],
    ];
    for (const [variables, table] of cases) {
      await settle(db);
      const { isProven } = await loadItems(db, variables, table);
      assertEquals(isProven, false, JSON.stringify([variables, table]));
    }
    await settle(db);
    await db.source.unsafe(
      "drop view shop.seen; create table shop.child () inherits (shop.item)",
    );
    assertEquals((await loadItems(db)).isProven, false);
    await db.source.unsafe("drop table shop.child");
    // It notices that the table has no children.
    await db.source.unsafe("analyze shop.item");
  });

  await t.step(
    "not used: a state whose transactions are too far away",
    async () => {
      for (const side of ["source", "target"]) {
        for (const by of [-(2n ** 30n) - 1000n, -(2n ** 32n), 1000n]) {
          await settle(db);
          await moveHorizon(db, side, `+ ${by}`);
          assertEquals((await loadItems(db)).isProven, false);
        }
      }
    },
  );

  await t.step(
    "verify and a full load read contents despite a forged state",
    async () => {
      await settle(db);
      await db.warehouse.unsafe(
        "update raw.item set amount = 0 where ctid = (select min(ctid) from raw.item)",
      );
      await moveHorizon(db, "target", "* 0 + txid_current()");
      const file = await Deno.makeTempFile({ suffix: ".yaml" });
      await Deno.writeTextFile(
        file,
        "tables: [{ source: shop.item, target: raw.item, columns: { id: bigint, amount: numeric, mood: text, day: timestamptz, note: text } }]",
      );
      const environment = { ...db.environment, TABLES_FILE: file };
      assertEquals((await runJson(["verify"], environment)).code, 1);
      assertEquals(
        (await loadItems(db, {}, ITEM, { mode: "full" })).isProven,
        false,
      );
      assertEquals((await runJson(["verify"], environment)).code, 0);
    },
  );

  await t.step("a trigger of another target that forges a state", async () => {
    await db.source.unsafe(
      `create table shop.bait as select 1 as id; grant select on shop.bait to "${db.reader}"`,
    );
    await db.warehouse.unsafe(
      `create table raw.bait (id int); alter table raw.bait owner to "${db.loader}";
       create function raw.forge() returns trigger language plpgsql as $$ begin
         begin
           update marketing_data_service.table_load set source_mark = source_mark;
         exception when division_by_zero then null; end;
         return null; end $$;
       create trigger forge after insert on raw.bait execute function raw.forge()`,
    );
    const file = await Deno.makeTempFile({ suffix: ".yaml" });
    await Deno.writeTextFile(
      file,
      "tables: [{ source: shop.bait, target: raw.bait }]",
    );
    const { code, json } = await runJson(["load"], {
      ...db.environment,
      TABLES_FILE: file,
    });
    assertEquals(code, 1);
    assertStringIncludes(json.error, "changes the tables of the service");
  });
});
