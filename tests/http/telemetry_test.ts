/**
 * The export to OpenTelemetry, with a collector of the test. Deno exports by
 * itself, so the test shows what a collector gets.
 */
import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { startAlertEndpoint } from "../support/alert_endpoint.ts";
import { migratedDatabases } from "../support/databases.ts";
import { BINARY, startProgram } from "../support/program.ts";
import { startServer, until } from "../support/server.ts";
import {
  startEndpoint,
  webhookVariables,
} from "../support/webhook_endpoint.ts";

// deno-lint-ignore no-explicit-any -- OTLP of any shape
type Otlp = any;

/** Starts a collector of OTLP over HTTP in JSON. */
function startCollector() {
  const bodies: string[] = [];
  const server = Deno.serve(
    { hostname: "127.0.0.1", port: 0, onListen() {} },
    async (request) => {
      bodies.push(await request.text());
      return Response.json({});
    },
  );
  /** Returns everything that was received of one kind. */
  const all = (resource: string, scope: string, items: string): Otlp[] =>
    bodies.map((body) => JSON.parse(body)).flatMap((body) =>
      body[resource] ?? []
    ).flatMap((of: Otlp) => of[scope]).flatMap((of: Otlp) => of[items]);
  return {
    bodies,
    spans: () => all("resourceSpans", "scopeSpans", "spans"),
    logs: () => all("resourceLogs", "scopeLogs", "logRecords"),
    metrics: () => all("resourceMetrics", "scopeMetrics", "metrics"),
    variables: {
      OTEL_DENO: "true",
      OTEL_DENO_CONSOLE: "replace",
      OTEL_TRACES_SAMPLER: "parentbased_always_on",
      OTEL_EXPORTER_OTLP_ENDPOINT: `http://127.0.0.1:${server.addr.port}`,
      OTEL_EXPORTER_OTLP_PROTOCOL: "http/json",
    },
    [Symbol.asyncDispose]: () => server.shutdown(),
  };
}

// A compiled program has the setting of its compilation.
Deno.test({
  name:
    "a collector gets the spans, the logs and the HTTP metrics of a run, joined by its trace, and no secret URL",
  ignore: BINARY !== undefined,
  async fn(t) {
    await using db = await migratedDatabases({ rows: { deals: 3, leads: 3 } });
    await using collector = startCollector();
    await using endpoint = startEndpoint();
    await using alerts = startAlertEndpoint();
    const environment = {
      ...db.environment,
      ...webhookVariables(endpoint.url),
      ALERT_SLACK_URL: alerts.slackUrl,
      ALERT_TEAMS_URL: alerts.teamsUrl,
      RETRY_ATTEMPTS: "1",
    };
    const traceId = "0af7651916cd43dd8448eb211c80319c";

    await t.step("serve refuses a sampler that records the URLs", async () => {
      const { OTEL_TRACES_SAMPLER: _, ...variables } = collector.variables;
      const { finished } = startProgram(["load"], {
        ...environment,
        ...variables,
      });
      const { code, stderr } = await finished;
      assertEquals(code, 78, stderr);
      assertStringIncludes(stderr, "OTEL_TRACES_SAMPLER=parentbased_always_on");
    });

    await db.source.unsafe(
      "alter table marketing.closed_deals rename column won_date to won_on",
    );
    await using server = await startServer(
      { environment },
      { ...collector.variables, LOG_LEVEL: "DEBUG" },
    );
    const { body: event } = await server.json("/load", {
      method: "POST",
      headers: { traceparent: `00-${traceId}-b7ad6b7169203331-01` },
    });
    assertEquals(event.status, "failure");
    const spanId = event.traceparent.split("-")[2];
    assertEquals(event.traceparent, `00-${traceId}-${spanId}-01`);
    await until("everything is delivered", () =>
      Promise.resolve(
        [endpoint.posts, alerts.slack, alerts.teams].every((received) =>
          received.length === 1
        ),
      ));
    assertEquals(endpoint.posts[0]!.cloudEvent.traceparent, event.traceparent);
    const { body: next } = await server.json("/load", { method: "POST" });
    server.kill("SIGTERM");
    const { stdout, stderr } = await server.finished;

    await t.step("spans", () => {
      const spans = collector.spans().filter((span) =>
        span.traceId === traceId
      );
      const run = spans.find(({ name }) => name === "run");
      assertEquals(run.spanId, spanId);
      assertEquals(run.parentSpanId, "b7ad6b7169203331");
      const names = spans.map(({ name }) => name);
      assert(names.includes("table marketing_qualified_lead"), `${names}`);
      assert(names.some((name) => name.startsWith("phase ")), `${names}`);
    });
    await t.step("another request has another trace", () => {
      assert(next.traceparent && !next.traceparent.includes(traceId));
    });
    await t.step("HTTP metrics", () => {
      const names = collector.metrics().map(({ name }) => name);
      assert(names.includes("http.server.request.duration"), `${names}`);
    });
    await t.step("logs, which are the lines of standard error", () => {
      const logs = collector.logs();
      const exported = logs.map(({ body }) => body.stringValue.trimEnd());
      assertEquals(exported, stderr.trimEnd().split("\n"));
      assertEquals(stdout, "");
      for (const { body, severityText, traceId: id } of logs) {
        const { level, run_id } = JSON.parse(body.stringValue);
        assertEquals(severityText, level === "WARNING" ? "WARN" : level);
        if (run_id === event.run_id) assertEquals(id, traceId, `${body}`);
      }
      const lines = exported.join("\n");
      assertStringIncludes(lines, `Run ${event.run_id} begins`);
      assertStringIncludes(lines, `Run ${event.run_id} failed`);
    });
    await t.step("no secret URL", () => {
      const text = collector.bodies.join("\n");
      for (const secret of ["/hook", "/services/", "/workflows/"]) {
        assert(!text.includes(secret), secret);
      }
    });
  },
});

Deno.test({
  name: "a log that Deno would print twice is not exported, with a warning",
  ignore: BINARY !== undefined,
  async fn() {
    await using db = await migratedDatabases({ rows: { deals: 3, leads: 3 } });
    await using collector = startCollector();
    const { OTEL_DENO_CONSOLE: _, ...variables } = collector.variables;
    const { finished } = startProgram(["load", "--json"], {
      ...db.environment,
      ...variables,
    });
    const { code, stdout, stderr } = await finished;
    assertEquals(code, 0, stderr);
    assertEquals(JSON.parse(stdout).status, "success");
    assertStringIncludes(stderr, "Set OTEL_DENO_CONSOLE=replace");
    assertEquals(collector.logs(), []);
  },
});
