import { assert, assertEquals, assertMatch } from "@std/assert";
import { migratedDatabases } from "../support/databases.ts";
import { findProgram } from "../support/debian.ts";
import { createManyTables, declareManyTables } from "../support/many_tables.ts";
import { runProgram, terminalCommand } from "../support/program.ts";
import { documented } from "../support/api_document.ts";
import { startServer } from "../support/server.ts";

const TABLES = 500;

/** The number of tables where more show the same, and take longer. */
const FEWER_TABLES = 100;

/** Maximum bytes of a page. */
const PAGE_LIMIT = 150_000;

/** Maximum bytes of the payload of a notification. */
const NOTIFY_LIMIT = 8000;

Deno.test("a failure in one of 500 tables is the only one that every output names", async (t) => {
  await using db = await migratedDatabases({ withoutTables: true });
  await using file = await createManyTables(db, TABLES);
  await db.source.unsafe("alter table many.t77 add column bad regclass");
  const environment = {
    ...db.environment,
    ...file.variables,
    MAX_PARALLEL_TASKS: "4",
  };
  await using server = await documented(await startServer({ environment }));
  await using listener = db.connect("warehouse");
  const payloads: string[] = [];
  await listener.listen("marketing_data_events", (text) => payloads.push(text));
  const { status, body: event } = await server.json("/load", {
    method: "POST",
  });

  await t.step("the event has an entry for each table", () => {
    assertEquals(status, 500);
    const { details } = event;
    assertEquals(
      [details.total_tables, details.successful_tables, details.failed_tables],
      [TABLES, TABLES - 1, 1],
    );
    assertMatch(
      event.error,
      /^Cannot load t77: [^;]* Loaded successfully: 499 tables\.$/,
    );
    const [first] = details.results;
    assertEquals([first.source, first.target], ["many.t1", "raw.t1"]);
  });

  await t.step("the notification is short", () => {
    const [payload] = payloads;
    assertEquals(JSON.parse(payload!).event_id, event.event_id);
    assert(payload!.length < NOTIFY_LIMIT, `${payload!.length} bytes`);
  });

  await t.step(
    "GET /tables and /runs/{id} have the result of each table",
    async () => {
      const { body: { tables } } = await server.json("/tables");
      assertEquals(tables.length, TABLES);
      const failed = tables.filter((
        { last_result: last }: { last_result: { status: string } },
      ) => last.status === "failure");
      assertEquals(failed.map(({ name }: { name: string }) => name), ["t77"]);
      assertEquals([tables[0].rows, failed[0].rows], [11, null]);
      const { body: run } = await server.json(`/runs/${event.run_id}`);
      assertEquals(run.table_loads.length, TABLES);
    },
  );

  await t.step("the series of each table exist", async () => {
    const text = await (await server.fetch("/metrics")).text();
    assertMatch(text, /^marketing_data_copied_bytes_total\{table="t77"\} 0$/m);
    assertMatch(
      text,
      /^marketing_data_rows_total\{table="t1",operation="insert"\} 11$/m,
    );
  });

  await t.step("the pages are small", async () => {
    for (const path of ["/", "/runs", `/runs/${event.run_id}`]) {
      const response = await server.fetch(path, {
        headers: { accept: "text/html" },
      });
      const page = await response.text();
      assert(page.length < PAGE_LIMIT, `${path}: ${page.length} bytes`);
      if (path !== "/runs") assertEquals(page.match(/t77</g)?.length, 1, path);
    }
  });

  await t.step("runs --id names the failed table last", async () => {
    const short = event.run_id.slice(0, 8);
    const { stdout } = await runProgram(["runs", "--id", short], environment);
    assertMatch(stdout, /^tables +500: 1 failed, 499 changed \+6,4\d\d$/m);
    assertMatch(stdout, /^t99 .*\nt77 +Cannot load t77: .*\nevent /m);
    const list = await runProgram(["runs"], environment);
    assert(list.stdout.length < 1000, list.stdout);
  });

  await using fewer = await declareManyTables(FEWER_TABLES);
  const few = { ...environment, ...fewer.variables };

  await t.step(
    "load prints progress of all tables in a few lines, and a summary",
    async () => {
      const { stdout, stderr } = await runProgram(["load"], few);
      assert(stderr.trim().split("\n").length < 40, stderr);
      assertMatch(stdout, /^100 tables: 1 failed, 99 unchanged$/m);
      assertMatch(stdout, /\nt77 +failed\n✗ Cannot load t77/);
    },
  );

  await t.step(
    "verify lists the failed table last, and the numbers",
    async () => {
      const { stdout } = await runProgram(["verify"], few);
      assertMatch(
        stdout,
        /^t100 +equal .*\nt77 +FAILED +.*\n100 tables: 99 equal, 1 FAILED\n$/m,
      );
    },
  );

  await t.step("config lists the tables", async () => {
    const { stdout } = await runProgram(["config"], few);
    assertMatch(stdout, /^t1 +many\.t1 +raw\.t1 +all +odd$/m);
  });

  if (findProgram("script")) {
    await t.step(
      "load shows a total on a terminal, and leaves out unchanged tables",
      async () => {
        const { stdout } = await terminalCommand("load", 100, few)
          .output();
        const text = new TextDecoder().decode(stdout);
        assertMatch(text, /[█░]{30} \d+ of 100 tables/);
        const plain = text.replaceAll("\r", "")
          // deno-lint-ignore no-control-regex -- the colors of a terminal
          .replaceAll(/\x1b\[[0-9;?]*[A-Za-z]/g, "");
        const end = plain.slice(plain.indexOf("Table  Result"));
        assertMatch(end, /^Table +Result.*\nt77 +failed\n✗ Cannot load t77/);
        assertMatch(
          end,
          /\n100 tables: 1 failed, 99 unchanged\nrun \S+ failed/,
        );
      },
    );
  }
});
