import {
  assert,
  assertEquals,
  assertMatch,
  assertStringIncludes,
} from "@std/assert";
import { formatCount, formatQuantity } from "../../src/format.ts";
import {
  createDatabases,
  type Databases,
  PASSWORD,
  type Sql,
} from "../support/databases.ts";
import { spawnProgram } from "../support/program.ts";
import { runJson, runProgram } from "../support/program_here.ts";
import { until } from "../support/server.ts";

const ROWS = { deals: 842, leads: 8000 };

/**
 * Returns the numbers of rows inserted, updated and deleted so far, from the
 * statistics of the server.
 */
async function writesTo(warehouse: Sql): Promise<string> {
  await warehouse.unsafe("select pg_stat_clear_snapshot()");
  const [row] = await warehouse.unsafe(
    `select coalesce(sum(n_tup_ins), 0) || ' ' || coalesce(sum(n_tup_upd), 0) || ' ' ||
       coalesce(sum(n_tup_del), 0) || ' ' || coalesce(sum(n_dead_tup), 0) as writes
     from pg_stat_user_tables where schemaname = 'm_data'`,
  );
  return row!.writes;
}

async function storedEvent(warehouse: Sql, runId: string) {
  const rows = await warehouse.unsafe(
    `select payload::text from marketing_data_service.event where run_id = '${runId}'`,
  );
  assertEquals(rows.length, 1, "exactly one event per run");
  return JSON.parse(rows[0]!.payload);
}

Deno.test("load copies everything, then nothing, then changes, and repairs damage", async (t) => {
  await using db = await createDatabases({ rows: ROWS });
  const { environment } = db;

  await t.step(
    "the first load copies everything and writes its event",
    async () => {
      const { code, json, stderr } = await runJson(["load"], environment);
      assertEquals(code, 0, stderr);
      assertEquals(Object.keys(json).slice(0, 4), [
        "event_type",
        "status",
        "timestamp",
        "results",
      ]);
      assertEquals(json.event_type, "marketing-data-loaded");
      assertEquals(json.status, "success");
      assertMatch(json.timestamp, /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}$/);
      assertEquals(json.results.total_tables, 2);
      assertEquals(json.results.successful_tables, 2);
      assertEquals(json.results.failed_tables, 0);
      assertEquals(
        json.results.results.map((
          r: { table: string; records_loaded: number; mode: string },
        ) => [
          r.table,
          r.records_loaded,
          r.mode,
        ]),
        [["closed_deal", 842, "full"], [
          "marketing_qualified_lead",
          8000,
          "full",
        ]],
      );
      assertEquals(json.results.integrity_checks, [
        {
          table: "closed_deal",
          integrity_ok: true,
          source_count: 842,
          target_count: 842,
        },
        {
          table: "marketing_qualified_lead",
          integrity_ok: true,
          source_count: 8000,
          target_count: 8000,
        },
      ]);
      assertEquals(json.trigger, "cli");
      assertEquals(await storedEvent(db.warehouse, json.run_id), json);
    },
  );

  await t.step("the second load writes nothing", async () => {
    await sessionsEnd(db);
    const before = await writesTo(db.warehouse);
    const { code, json } = await runJson(["load"], environment);
    assertEquals(code, 0);
    for (const entry of json.results.results) {
      assertEquals(entry.mode, "unchanged");
      assertEquals([
        entry.rows_inserted,
        entry.rows_deleted,
        entry.bytes_copied,
      ], [0, 0, 0]);
    }
    await sessionsEnd(db);
    assertEquals(await writesTo(db.warehouse), before);
  });

  for (
    const [words, changes] of [
      [["--mode", "full"], {}],
      [["--recreate"], {}],
      [["--recreate", "--mode", "auto"], {}],
      [[], { LOAD_MODE: "full" }],
    ] as const
  ) {
    const name = [...words, ...Object.keys(changes)].join(" ");
    await t.step(`--dry-run prints the plan of ${name}`, async () => {
      const before = await writesTo(db.warehouse);
      const variables = { ...environment, ...changes };
      const dry = await runJson(["load", "--dry-run", ...words], variables);
      assertEquals(dry.code, 0, dry.stderr);
      const text = await runProgram(["load", "--dry-run", ...words], variables);
      assertEquals(text.code, 0, text.stderr);
      await sessionsEnd(db);
      assertEquals(await writesTo(db.warehouse), before);
      assertEquals(dry.json.equal, true);
      const { json } = await runJson(["load", ...words], variables);
      for (const [index, loaded] of json.results.results.entries()) {
        const planned = dry.json.tables[index];
        const { rows_inserted: rows } = loaded;
        assertEquals(
          [planned.table, planned.mode, planned.rows_to_copy, planned.equal],
          [loaded.table, loaded.mode, rows, true],
        );
        assertEquals(
          text.stdout.split("\n")[index],
          `${loaded.table.padEnd(24)}  full       would copy ${
            formatCount(rows)
          } of ${formatQuantity(rows, "row")}`,
        );
      }
    });
  }

  await t.step(
    "verify reports equal tables with LOAD_MODE=full",
    async () => {
      const { code, json } = await runJson(["verify"], {
        ...environment,
        LOAD_MODE: "full",
      });
      assertEquals([code, json.equal, json.tables[0].mode], [
        0,
        true,
        "unchanged",
      ]);
    },
  );

  await t.step("five changed rows are copied as a delta", async () => {
    await db.source.unsafe(
      `update marketing.marketing_qualified_leads set origin = 'changed'
       where ctid in (select ctid from marketing.marketing_qualified_leads limit 5)`,
    );
    const dry = await runJson(["load", "--dry-run"], environment);
    assertEquals(dry.code, 0);
    assertEquals(dry.json.tables[1].mode, "delta");
    const { code, json } = await runJson(["load"], environment);
    assertEquals(code, 0);
    const [deal, lead] = json.results.results;
    assertEquals(deal.mode, "unchanged");
    assertEquals(lead.mode, "delta");
    assert(
      lead.rows_inserted >= 5 && lead.rows_inserted < 80,
      `${lead.rows_inserted} rows`,
    );
    assertEquals(lead.rows_deleted, lead.rows_inserted);
    assertEquals((await runProgram(["verify"], environment)).code, 0);
  });

  await t.step(
    "verify detects damage of the target, and load repairs it",
    async () => {
      await db.warehouse.unsafe(
        `update m_data.closed_deal set declared_monthly_revenue = 1
       where ctid in (select ctid from m_data.closed_deal limit 1);
       delete from m_data.marketing_qualified_lead
       where ctid in (select ctid from m_data.marketing_qualified_lead limit 3)`,
      );
      const verify = await runJson(["verify"], environment);
      assertEquals(verify.code, 1);
      assertEquals(verify.json.equal, false);
      assertEquals(verify.json.tables.map((t: { equal: boolean }) => t.equal), [
        false,
        false,
      ]);
      assertEquals((await runProgram(["load"], environment)).code, 0);
      const healed = await runProgram(["verify"], environment);
      assertEquals(healed.code, 0, healed.stdout);
    },
  );

  await t.step("--table loads only one table", async () => {
    await db.source.unsafe("delete from marketing.closed_deals");
    const { json } = await runJson([
      "load",
      "--table",
      "marketing_qualified_lead",
    ], environment);
    assertEquals(json.results.total_tables, 1);
    const [row] = await db.warehouse.unsafe(
      "select count(*)::int as n from m_data.closed_deal",
    );
    assertEquals(row!.n, 842);
    const all = await runJson(["load", "--allow-shrink"], environment);
    assertEquals(all.json.results.results[0].records_loaded, 0);
    assertEquals(all.json.results.results[0].rows_deleted, 842);
  });

  await t.step("--mode full copies everything again", async () => {
    const { json } = await runJson(["load", "--mode", "full"], environment);
    const [, lead] = json.results.results;
    assertEquals([lead.mode, lead.rows_inserted, lead.rows_deleted], [
      "full",
      8000,
      8000,
    ]);
  });
});

Deno.test("load --atomic makes all tables visible together, or none", async () => {
  await using db = await createDatabases({ rows: { deals: 10, leads: 10 } });
  await db.source.unsafe(
    "alter table marketing.marketing_qualified_leads drop column origin",
  );
  const failed = await runJson(["load", "--atomic"], db.environment);
  assertEquals(failed.code, 1);
  assertEquals(
    failed.json.details.results.map((r: { code: string }) => r.code),
    ["rolled_back", "source_column_missing"],
  );
  const rows = await db.warehouse.unsafe(
    "select 1 from pg_tables where schemaname = 'm_data'",
  );
  assertEquals(rows.length, 0);
  await db.source.unsafe(
    "alter table marketing.marketing_qualified_leads add column origin text",
  );
  const { code, json } = await runJson(["load"], {
    ...db.environment,
    LOAD_ATOMIC: "true",
  });
  assertEquals(code, 0);
  assertEquals(json.results.successful_tables, 2);
});

Deno.test("load commits one table when the other fails, and the run is a failure", async () => {
  await using db = await createDatabases({ rows: { deals: 10, leads: 10 } });
  await db.source.unsafe(
    "alter table marketing.marketing_qualified_leads drop column origin",
  );
  const { code, json, stderr } = await runJson(["load"], db.environment);
  assertEquals(code, 1);
  assertEquals(json.event_type, "marketing-data-load-failed");
  assertEquals(json.details.successful_tables, 1);
  assertEquals(json.details.failed_tables, 1);
  assertEquals(json.details.results[0].status, "success");
  assertStringIncludes(
    json.error,
    `column "origin" is missing in marketing.marketing_qualified_leads`,
  );
  assertStringIncludes(json.error, "Loaded successfully: closed_deal.");
  assert(!stderr.includes(PASSWORD));
  assertEquals(await storedEvent(db.warehouse, json.run_id), json);
  const [count] = await db.warehouse.unsafe(
    "select count(*)::int as n from m_data.closed_deal",
  );
  assertEquals(count!.n, 10);
});

Deno.test("load --recreate replaces a table with other columns", async () => {
  await using db = await createDatabases({ rows: { deals: 10, leads: 10 } });
  await db.warehouse.unsafe(
    `create schema m_data; alter schema m_data owner to ${db.loader};
     create table m_data.closed_deal (mql_id int); alter table m_data.closed_deal owner to ${db.loader}`,
  );
  const refused = await runJson(["load"], db.environment);
  assertEquals(refused.code, 1);
  assertStringIncludes(
    refused.json.error,
    `column "mql_id" of m_data.closed_deal`,
  );
  assertStringIncludes(refused.json.error, "load --recreate --table NAME");
  const dry = await runJson(["load", "--dry-run"], db.environment);
  assertEquals(dry.json.tables[0].code, "target_incompatible");
  const recreated = await runJson(
    ["load", "--dry-run", "--recreate"],
    db.environment,
  );
  assertEquals(recreated.code, 0, recreated.stderr);
  const { mode, rows_to_copy, target_count, equal } = recreated.json.tables[0];
  assertEquals([mode, rows_to_copy, target_count, equal], [
    "full",
    10,
    null,
    false,
  ]);
  const { code } = await runJson(["schema", "recreate"], db.environment);
  assertEquals(code, 0);
  assertEquals((await runProgram(["verify"], db.environment)).code, 0);
});

Deno.test("load publishes to a file, repairs a torn line, and notifies", async () => {
  await using db = await createDatabases({ rows: { deals: 3, leads: 3 } });
  const folder = await Deno.makeTempDir();
  try {
    const file = `${folder}/events.jsonl`;
    const environment = {
      ...db.environment,
      EVENT_PUBLISHER_TYPE: "file",
      EVENT_FILE: file,
    };
    const heard = Promise.withResolvers<string>();
    await db.warehouse.listen("marketing_data_events", heard.resolve);
    const first = await runJson(["load"], environment);
    assertEquals(first.code, 0, first.stderr);
    assertEquals(JSON.parse(await heard.promise).event_id, first.json.event_id);
    await Deno.writeTextFile(file, '{"event_type": "torn', { append: true });
    const second = await runJson(["load"], environment);
    const lines = (await Deno.readTextFile(file)).trimEnd().split("\n").map((
      l,
    ) => JSON.parse(l));
    assertEquals(lines, [first.json, second.json]);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

Deno.test("load succeeds when its output is not read, and events --follow ends", async () => {
  await using db = await createDatabases({ rows: { deals: 3, leads: 3 } });
  const deaf = async (...words: string[]) => {
    const process = spawnProgram(words, db.environment);
    await process.stdout.cancel();
    const [{ code }, stderr] = await Promise.all([
      process.status,
      new Response(process.stderr).text(),
    ]);
    return { code, stderr };
  };
  const load = await deaf("load", "--json");
  assertEquals(load.code, 0, load.stderr);
  const [row] = await db.warehouse.unsafe(
    "select count(*)::int as n from marketing_data_service.run where state = 'succeeded'",
  );
  assertEquals(row!.n, 1);
  assertEquals((await deaf("events", "--follow")).code, 0);
});

Deno.test("load succeeds when its log cannot be written", async () => {
  await using db = await createDatabases({ rows: { deals: 3, leads: 3 } });
  const process = spawnProgram(["load"], db.environment);
  await process.stderr.cancel();
  const [{ code }, stdout] = await Promise.all([
    process.status,
    new Response(process.stdout).text(),
  ]);
  assertEquals(code, 0, stdout);
});

Deno.test("load leaves no session, lock or table behind", async () => {
  await using db = await createDatabases({ rows: { deals: 10, leads: 10 } });
  await runProgram(["load"], db.environment);
  await assertNothingLeft(db);
});

/** Waits until the backends of the program have ended. They have then written their statistics. */
async function sessionsEnd(db: Databases): Promise<void> {
  for (const sql of [db.source, db.warehouse]) {
    await until("the sessions are gone", async () => {
      const sessions = await sql.unsafe(
        `select 1 from pg_stat_activity
         where application_name like 'marketing-data-service%' and datname = current_database()`,
      );
      return sessions.length === 0;
    });
  }
}

async function assertNothingLeft(db: Databases): Promise<void> {
  await sessionsEnd(db);
  const tables = await db.warehouse.unsafe(
    "select tablename from pg_tables where schemaname = 'm_data' order by 1",
  );
  assertEquals(tables.map((t) => t.tablename), [
    "closed_deal",
    "marketing_qualified_lead",
  ]);
}
