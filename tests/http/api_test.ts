import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { createDatabases } from "../support/databases.ts";
import { runProgram } from "../support/program.ts";
import { startServer } from "../support/server.ts";

Deno.test("the API loads, shares runs, shows history, refuses bad input and ends in order", async (t) => {
  await using db = await createDatabases({ rows: { deals: 842, leads: 8000 } });
  await using server = await startServer(db.environment);
  const ask = async (path: string, init?: RequestInit) => {
    const answer = await fetch(`${server.url}${path}`, init);
    const text = await answer.text();
    const isJson = answer.headers.get("content-type")?.includes("json");
    return {
      answer,
      status: answer.status,
      text,
      json: isJson && JSON.parse(text),
    };
  };

  await t.step("POST /load answers with the event", async () => {
    const { status, json, text } = await ask("/load", { method: "POST" });
    assertEquals(status, 200, text);
    assertEquals(json.results.successful_tables, 2);
    assertEquals(json.trigger, "http");
  });
  await t.step("500 at once share at most two runs", async () => {
    const answers = await Promise.all(
      Array.from({ length: 500 }, () => ask("/load", { method: "POST" })),
    );
    assertEquals(new Set(answers.map((a) => a.status)), new Set([200]));
    const runs = new Set(answers.map((a) => a.json.run_id));
    assert(runs.size <= 2, `${runs.size} runs`);
  });
  await t.step("POST /load-async is run and can be followed", async () => {
    const { status, json, answer } = await ask("/load-async", {
      method: "POST",
      body: '{"tables":["closed_deal"],"mode":"full"}',
    });
    assertEquals(status, 202);
    assertEquals(answer.headers.get("location"), `/runs/${json.run_id}`);
    const stream = await ask(`/runs/${json.run_id}/stream`);
    assertStringIncludes(stream.text, "event: end");
    const run = await ask(`/runs/${json.run_id}`);
    assertEquals(run.json.status, "succeeded");
    assertEquals(run.json.event.results.total_tables, 1);
  });
  await t.step("reads", async () => {
    for (
      const path of [
        "/",
        "/health",
        "/health/live",
        "/runs",
        "/events",
        "/metrics",
        "/openapi.json",
        "/docs",
      ]
    ) {
      const { status, text } = await ask(path);
      assertEquals(status, 200, `${path}: ${text}`);
    }
    assertEquals((await ask("/openapi.json")).json.openapi, "3.1.0");
    assertStringIncludes(
      (await ask("/metrics")).text,
      "marketing_data_runs_total",
    );
    assertEquals(
      (await runProgram(["events", "--limit", "1"], db.environment)).code,
      0,
    );
    assertEquals((await runProgram(["runs"], db.environment)).code, 0);
  });
  await t.step("bad input gets problem documents", async () => {
    const cases: [string, RequestInit, number, string][] = [
      ["/load", { method: "POST", body: "{" }, 400, "not JSON"],
      ["/load", { method: "POST", body: '{"tabels":[]}' }, 400, "tabels"],
      ["/load", { method: "POST", body: '{"tables":["x"]}' }, 400, "tables.0"],
      ["/load", { method: "POST", body: "x".repeat(70_000) }, 413, "65536"],
      ["/load", {}, 405, "GET"],
      ["/nothing", {}, 404, "/nothing"],
      ["/runs?limit=0", {}, 400, "limit"],
      ["/runs?limt=5", {}, 400, "limt"],
      ["/runs/x", {}, 400, "id"],
      [`/runs/${crypto.randomUUID()}`, {}, 404, "no run"],
    ];
    for (const [path, init, status, word] of cases) {
      const got = await ask(path, init);
      assertEquals(got.status, status, `${path}: ${got.text}`);
      assertEquals(
        got.answer.headers.get("content-type"),
        "application/problem+json",
      );
      assertStringIncludes(got.json.detail, word);
    }
  });
  await t.step("SIGTERM ends it with 143", async () => {
    server.kill("SIGTERM");
    assertEquals((await server.finished).code, 143);
  });
});

Deno.test("an open door is refused, and a token is asked for", async () => {
  await using db = await createDatabases({ rows: { deals: 1, leads: 1 } });
  const open = await runProgram(["serve"], {
    ...db.environment,
    HOST: "0.0.0.0",
  });
  assertEquals(open.code, 78);
  assertStringIncludes(open.stderr, "API_TOKEN");
  await using server = await startServer({
    ...db.environment,
    API_TOKEN: "token-1",
  });
  for (
    const [token, status] of [["", 401], ["token-2", 401], [
      "token-1",
      200,
    ]] as const
  ) {
    const answer = await fetch(`${server.url}/runs`, {
      headers: { authorization: `Bearer ${token}` },
    });
    await answer.body?.cancel();
    assertEquals(answer.status, status, token);
  }
});
