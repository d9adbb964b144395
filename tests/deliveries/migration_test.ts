import { assertEquals, assertStringIncludes } from "@std/assert";
import { createDatabases, type Databases } from "../support/databases.ts";
import { runJson, runProgram } from "../support/program_here.ts";

const MIGRATIONS = new URL("../../src/runs/migrations/", import.meta.url);

/** Creates the schema of version 1 with three events. */
async function makeVersionOne(
  db: Databases,
  inFile: number,
): Promise<string[]> {
  const first = await Deno.readTextFile(
    new URL("0001_initial.sql", MIGRATIONS),
  );
  const ids = Array.from({ length: 3 }, () => crypto.randomUUID());
  const rows = ids.map((id, index) =>
    `with run as (
       insert into marketing_data_service.run (id, state, trigger, tables, mode, atomic, recreate, started_at, finished_at)
       values ('${id}', 'succeeded', 'cli', '{closed_deal}', 'auto', false, false, clock_timestamp(), clock_timestamp())
       returning id)
     insert into marketing_data_service.event (event_id, run_id, event_type, payload, file_delivered_at)
     select id, id, 'marketing-data-loaded', '{"event_id": "${id}", "timestamp": "2025-08-26T21:19:33.123456"}',
       ${index < inFile ? "clock_timestamp()" : "null"} from run`
  );
  await using admin = db.connect("warehouse");
  await admin.unsafe(
    `set role ${db.loader};
     create schema marketing_data_service;
     create table marketing_data_service.migration (
       version int primary key, name text not null, applied_at timestamptz not null default clock_timestamp());
     insert into marketing_data_service.migration values (1, '0001_initial.sql');
     ${first};
     ${rows.join(";")}`,
  );
  return ids;
}

for (const inFile of [0, 2, 3]) {
  Deno.test(`the migration from version 1 writes the missing events to a file that has ${inFile} of 3`, async () => {
    await using db = await createDatabases({ rows: { deals: 3, leads: 3 } });
    const ids = await makeVersionOne(db, inFile);
    const folder = await Deno.makeTempDir();
    try {
      const file = `${folder}/events.jsonl`;
      const { code, json, stderr } = await runJson(["load"], {
        ...db.environment,
        EVENT_PUBLISHER_TYPE: "file",
        EVENT_FILE: file,
      });
      assertEquals(code, 0, stderr);
      const lines = (await Deno.readTextFile(file)).trim().split("\n");
      assertEquals(lines.map((line) => JSON.parse(line).event_id), [
        ...ids.slice(inFile),
        json.event_id,
      ]);
      const { stdout } = await runProgram(
        ["events", "--json"],
        db.environment,
      );
      const stored = stdout.trim().split("\n").map((line) => JSON.parse(line));
      assertEquals(
        stored.map((event) => event.deliveries[0].status),
        Array(4).fill("delivered"),
      );
    } finally {
      await Deno.remove(folder, { recursive: true });
    }
  });
}

Deno.test("the program refuses the schema of a newer version", async () => {
  await using db = await createDatabases({ rows: { deals: 3, leads: 3 } });
  assertEquals((await runProgram(["load"], db.environment)).code, 0);
  await db.warehouse.unsafe(
    "insert into marketing_data_service.migration values (99, 'later')",
  );
  const { code, stderr } = await runProgram(["load"], db.environment);
  assertEquals(code, 78);
  assertStringIncludes(stderr, "it has version 99");
});
