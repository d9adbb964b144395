import { assertEquals } from "@std/assert";
import type { Databases } from "../support/databases.ts";
import { loadHere, sayOutcome } from "./support/local_load.ts";
import { skip } from "./support/measure.ts";
import { changeSource, loadedDatabases, settle } from "./support/scene.ts";
import { type Disk, mountDisk } from "./support/small_disk.ts";
import { sourceContent } from "./support/soundness.ts";

const LEAD = "marketing_qualified_lead";
const GROUP = "The warehouse's disk full, `RETRY_ATTEMPTS=2`";

/** A tablespace of a few megabytes, where the warehouse's server is on this machine. */
async function smallTablespace(
  db: Databases,
  name: string,
): Promise<Disk | undefined> {
  const [row] = await db.warehouse.unsafe(
    "select current_setting('data_directory') as path",
  );
  let owner: { uid: number; gid: number };
  try {
    const { uid, gid } = await Deno.stat(row!.path);
    owner = { uid: uid!, gid: gid! };
  } catch {
    skip("a full disk of the warehouse", "its server is on another machine");
    return undefined;
  }
  const disk = await mountDisk("a full disk of the warehouse", 2048, owner);
  if (!disk) return undefined;
  // The folder that it is mounted on is ours alone, but the file system is the server's.
  await db.warehouse.unsafe(
    `create tablespace ${name} location '${disk.path}'`,
  );
  return {
    ...disk,
    async [Symbol.asyncDispose]() {
      await db.warehouse.unsafe(`drop tablespace ${name}`);
      await disk[Symbol.asyncDispose]();
    },
  };
}

Deno.test("the warehouse's disk full: the old rows stay, and the next load is whole when there is room", async (t) => {
  await using db = await loadedDatabases({ deals: 20, leads: 500 });
  const name = `mds_small_${crypto.randomUUID().slice(0, 8)}`;
  const disk = await smallTablespace(db, name);
  if (!disk) return;
  const once = { RETRY_ATTEMPTS: "2" };

  await t.step("in COPY", async () => {
    await db.warehouse.unsafe(
      `alter table m_data.${LEAD} set tablespace ${name}`,
    );
    const { old } = await changeSource(db);
    await db.source.unsafe(
      `insert into marketing.${LEAD}s select md5(n::text), current_date, md5(n::text), 'more'
       from generate_series(1, 20000) n`,
    );
    const scene = { old, new: await sourceContent(db) };
    const outcome = await loadHere(db, once);
    assertEquals(sayOutcome(outcome), "exit 1, out_of_resources", outcome.log);
    await db.warehouse.unsafe(
      `alter table m_data.${LEAD} set tablespace pg_default`,
    );
    await settle(db, { group: GROUP, fault: "in COPY", scene, outcome });
    await db.source.unsafe(
      `delete from marketing.${LEAD}s where origin = 'more'`,
    );
  });

  await t.step("when the end is to be put on record", async () => {
    await db.warehouse.unsafe(
      `alter table marketing_data_service.event set tablespace ${name};
       alter table marketing_data_service.table_load set tablespace ${name};
       create table filler (x text) tablespace ${name}`,
    );
    // Until nothing more fits.
    for (const size of [1000, 100, 1]) {
      try {
        while (true) {
          await db.warehouse.unsafe(
            `insert into filler select repeat('x', 1000) from generate_series(1, ${size})`,
          );
        }
      } catch {
        // Full, for so many.
      }
    }
    await db.warehouse.unsafe(
      "alter table marketing_data_service.event alter column payload set storage external",
    );
    let scene = await changeSource(db);
    let outcome = await loadHere(db, once);
    // A page of the tables may have room for some more rows.
    while (sayOutcome(outcome) === "exit 0") {
      scene = await changeSource(db);
      outcome = await loadHere(db, once);
    }
    assertEquals(sayOutcome(outcome), "exit 1, out_of_resources", outcome.log);
    await db.warehouse.unsafe("drop table filler");
    await settle(db, {
      group: GROUP,
      fault: "when the end is to be put on record",
      scene,
      outcome,
      mayHaveDeadRun: true,
    });
    await db.warehouse.unsafe(
      `alter table marketing_data_service.event set tablespace pg_default;
       alter table marketing_data_service.table_load set tablespace pg_default`,
    );
  });
  await disk[Symbol.asyncDispose]();
});
