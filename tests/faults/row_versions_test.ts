import { assertEquals } from "@std/assert";
import { connectAs } from "../support/databases.ts";
import {
  itemDatabases,
  loadItems,
  ROWS,
  rowsSql,
  startScenes,
} from "../support/proof_scene.ts";
import { until } from "../support/server.ts";
import { copyFiles } from "../support/server_files.ts";

const signal = async (name: string, pid: number) => {
  const { success } = await new Deno.Command("kill", {
    args: [`-${name}`, String(pid)],
  }).output();
  assertEquals(success, true);
};

Deno.test("row versions of a server that lost transactions prove nothing", async (t) => {
  await using source = await startScenes();
  await using warehouse = await startScenes();
  await using db = await itemDatabases(source, warehouse);
  const isProven = async (changes = {}) =>
    (await loadItems(db, changes)).isProven;
  const settle = async (changes = {}) => {
    await loadItems(db, changes);
    assertEquals(await isProven(changes), true);
  };
  const name = db.environment.OLIST_DB_NAME!;
  const admin = () => connectAs(new URL(source.url()), "postgres", 1);

  await t.step(
    "a crash that loses commits, and reuses their numbers",
    async () => {
      await settle();
      await using writer = db.connect("source");
      // They would write the log to disk.
      const writers = await writer.unsafe(
        "select pid from pg_stat_activity where backend_type in ('walwriter', 'background writer', 'checkpointer')",
      );
      await writer.unsafe("checkpoint; set synchronous_commit = off");
      for (const { pid } of writers) await signal("STOP", pid);
      const [lost] = await writer.unsafe(
        "update shop.item set amount = 1 where ctid in (select ctid from shop.item limit 5) returning xmin::text, pg_backend_pid() as pid",
      );
      await settle();
      await signal("KILL", lost!.pid);
      for (const { pid } of writers) await signal("CONT", pid);
      await until("the server accepts connections again", async () => {
        await using sql = db.connect("source");
        const rows = await sql.unsafe("select 1 as x").catch(() => []);
        return rows.length > 0;
      });
      await using again = db.connect("source");
      const [found] = await again.unsafe(
        "update shop.item set amount = 2 where ctid in (select ctid from shop.item offset 50 limit 5) returning xmin::text",
      );
      assertEquals(found!.xmin, lost!.xmin, "the number is used again");
      assertEquals(await isProven(), false);
    },
  );

  await t.step("a restart", async () => {
    await settle();
    await source.stop();
    await source.restart();
    assertEquals(await isProven(), false);
  });

  await t.step(
    "the same after a crash and a restart of the warehouse",
    async () => {
      await settle();
      await warehouse.stop("immediate");
      await warehouse.restart();
      assertEquals(await isProven(), false);
    },
  );

  if (source.version >= 150_000) {
    await t.step(
      "an older copy of the database with all its numbers",
      async () => {
        await settle();
        const sql = admin();
        await db.source.end();
        await sql.unsafe(`create database saved template "${name}"`);
        const [{ oid }] = await sql.unsafe(
          `select oid from pg_database where datname = '${name}'`,
        ) as unknown as [{ oid: number }];
        const writer = connectAs(new URL(source.url()), name, 1);
        await writer.unsafe(
          `delete from shop.item where ctid = (select min(ctid) from shop.item); ${
            rowsSql(7000, 7000)
          }`,
        );
        const live = { ...db, source: writer };
        await loadItems(live);
        assertEquals((await loadItems(live)).isProven, true);
        await writer.end();
        await sql.unsafe(`drop database "${name}" with (force)`);
        await sql.unsafe(`create database "${name}" template saved oid ${oid}`);
        await sql.unsafe("drop database saved");
        const old = connectAs(new URL(source.url()), name, 1);
        const restored = { ...db, source: old };
        assertEquals((await loadItems(restored)).isProven, false);
        await old.end();
        await sql.end();
      },
    );
  }
});

Deno.test("row versions of a standby prove until it is promoted", async () => {
  await using primary = await startScenes();
  await using standby = await startScenes();
  await using warehouse = await startScenes();
  await using db = await itemDatabases(primary, warehouse);
  await primary.stop();
  await standby.stop();
  await copyFiles(primary, standby);
  const signalFile = `${standby.dataDirectory}/standby.signal`;
  await Deno.writeTextFile(signalFile, "");
  const { uid, gid } = Deno.statSync(standby.dataDirectory);
  if (Deno.uid() === 0) Deno.chownSync(signalFile, uid!, gid!);
  await Deno.writeTextFile(
    `${standby.dataDirectory}/postgresql.conf`,
    `primary_conninfo = 'host=127.0.0.1 port=${primary.port} user=postgres'\n`,
    { append: true },
  );
  await primary.restart();
  await standby.restart();
  const reads = connectAs(
    new URL(standby.url()),
    db.environment.OLIST_DB_NAME!,
  );
  const caughtUp = async () => {
    const [at] = await db.source.unsafe(
      "select pg_current_wal_lsn()::text as lsn",
    );
    await until("the standby has replayed", async () => {
      const [row] = await reads.unsafe(
        `select pg_last_wal_replay_lsn() >= '${at!.lsn}' as done`,
      );
      return row!.done;
    });
  };
  const replica = {
    ...db,
    source: reads,
    environment: { ...db.environment, OLIST_DB_PORT: String(standby.port) },
  };
  await caughtUp();
  await loadItems(replica);
  assertEquals((await loadItems(replica)).isProven, true);

  // The list of a standby's snapshot does not show which of them run.
  await using slow = db.connect("source");
  await using other = db.connect("source");
  await slow.unsafe("begin; insert into shop.other values (1)");
  await other.unsafe(
    "begin; update shop.item set amount = 5 where ctid = (select min(ctid) from shop.item)",
  );
  await db.source.unsafe(rowsSql(ROWS + 1, ROWS + 2));
  await caughtUp();
  assertEquals((await loadItems(replica)).entry.rows_inserted, 2);
  await other.unsafe("commit");
  await caughtUp();
  assertEquals((await loadItems(replica)).isProven, false);
  await slow.unsafe(
    "update shop.item set amount = 6 where ctid = (select max(ctid) from shop.item); commit",
  );
  await caughtUp();
  assertEquals((await loadItems(replica)).isProven, false);
  assertEquals((await loadItems(replica)).isProven, true);

  await primary.stop();
  await reads.unsafe("select pg_promote()");
  assertEquals((await loadItems(replica)).isProven, false);
  assertEquals((await loadItems(replica)).isProven, true);
  await reads.end();
  await primary.restart();
});
