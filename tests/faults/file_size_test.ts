import { assert, assertEquals } from "@std/assert";
import type { Databases } from "../support/databases.ts";
import { type Finished, runWithFileLimit } from "../support/program.ts";
import { runJson, runProgram } from "../support/program_here.ts";
import {
  changeSource,
  loadedDatabases,
  settle,
} from "../support/fault_scene.ts";
import { mountDisk } from "../support/small_disk.ts";
import { assertEnded } from "../support/soundness.ts";

const FILE = "The event file (`EVENT_PUBLISHER_TYPE=file`)";
const SPOOL = "The spool";

/** Larger than the caches of Deno, which are files, too. */
const LIMIT_BYTES = 64 * 1024 * 1024;

/** Room for a part of a line. */
const ROOMS = [0, 1, 300];

const encoder = new TextEncoder();

/**
 * Creates a file that ends with these lines, and has room for this number of bytes.
 * Most of it is a hole.
 */
async function fillFile(
  path: string,
  room: number,
  lines = "",
): Promise<void> {
  using file = await Deno.open(path, {
    write: true,
    create: true,
    truncate: true,
  });
  const end = encoder.encode(`\n${lines}`);
  await file.seek(LIMIT_BYTES - room - end.length, Deno.SeekMode.Start);
  await file.write(end);
}

/** Returns the lines of a file after the hole. Every line must be complete. */
async function linesOf(path: string): Promise<string[]> {
  const text = await Deno.readTextFile(path);
  const lines = text.slice(text.lastIndexOf("\0") + 1).split("\n");
  assertEquals(lines.pop(), "", "the last line is torn");
  return lines.filter((line) => line !== "");
}

async function pendingPayloads(db: Databases): Promise<string[]> {
  const rows = await db.warehouse.unsafe(
    `select payload::text from marketing_data_service.event, marketing_data_service.publisher
     where seq > cursor and name = 'file' order by seq`,
  );
  return rows.map((row) => row.payload);
}

Deno.test("load succeeds when the event file cannot grow, and each event is written once without torn lines", async (t) => {
  await using db = await loadedDatabases({ deals: 5, leads: 5 });
  const folder = await Deno.makeTempDir();
  const file = `${folder}/events.jsonl`;
  const environment = {
    ...db.environment,
    EVENT_PUBLISHER_TYPE: "file",
    EVENT_FILE: file,
  };
  assertEnded(await runJson(["load"], environment), 0);
  await Deno.remove(file);
  const loadWithRoom = async (bytes: number, fault: string) => {
    await fillFile(file, bytes);
    const scene = await changeSource(db);
    const outcome = await runWithFileLimit(
      LIMIT_BYTES,
      ["load", "--json"],
      environment,
    );
    assertEnded(outcome, 0, /Cannot deliver event \S+ to the event file/);
    assertEquals(await linesOf(file), []);
    await settle(db, { group: FILE, fault, scene, outcome });
  };
  for (const room of ROOMS) {
    await t.step(
      `room for ${room} bytes`,
      () => loadWithRoom(room, `cannot grow, room for ${room} bytes`),
    );
  }

  await t.step("room for the line, but not for its end", async () => {
    const [next] = await pendingPayloads(db);
    await loadWithRoom(
      encoder.encode(next).length,
      "cannot grow, room for a line without its end",
    );
  });

  const pending = await pendingPayloads(db);
  assert(pending.length > ROOMS.length);
  assertEnded(await runJson(["load"], environment), 0);
  assertEquals((await linesOf(file)).slice(0, pending.length), pending);
  assertEquals(await pendingPayloads(db), []);
  await Deno.remove(folder, { recursive: true });
});

Deno.test("load succeeds when its log cannot grow", async () => {
  await using db = await loadedDatabases({ deals: 5, leads: 5 });
  const log = await Deno.makeTempFile();
  await fillFile(log, 100);
  const scene = await changeSource(db);
  const outcome = await runWithFileLimit(
    LIMIT_BYTES,
    ["load", "--json"],
    { ...db.environment, LOG_LEVEL: "DEBUG" },
    log,
  );
  assertEnded(outcome, 0);
  await Deno.remove(log);
  await settle(db, {
    group: "The log",
    fault: "a file that cannot grow",
    scene,
    outcome,
  });
});

/** Limits the growth of the spool, and runs a load. */
interface Obstacle {
  readonly fault: string;
  readonly spool: string;
  /** Leaves room for a part of a line after these lines. */
  readonly fill: (lines: string) => Promise<void>;
  readonly load: (
    environment: Readonly<Record<string, string>>,
  ) => Promise<Finished>;
}

async function assertSpoolStaysWhole(
  { fault, spool, fill, load }: Obstacle,
): Promise<void> {
  await using db = await loadedDatabases({ deals: 5, leads: 5 });
  const environment = { ...db.environment, EVENT_SPOOL_FILE: spool };
  const away = { ...environment, DWH_DB_PORT: "1", RETRY_ATTEMPTS: "1" };
  assertEnded(await runJson(["load"], away), 69);
  const [before] = await linesOf(spool);
  await fill(`${before}\n`);
  const scene = await changeSource(db);
  const outcome = await load(away);
  assertEnded(outcome, 69, /Cannot record the failure/);
  assertEquals(await linesOf(spool), [before]);

  assertEnded(await runJson(["load"], environment), 0);
  const rows = await db.warehouse.unsafe(
    "select id::text from marketing_data_service.run where state = 'failed'",
  );
  assertEquals(rows.map((row) => row.id), [JSON.parse(before!).run.id]);
  await settle(db, {
    group: SPOOL,
    fault,
    scene: { ...scene, old: scene.new },
    outcome,
  });
}

Deno.test("a spool that cannot grow keeps its content, and the failure is reported", async () => {
  const folder = await Deno.makeTempDir();
  const spool = `${folder}/spool.jsonl`;
  await assertSpoolStaysWhole({
    fault: "cannot grow, room for a part of a line",
    spool,
    fill: (lines) => fillFile(spool, 300, lines),
    load: (environment) =>
      runWithFileLimit(LIMIT_BYTES, ["load", "--json"], environment),
  });
  await Deno.remove(folder, { recursive: true });
});

Deno.test("a spool on a full disk keeps its content, and the failure is reported", async () => {
  await using disk = await mountDisk("a full disk for the spool", 8);
  if (!disk) return;
  const spool = `${disk.path}/spool.jsonl`;
  await assertSpoolStaysWhole({
    fault: "on a full disk, room for a part of a line",
    spool,
    async fill(lines) {
      // Up to the end of a page. The other page is in use.
      const blank = "\n".repeat(4096 - 300 - encoder.encode(lines).length);
      await Deno.writeTextFile(spool, `${lines}${blank}`);
      await Deno.writeFile(`${disk.path}/filler`, new Uint8Array(4096));
    },
    load: (environment) => runProgram(["load", "--json"], environment),
  });
});
