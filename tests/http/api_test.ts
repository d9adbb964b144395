import {
  assert,
  assertEquals,
  assertMatch,
  assertStringIncludes,
} from "@std/assert";
import Ajv from "ajv/2020";
import fc from "fast-check";
import { type Databases, migratedDatabases } from "../support/databases.ts";
import { testWith } from "../support/debian.ts";
import { documented } from "../support/api_document.ts";
import * as program from "../support/program.ts";
import { runJson, runProgram } from "../support/program_here.ts";
import { startServer, until } from "../support/server.ts";

const ROWS = { deals: 20, leads: 50 };

/** Locks a table, so that the next load waits until this is disposed of. */
async function heldTable(db: Databases): Promise<AsyncDisposable> {
  const writer = db.connect("warehouse");
  await writer.unsafe(
    "begin; lock table m_data.closed_deal in row exclusive mode",
  );
  return {
    async [Symbol.asyncDispose]() {
      await writer.unsafe("rollback");
      await writer.end({ timeout: 1 });
    },
  };
}

async function countRuns(db: Databases, condition = "true"): Promise<number> {
  const [row] = await db.warehouse.unsafe(
    `select count(*)::int as n from marketing_data_service.run where ${condition}`,
  );
  return row!.n;
}

/** The id of no run. */
const NO_RUN = "00000000-0000-0000-0000-000000000000";

Deno.test("the API answers as documented", async (t) => {
  await using db = await migratedDatabases({ rows: ROWS });
  await using server = await documented(await startServer(db));
  const post = (
    path: string,
    body?: string,
    headers: Record<string, string> = {},
  ) =>
    server.json(path, {
      method: "POST",
      headers,
      ...(body === undefined ? {} : { body }),
    });
  let runId = "";

  await t.step("GET /health, /health/live and /health/ready", async () => {
    const { status, body } = await server.json("/health");
    assertEquals(status, 200);
    assertEquals(body.status, "healthy");
    assertEquals(body.checks.olist.status, "healthy");
    const live = await server.fetch("/health/live");
    await live.body?.cancel();
    assertEquals(live.status, 200);
    assert(live.headers.get("x-request-id"));
  });

  await t.step("POST /load loads and answers with the event", async () => {
    const { status, body } = await post("/load");
    assertEquals(status, 200);
    assertEquals(body.event_type, "marketing-data-loaded");
    assertEquals(body.trigger, "http");
    runId = body.run_id;
    const one = await post(
      "/load",
      '{"tables": ["closed_deal"], "mode": "full", "allow_shrink": true}',
      {
        "content-type": "text/plain",
      },
    );
    assertEquals(one.body.results.total_tables, 1);
    assertEquals(one.body.results.results[0].mode, "full");
    const stored = await server.json(`/runs/${one.body.run_id}`);
    assertEquals(stored.body.allow_shrink, true);
  });

  await t.step(
    "POST /load-async answers at once, and the stream follows the run",
    async () => {
      const response = await server.fetch("/load-async", { method: "POST" });
      const body = await response.json();
      assertEquals(response.status, 202);
      assertEquals(response.headers.get("location"), `/runs/${body.run_id}`);
      await until("the run is over", async () => {
        const { body: run } = await server.json(`/runs/${body.run_id}`);
        return run.status === "succeeded";
      });
      // A UUID has the same meaning in both cases.
      for (const id of [body.run_id, body.run_id.toUpperCase()]) {
        const stream = await server.fetch(`/runs/${id}/stream`);
        assertStringIncludes(
          stream.headers.get("content-type")!,
          "text/event-stream",
        );
        assertMatch(
          await stream.text(),
          /event: state\ndata: \{[^\n]*"status":"succeeded"[^\n]*\n\nevent: end\n/,
        );
      }
    },
  );

  await t.step("GET /tables shows each declared table", async () => {
    const { status, body } = await server.json("/tables");
    assertEquals(status, 200);
    const [deal, lead] = body.tables;
    assertEquals(
      [deal.name, deal.group, deal.source, deal.target, deal.rows],
      ["closed_deal", null, "marketing.closed_deals", "m_data.closed_deal", 20],
    );
    assertEquals(deal.columns[4], {
      name: "won_date",
      type: "timestamp with time zone",
    });
    const newest = await server.json("/runs?limit=1");
    const [run] = newest.body.runs;
    const { run_id, status: result, mode } = lead.last_result;
    assertEquals([run_id, result, mode], [run.run_id, "success", "unchanged"]);
    assertEquals(lead.freshness.source_snapshot_at, run.source_snapshot_at);
    assertEquals((await post("/tables")).status, 405);
  });

  await t.step(
    "GET /tables shows a failure until a load succeeds",
    async () => {
      await db.source.unsafe(
        "alter table marketing.closed_deals rename column won_date to won_on",
      );
      const failed = (await post("/load")).body;
      await db.source.unsafe(
        "alter table marketing.closed_deals rename column won_on to won_date",
      );
      const { tables: [deal, lead] } = (await server.json("/tables")).body;
      assertEquals(
        [deal.last_result.status, deal.last_result.code, deal.rows],
        ["failure", "source_column_missing", 20],
      );
      assertEquals(deal.last_result.run_id, failed.run_id);
      assertMatch(deal.last_result.error, /"won_date" is missing/);
      assert(deal.freshness.finished_at < deal.last_result.finished_at);
      assertEquals(lead.last_result.status, "success");
      const { source, target } = failed.details.results[0];
      assertEquals([source, target], [deal.source, deal.target]);
      await post("/load");
      const { tables } = (await server.json("/tables")).body;
      assertEquals(tables[0].last_result.status, "success");
    },
  );

  await t.step(
    "GET /runs, /runs/{id} and /events return the history",
    async () => {
      const runs = await server.json("/runs?limit=2");
      assertEquals(runs.body.runs.length, 2);
      const older = await server.json(
        `/runs?before=${runs.body.runs[1].run_id}&limit=100`,
      );
      assertEquals(older.body.runs.at(-1).run_id, runId);
      const run = await server.json(`/runs/${runId}`);
      assertEquals(run.body.tables.length, 2);
      assertEquals(run.body.event.run_id, runId);
      assertEquals(
        (await server.json(`/runs/${crypto.randomUUID()}`)).status,
        404,
      );
      const events = await server.json("/events?limit=1");
      assertEquals(
        events.body.events[0].event.run_id ?? events.body.events[0].run_id,
        runId,
      );
    },
  );

  await t.step("GET /, /docs, /metrics and /openapi.json", async () => {
    const { body } = await server.json("/");
    assertEquals(body.service, "marketing-data-service");
    const page = await server.fetch("/", { headers: { accept: "text/html" } });
    assertStringIncludes(await page.text(), "<html");
    const docs = await (await server.fetch("/docs")).text();
    assertStringIncludes(docs, "/load-async");
    assert(
      !/(src|href)="https?:/.test(docs),
      "the reader reaches for another host",
    );
    const metrics = await (await server.fetch("/metrics")).text();
    assertMatch(
      metrics,
      /marketing_data_runs_total\{[^}]*status="success"[^}]*\} \d/,
    );
    assert(!metrics.includes(runId));
    const document = await server.json("/openapi.json");
    assertEquals(document.body.openapi, "3.1.0");
    assertEquals(
      document.body.webhooks.event.post.requestBody.content,
      {
        "application/cloudevents+json": {
          schema: { $ref: "#/components/schemas/CloudEvent" },
        },
      },
    );
    for (
      const path of [
        "/load",
        "/load-async",
        "/runs",
        "/runs/{id}",
        "/runs/{id}/stream",
        "/events",
        "/health",
      ]
    ) {
      assert(document.body.paths[path], path);
    }
  });

  await t.step("the schema of events holds for every event", async () => {
    const { body: schema } = await server.json("/schemas/event.v1.json");
    const ajv = new Ajv.default({ strict: false, validateFormats: false });
    const validate = ajv.compile(schema);
    const { events } = (await server.json("/events")).body;
    const statuses = new Set<string>();
    for (const { event } of events) {
      assert(validate(event), ajv.errorsText(validate.errors));
      statuses.add(event.status);
      assertMatch(event.started_at, /^\d{4}-\d\d-\d\dT[\d:]{8}\.\d{6}$/);
      assert(event.started_at < event.timestamp);
      if (event.status === "success") continue;
      const [entry] = event.details.results;
      assertEquals([event.code, event.remedy], [entry.code, entry.remedy]);
      assert(!validate({ ...event, details: {} }));
    }
    assertEquals(statuses, new Set(["success", "failure"]));
  });

  await t.step("bad requests get problem documents", async () => {
    const cases: [string, RequestInit, number, string][] = [
      ["/load", { method: "POST", body: '{"tabels": []}' }, 400, "tabels"],
      [
        "/load",
        { method: "POST", body: '{"tables": ["orders"]}' },
        400,
        "orders",
      ],
      ["/load", { method: "POST", body: '{"tables": []}' }, 400, "tables"],
      ["/load", { method: "POST", body: '{"mode": 3}' }, 400, "mode"],
      [
        "/load",
        { method: "POST", body: '{"allow_shrink": "yes"}' },
        400,
        'allow_shrink must be true or false, not "yes"',
      ],
      [
        "/load",
        { method: "POST", body: '{"group": "nightly", "tables": []}' },
        400,
        'tables must not be empty; "group" is not known, because no table has a group',
      ],
      ["/load", { method: "POST", body: "{" }, 400, "JSON"],
      [
        "/load",
        { method: "POST", body: "[1]" },
        400,
        "The body must be a JSON object",
      ],
      ["/load", { method: "POST", body: "x".repeat(70_000) }, 413, ""],
      ["/load?mode=full", { method: "POST" }, 400, "body"],
      [
        "/load",
        { method: "POST", body: `{"tables": [${"0,".repeat(20_000)}0]}` },
        400,
        "tables.4",
      ],
      [
        "/load",
        { method: "POST", body: `{"${"k".repeat(60_000)}": 1}` },
        400,
        "kkk",
      ],
      ["/load", { method: "GET" }, 405, "GET"],
      ["/runs?limit=-1", {}, 400, "limit must be a whole number"],
      ["/runs?limit=1&limit=2", {}, 400, "limit must be one value"],
      ["/events?limit=501", {}, 400, "limit must be at most 500"],
      [`/runs/${NO_RUN}`, {}, 404, `Run ${NO_RUN} does not exist. See /runs`],
      ["/events?after=1000000000000000", {}, 400, "after"],
      ["/runs?status=lost", {}, 400, "status"],
      ["/runs/not-an-id", {}, 400, "id must be a UUID"],
      ["/nowhere", {}, 404, "/nowhere"],
    ];
    for (const [path, init, status, says] of cases) {
      const response = await server.fetch(path, init);
      const text = await response.text();
      assertEquals(response.status, status, `${path} ${text}`);
      assert(text.length < 5000, `${path} answers ${text.length} characters`);
      assertStringIncludes(
        response.headers.get("content-type")!,
        "application/problem+json",
      );
      assertStringIncludes(JSON.parse(text).detail, says);
    }
  });

  await t.step(
    "no request gets a server error",
    async () => {
      const document = (await server.json("/openapi.json")).body;
      const operations = Object.entries(document.paths).flatMap((
        [path, methods],
      ) =>
        Object.entries(
          methods as Record<string, { responses: Record<string, unknown> }>,
        )
          .filter(([, operation]) => operation.responses)
          .map(([method, { responses }]) => ({
            path,
            method,
            responses: Object.keys(responses),
          }))
      ).filter(({ path }) =>
        path !== "/load-async" && !path.endsWith("/stream")
      );
      const anything = fc.oneof(
        fc.json(),
        fc.string({ unit: "binary" }),
        fc.constant("{}x"),
        fc.constant('{"tables":["closed_deal","closed_deals"]}'),
      );
      await fc.assert(
        fc.asyncProperty(
          fc.constantFrom(...operations),
          anything,
          fc.webQueryParameters(),
          fc.string({ unit: "grapheme-ascii", maxLength: 40 }),
          async ({ path, method, responses }, body, query, id) => {
            const target = `${
              path.replace(/\{\w+\}/g, encodeURIComponent(id) || "x")
            }?${query}`;
            const response = await server.fetch(target, {
              method: method.toUpperCase(),
              redirect: "manual",
              ...(method === "post" ? { body } : {}),
            });
            const text = await response.text();
            assert(
              response.status < 500,
              `${method} ${target} ${body}: ${response.status} ${text}`,
            );
            assert(
              responses.includes(String(response.status)) ||
                response.status === 404,
              `${method} ${path}: ${response.status} is not documented`,
            );
            if (response.status >= 400) {
              assertEquals(
                JSON.parse(text).status,
                response.status,
              );
            }
          },
        ),
        { numRuns: 1000 },
      );
    },
  );

  await t.step("the CLI shows the same history", async () => {
    const runs = await runJson(["runs"], db.environment);
    assertEquals(runs.code, 0, runs.stderr);
    const events = await runProgram(["events"], db.environment);
    assertEquals(events.code, 0);
    assertStringIncludes(events.stdout, runId.slice(0, 8));
  });
});

Deno.test("the service requires the token except for /health, and refuses to listen openly without one", async () => {
  await using db = await migratedDatabases({ rows: ROWS });
  const right = { headers: { authorization: "Bearer tok-en-1234567890" } };
  await using server = await documented(
    await startServer(db, { API_TOKEN: "tok-en-1234567890" }),
    right.headers,
  );
  for (const path of ["/", "/runs", "/metrics", "/openapi.json"]) {
    const response = await server.fetch(path);
    await response.body?.cancel();
    assertEquals(response.status, 401, path);
    assert(response.headers.get("www-authenticate"));
  }
  assertEquals((await server.json("/health")).status, 200);
  assertEquals((await server.json("/runs", right)).status, 200);
  const wrong = { headers: { authorization: "Bearer tok-en-123457" } };
  assertEquals((await server.json("/runs", wrong)).status, 401);
  const open = await program.runProgram(["serve"], {
    ...db.environment,
    HOST: "0.0.0.0",
    PORT: "0",
  });
  assertEquals(open.code, 78);
  assertStringIncludes(open.stderr, "API_TOKEN");
});

Deno.test("500 requests at once share at most two runs", async () => {
  await using db = await migratedDatabases({ rows: ROWS });
  await using server = await documented(await startServer(db));
  await server.json("/load", { method: "POST" });
  const before = await countRuns(db);
  const held = await heldTable(db);
  const all = Array.from(
    { length: 500 },
    () => server.json("/load", { method: "POST" }),
  );
  await until(
    "a run has begun",
    async () => await countRuns(db, "state = 'running'") === 1,
  );
  const live = await server.fetch("/health/live");
  await live.body?.cancel();
  assertEquals(live.status, 200);
  const [backends] = await db.warehouse.unsafe(
    `select count(*)::int as n from pg_stat_activity
     where application_name like 'marketing-data-service%' and datname = current_database()`,
  );
  assert(backends!.n < 20, `${backends!.n} backends`);
  await held[Symbol.asyncDispose]();
  const answers = await Promise.all(all);
  assertEquals(new Set(answers.map(({ status }) => status)), new Set([200]));
  const runs = await countRuns(db) - before;
  assert(runs === 1 || runs === 2, `${runs} runs`);
});

testWith(
  ["curl"],
  "curl -sf exits with 0 after a success and with 22 after a failure that names table, cause and remedy",
  async () => {
    await using db = await migratedDatabases({ rows: ROWS });
    await using server = await documented(await startServer(db));
    const curl = (...flags: string[]) =>
      new Deno.Command("curl", {
        args: [...flags, "-X", "POST", `${server.url}/load`],
      }).output();
    assertEquals((await curl("-sf")).code, 0);
    await db.source.unsafe(
      "alter table marketing.closed_deals drop column won_date",
    );
    assertEquals((await curl("-sf")).code, 22);
    const { status, body } = await server.json("/load", { method: "POST" });
    assertEquals(status, 500);
    assertEquals(body.event_type, "marketing-data-load-failed");
    assertStringIncludes(
      body.error,
      `column "won_date" is missing in marketing.closed_deals`,
    );
    assertStringIncludes(body.error, "Add the column");
  },
);

Deno.test("a client that closes its connection does not abort the load", async () => {
  await using db = await migratedDatabases({ rows: ROWS });
  await using server = await documented(await startServer(db));
  await server.json("/load", { method: "POST" });
  const held = await heldTable(db);
  const client = new AbortController();
  const gone = server.fetch("/load", { method: "POST", signal: client.signal })
    .catch(() => {});
  await until(
    "it runs",
    async () => await countRuns(db, "state = 'running'") === 1,
  );
  client.abort();
  await gone;
  await held[Symbol.asyncDispose]();
  await until(
    "it succeeded",
    async () => await countRuns(db, "state = 'succeeded'") === 2,
  );
});

Deno.test("another service loads after kill -9 of a process, and the dead run has one failure event", async () => {
  await using db = await migratedDatabases({ rows: ROWS });
  await using first = await documented(await startServer(db));
  await using second = await documented(await startServer(db));
  await first.json("/load", { method: "POST" });
  const held = await heldTable(db);
  const lost = first.fetch("/load", { method: "POST" }).then(
    (response) => response.body?.cancel(),
    () => {},
  );
  await until(
    "it runs",
    async () => await countRuns(db, "state = 'running'") === 1,
  );
  const next = second.json("/load", { method: "POST" });
  first.kill("SIGKILL");
  await lost;
  await held[Symbol.asyncDispose]();
  assertEquals((await next).status, 200);
  const rows = await db.warehouse.unsafe(
    `select run.id, (select count(*)::int from marketing_data_service.event e where e.run_id = run.id) as events
     from marketing_data_service.run where state = 'interrupted'`,
  );
  assertEquals(rows.map((row) => row.events), [1]);
});

Deno.test("the service refuses new loads with 503 on SIGTERM, finishes the running load, and exits with 143", async () => {
  await using db = await migratedDatabases({ rows: ROWS });
  // The table is held for longer than the default of the tests on a busy machine.
  await using server = await documented(
    await startServer(db, { LOCK_TIMEOUT: "60" }),
  );
  await server.json("/load", { method: "POST" });
  const held = await heldTable(db);
  const running = server.json("/load", { method: "POST" });
  await until(
    "it runs",
    async () => await countRuns(db, "state = 'running'") === 1,
  );
  server.kill("SIGTERM");
  await until(
    "it drains",
    async () => (await server.json("/health/ready")).status === 503,
  );
  const refused = await server.fetch("/load", { method: "POST" });
  await refused.body?.cancel();
  assertEquals(refused.status, 503);
  assert(Number(refused.headers.get("retry-after")) > 0);
  await held[Symbol.asyncDispose]();
  assertEquals((await running).status, 200);
  const { code, stderr } = await server.finished;
  assertEquals(code, 143, stderr);
});

Deno.test("a NOTIFY on LISTEN_CHANNEL starts a load", async () => {
  await using db = await migratedDatabases({ rows: ROWS });
  await using _server = await startServer(db, {
    LISTEN_CHANNEL: "source_changed",
  });
  await until("a run was asked for", async () => {
    await db.warehouse.unsafe("notify source_changed");
    return await countRuns(db, "trigger = 'notify' and state = 'succeeded'") >
      0;
  });
});

Deno.test("the next process runs a queued run of a process that has ended", async () => {
  await using db = await migratedDatabases({ rows: ROWS });
  let id = "";
  {
    await using server = await documented(await startServer(db));
    await server.json("/load", { method: "POST" });
    await using _held = await heldTable(db);
    await server.json("/load-async", { method: "POST" });
    await until(
      "it runs",
      async () => await countRuns(db, "state = 'running'") === 1,
    );
    id = (await server.json("/load-async", { method: "POST" })).body.run_id;
    server.kill("SIGKILL");
    await server.finished;
  }
  await using _next = await startServer(db);
  await until(
    "it is run",
    async () =>
      await countRuns(db, `id = '${id}' and state = 'succeeded'`) === 1,
  );
});
