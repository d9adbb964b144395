import { assert, assertEquals } from "@std/assert";
import { startPostgres } from "../support/own_server.ts";
import { loadedDatabases } from "../support/fault_scene.ts";
import { runProgram } from "../support/program_here.ts";
import { copyFiles } from "../support/server_files.ts";

for (const kind of ["a promoted standby", "a restored backup"] as const) {
  Deno.test(`events of ${kind} without the newest events reuse no number`, async () => {
    await using first = await startPostgres();
    await using second = await startPostgres();
    const db = await loadedDatabases({ deals: 3, leads: 3 }, {
      servers: { source: first.url(), warehouse: first.url() },
    });
    const load = async (port: number) => {
      const { code, stderr } = await runProgram(["load"], {
        ...db.environment,
        OLIST_DB_PORT: String(port),
        DWH_DB_PORT: String(port),
      });
      assertEquals(code, 0, stderr);
    };
    /** Returns the numbers after the given one, for a reader that stores only the last number. */
    const eventsAfter = async (port: number, after: number) => {
      const { code, stdout, stderr } = await runProgram(
        ["events", "--json", "--after", String(after)],
        { ...db.environment, DWH_DB_PORT: String(port) },
      );
      assertEquals(code, 0, stderr);
      return stdout.trim().split("\n").filter(Boolean)
        .map((line) => JSON.parse(line).seq as number);
    };
    await first.stop();
    await second.stop();
    await copyFiles(first, second);
    await first.restart();
    // The copy does not have these events.
    for (let i = 0; i < 3; i++) await load(first.port);
    const seen = await eventsAfter(first.port, 0);
    assertEquals(seen.length, 4);
    assertEquals(seen.toSorted((a, b) => a - b), seen);
    await first.stop();

    if (kind === "a promoted standby") {
      await Deno.writeTextFile(`${second.dataDirectory}/standby.signal`, "");
    }
    await second.restart();
    if (kind === "a promoted standby") {
      const { default: postgres } = await import("postgres");
      const admin = postgres(second.url(), { max: 1, fetch_types: false });
      await admin.unsafe("select pg_promote()");
      await admin.end();
    }
    for (let i = 0; i < 2; i++) await load(second.port);
    const after = await eventsAfter(second.port, seen.at(-1)!);
    assertEquals(after.length, 2);
    assert(after[0]! > seen.at(-1)!, `${after}`);
    assertEquals(after[1], after[0]! + 1);
    // The databases are dropped on the server that has them.
    await second.stop();
    await first.restart();
    await db[Symbol.asyncDispose]();
  });
}
