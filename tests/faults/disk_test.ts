import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { chooseAccount } from "../../demo/postgres.ts";
import { startPostgres } from "../support/own_server.ts";
import type { Databases } from "../support/databases.ts";
import { loadHere, sayOutcome } from "../support/local_load.ts";
import { skip } from "../support/measure.ts";
import {
  changeSource,
  loadedDatabases,
  settle,
} from "../support/fault_scene.ts";
import { type Disk, mountDisk } from "../support/small_disk.ts";
import { sourceContent } from "../support/soundness.ts";

const LEAD = "marketing_qualified_lead";
const GROUP = "The warehouse's disk full, `RETRY_ATTEMPTS=2`";

/** A tablespace of a few megabytes, if the server of the warehouse runs on this host. */
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
  // The mount point belongs to this user, and the file system to the server.
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

Deno.test("load keeps the old rows when the disk of the warehouse is full, and the next load succeeds", async (t) => {
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
    const fewer = await loadHere(db, { MAX_SHRINK: "1" });
    assertEquals(sayOutcome(fewer), "exit 0", fewer.log);
  });

  await t.step("when the run is closed", async () => {
    await db.warehouse.unsafe(
      `alter table marketing_data_service.event set tablespace ${name};
       alter table marketing_data_service.table_load set tablespace ${name};
       create table filler (x text) tablespace ${name}`,
    );
    // Fill the disk.
    for (const size of [1000, 100, 1]) {
      try {
        while (true) {
          await db.warehouse.unsafe(
            `insert into filler select repeat('x', 1000) from generate_series(1, ${size})`,
          );
        }
      } catch {
        // The disk is full for this number of rows.
      }
    }
    await db.warehouse.unsafe(
      "alter table marketing_data_service.event alter column payload set storage external",
    );
    let scene = await changeSource(db);
    let outcome = await loadHere(db, once);
    // A page of the tables may still have room for some rows.
    while (sayOutcome(outcome) === "exit 0") {
      scene = await changeSource(db);
      outcome = await loadHere(db, once);
    }
    assertEquals(sayOutcome(outcome), "exit 1, out_of_resources", outcome.log);
    await db.warehouse.unsafe("drop table filler");
    await settle(db, {
      group: GROUP,
      fault: "when the run is closed",
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

/** A number of rows with which the table of leads exceeds every limit here. */
const MANY = `insert into marketing.${LEAD}s
  select md5(n::text), current_date, md5(n::text), 'more' from generate_series(1, 100000) n`;

Deno.test("load fails when the disk of the WAL is full, and the next load succeeds", async () => {
  const owner = Deno.uid() === 0
    ? chooseAccount(Deno.readTextFileSync("/etc/passwd"))
    : undefined;
  await using disk = await mountDisk(
    "a full disk of the warehouse's log",
    20 * 1024,
    owner,
  );
  if (!disk) return;
  await using source = await startPostgres();
  await using warehouse = await startPostgres({
    initdbArgs: [`--waldir=${disk.path}/wal`, "--wal-segsize=1"],
    settings: { min_wal_size: "2MB", max_wal_size: "1GB" },
  });
  await using db = await loadedDatabases({ deals: 20, leads: 500 }, {
    servers: { source: source.url(), warehouse: warehouse.url() },
  });
  const { old } = await changeSource(db);
  await db.source.unsafe(MANY);
  const scene = { old, new: await sourceContent(db) };
  const filler = `${disk.path}/filler`;
  await Deno.writeFile(filler, new Uint8Array(64 * 1024 * 1024)).catch(() => {
    // The error is expected: the disk is full.
  });
  const outcome = await loadHere(db, { RETRY_ATTEMPTS: "2" });
  assert(
    /^exit (1|69), (connection_(lost|failed)|lock_lost|out_of_resources)$/
      .test(sayOutcome(outcome)),
    sayOutcome(outcome) + outcome.log,
  );
  await Deno.remove(filler);
  await warehouse.restart();
  await settle(db, {
    group: GROUP,
    fault: "the disk of its log (`pg_wal`)",
    scene,
    outcome,
    mayHaveDeadRun: true,
  });
});

/** A folder with programs of the server that limit every file to 2 MB. */
async function limitedPrograms(binDirectory: string): Promise<string> {
  const folder = await Deno.makeTempDir();
  await Deno.chmod(folder, 0o755);
  for (const name of ["initdb", "postgres"]) {
    const limit = name === "postgres" ? "ulimit -f 4096; " : "";
    const path = `${folder}/${name}`;
    await Deno.writeTextFile(
      path,
      `#!/bin/sh\n${limit}exec "${binDirectory}/${name}" "$@"\n`,
    );
    await Deno.chmod(path, 0o755);
  }
  return folder;
}

Deno.test("load keeps the old rows and reports the server's reason when files of the warehouse cannot grow", async () => {
  await using source = await startPostgres();
  const binDirectory = await limitedPrograms(source.binDirectory);
  {
    await using warehouse = await startPostgres({
      binDirectory,
      initdbArgs: ["--wal-segsize=1"],
      settings: { min_wal_size: "2MB" },
    });
    await using db = await loadedDatabases({ deals: 20, leads: 500 }, {
      servers: { source: source.url(), warehouse: warehouse.url() },
    });
    const { old } = await changeSource(db);
    await db.source.unsafe(MANY);
    const scene = { old, new: await sourceContent(db) };
    const outcome = await loadHere(db, { RETRY_ATTEMPTS: "2" });
    // PostgreSQL has no separate SQLSTATE for it.
    assertEquals(sayOutcome(outcome), "exit 1, database_error", outcome.log);
    assertStringIncludes(outcome.log, "File too large");
    await db.source.unsafe(
      `delete from marketing.${LEAD}s where origin = 'more'`,
    );
    // As autovacuum does: the rows that were rolled back fill the file.
    await db.warehouse.unsafe(`vacuum m_data.${LEAD}`);
    await settle(db, {
      group: GROUP,
      fault: "a file that cannot grow (`ulimit -f`)",
      scene,
      outcome,
    });
  }
  await Deno.remove(binDirectory, { recursive: true });
});
