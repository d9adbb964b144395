import {
  assert,
  assertEquals,
  assertMatch,
  assertStringIncludes,
} from "@std/assert";
import { startAlertEndpoint } from "../support/alert_endpoint.ts";
import { type Databases, migratedDatabases } from "../support/databases.ts";
import { startProgram } from "../support/program.ts";
import { runJson, runProgram } from "../support/program_here.ts";
import { until } from "../support/server.ts";

const ROWS = { rows: { deals: 3, leads: 3 } };

const renameColumn = (db: Databases, from: string, to: string) =>
  db.source.unsafe(
    `alter table marketing.closed_deals rename column ${from} to ${to}`,
  );

Deno.test("Slack and Teams get each failure, and once the first load of a table after it", async () => {
  await using db = await migratedDatabases(ROWS);
  await using endpoint = startAlertEndpoint();
  const environment = {
    ...db.environment,
    ALERT_SLACK_URL: endpoint.slackUrl,
    ALERT_TEAMS_URL: endpoint.teamsUrl,
    PUBLIC_URL: "https://loads.example",
    RETRY_ATTEMPTS: "1",
  };
  const load = async (exit: number, ...words: readonly string[]) => {
    const { code, json, stderr } = await runJson(
      ["load", ...words],
      environment,
    );
    assertEquals(code, exit, stderr);
    return json;
  };
  const titles = () => endpoint.slack.map(({ title }) => title);
  await load(0);
  assertEquals(titles(), []);

  await renameColumn(db, "won_date", "won_on");
  const failure = await load(1);
  const [first] = endpoint.slack;
  assertEquals(first, endpoint.teams[0] && { ...endpoint.teams[0] });
  assertStringIncludes(
    first!.text,
    'Cause: Cannot load closed_deal: column "won_date" is missing in marketing.closed_deals',
  );
  assertStringIncludes(first!.text, `\nRemedy: ${failure.remedy}\n`);
  assertStringIncludes(first!.text, "\nLoaded: marketing_qualified_lead\n");
  assertMatch(first!.text, /\nRun: [\da-f]{8} by cli, [\d.]+ m?s, warehouse /);
  assertEquals(first!.link, `https://loads.example/runs/${failure.run_id}`);

  await load(1);
  await load(0, "--table", "marketing_qualified_lead");
  assertEquals(titles(), Array(2).fill("Load failed: closed_deal"));

  await renameColumn(db, "won_on", "won_date");
  // Two processes at once share the cursor.
  await Promise.all([load(0), load(0, "--mode", "full")]);
  await load(0);
  const all = [
    "Load failed: closed_deal",
    "Load failed: closed_deal",
    "Loaded again: closed_deal",
  ];
  assertEquals(titles(), all);
  assertEquals(endpoint.teams.map(({ title }) => title), all);
  assertEquals(endpoint.refused, []);

  const { stdout } = await runProgram(["events", "--json"], environment);
  const deliveries = stdout.trim().split("\n").map((line) =>
    JSON.parse(line).deliveries.map(
      (d: { publisher: string; status: string }) =>
        `${d.publisher} ${d.status}`,
    )
  );
  const both = ["slack delivered", "teams delivered"];
  assertEquals(deliveries.filter(({ length }) => length > 0), [
    both,
    both,
    both,
  ]);

  // An outdated event is not sent.
  await renameColumn(db, "won_date", "won_on");
  await runProgram(["load"], { ...environment, ALERT_SLACK_URL: "" });
  await db.warehouse.unsafe(
    `update marketing_data_service.event set payload = (payload::jsonb || '{"timestamp": "2020-01-01T00:00:00.000000"}')::json`,
  );
  await renameColumn(db, "won_on", "won_date");
  await load(0);
  assertEquals(titles(), all);
});

Deno.test("no answer of Slack or Teams changes a load, and the alert is sent again", async (t) => {
  await using db = await migratedDatabases(ROWS);
  await using endpoint = startAlertEndpoint();
  const environment = {
    ...db.environment,
    ALERT_SLACK_URL: endpoint.slackUrl,
    ALERT_TEAMS_URL: endpoint.teamsUrl,
    RETRY_ATTEMPTS: "1",
  };
  await renameColumn(db, "won_date", "won_on");
  const state = async () =>
    await db.warehouse.unsafe(
      `select name, last_error, stopped_at is not null as stopped,
         extract(epoch from next_attempt_at - clock_timestamp())::float8 as seconds
       from marketing_data_service.publisher order by name`,
    );
  const release = Promise.withResolvers<void>();
  const answers: Record<string, [() => Promise<Response>, RegExp]> = {
    "429 with Retry-After": [
      () =>
        Promise.resolve(
          new Response(null, {
            status: 429,
            headers: { "retry-after": "1800" },
          }),
        ),
      /^it answered 429$/,
    ],
    "404 Not Found": [
      () => Promise.resolve(new Response("no_service", { status: 404 })),
      /^it answered 404$/,
    ],
    "a redirect": [
      () => Promise.resolve(Response.redirect("http://127.0.0.1:1/", 302)),
      /^it answered 302, and redirects are not followed$/,
    ],
    "no answer": [
      async () => {
        await release.promise;
        return new Response();
      },
      /^no answer within 15 s$/,
    ],
    "410 Gone": [
      () => Promise.resolve(new Response("archived", { status: 410 })),
      /^it answered 410 Gone$/,
    ],
  };
  let seen = 0;
  for (const [name, [answer, error]] of Object.entries(answers)) {
    await t.step(name, async () => {
      endpoint.answer = answer;
      await db.warehouse.unsafe(
        `do $$ begin if to_regclass('marketing_data_service.publisher') is not null then
           update marketing_data_service.publisher set next_attempt_at = null; end if; end $$`,
      );
      const { finished } = startProgram(["load"], environment);
      await until("both were asked", () =>
        Promise.resolve(
          endpoint.slack.length > seen && endpoint.teams.length > seen,
        ));
      // The run has ended and holds no lock, so another load runs to its end.
      assertEquals((await runProgram(["load"], db.environment)).code, 1);
      const { code, stderr } = await finished;
      assertEquals(code, 1, stderr);
      assertEquals(endpoint.slack.length, ++seen, "no second attempt");
      for (const row of await state()) {
        assertMatch(row.last_error, error);
        assertEquals(row.stopped, name === "410 Gone");
        assert(name !== "429 with Retry-After" || row.seconds > 1700);
      }
      assert(!stderr.includes("/services/"), stderr);
      assert(!stderr.includes("/workflows/"), stderr);
    });
  }
  release.resolve();
  endpoint.answer = undefined;
  const resumed = await runJson(["events", "--resume"], environment);
  assertEquals(resumed.json.resumed.toSorted(), ["slack", "teams"]);
  await runProgram(["load"], environment);
  // Ten loads before, five of them without alerts, and this one.
  assertEquals(endpoint.slack.length, seen + 11);
  assertEquals(endpoint.teams.length, seen + 11);
  assertEquals(endpoint.refused, []);
});
