import {
  assert,
  assertEquals,
  assertMatch,
  assertStringIncludes,
} from "@std/assert";
import { type Databases, migratedDatabases } from "../support/databases.ts";
import { startProgram } from "../support/program.ts";
import { runJson, runProgram } from "../support/program_here.ts";
import { findFreePort, until } from "../support/server.ts";
import {
  idsOf,
  type Post,
  startEndpoint,
  taken,
  webhookVariables,
} from "../support/webhook_endpoint.ts";

const ROWS = { rows: { deals: 3, leads: 3 } };

/** Returns events as `events --json` prints them. */
async function storedEvents(
  environment: Readonly<Record<string, string>>,
  // deno-lint-ignore no-explicit-any -- the tests assert on what they use
): Promise<any[]> {
  const { code, stdout, stderr } = await runProgram(
    ["events", "--json"],
    environment,
  );
  assertEquals(code, 0, stderr);
  return stdout.trim().split("\n").map((line) => JSON.parse(line));
}

async function load(environment: Readonly<Record<string, string>>) {
  const finished = await runJson(["load"], environment);
  assertEquals(finished.code, 0, finished.stderr);
  return finished;
}

/** Makes the next attempt due. */
async function makeDue(db: Databases): Promise<void> {
  await db.warehouse.unsafe(
    "update marketing_data_service.publisher set next_attempt_at = null",
  );
}

Deno.test("a new webhook gets only new events, once each, as signed CloudEvents with the stored event", async () => {
  await using db = await migratedDatabases(ROWS);
  await using endpoint = startEndpoint();
  const { json: before } = await load(db.environment);
  const environment = {
    ...db.environment,
    ...webhookVariables(endpoint.url),
    PUBLIC_URL: "https://loads.example/prefix/",
  };
  const { json: event } = await load(environment);
  await load(environment);
  const [post, later] = endpoint.posts as [Post, Post];
  assertEquals(endpoint.forged, []);
  assertEquals(endpoint.posts.length, 2);
  assertEquals(post.cloudEvent, {
    specversion: "1.0",
    id: event.event_id,
    source: "/marketing-data-service",
    type: "marketing-data-loaded",
    subject: event.run_id,
    time: `${event.timestamp}Z`,
    datacontenttype: "application/json",
    dataschema: "https://loads.example/prefix/schemas/event.v1.json",
    sequence: post.cloudEvent.sequence,
    data: event,
  });
  assertMatch(post.cloudEvent.sequence, /^\d{19}$/);
  assert(post.cloudEvent.sequence < later.cloudEvent.sequence);
  assertEquals(
    event.run_url,
    `https://loads.example/prefix/runs/${event.run_id}`,
  );
  assert(event.started_at < event.timestamp);
  assertEquals(Object.keys(post.cloudEvent.data), Object.keys(event));
  assertMatch(post.cloudEvent.time, /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$/);
  assertEquals(
    post.headers.get("content-type"),
    "application/cloudevents+json; charset=utf-8",
  );
  assertMatch(post.headers.get("user-agent")!, /^marketing-data-service\//);

  const [first, second] = await storedEvents(environment);
  assertEquals(first.event.event_id, before.event_id);
  assertEquals(first.deliveries, []);
  assertEquals(second.deliveries[0].publisher, "webhook");
  assertEquals(second.deliveries[0].status, "delivered");
  assertEquals(second.deliveries[0].attempts, 1);
  assert(second.deliveries[0].delivered_at);
});

Deno.test("load succeeds for every answer of the endpoint, and the event is retried with its id before later events", async (t) => {
  await using db = await migratedDatabases(ROWS);
  await using elsewhere = startEndpoint();
  await using endpoint = startEndpoint();
  const environment = {
    ...db.environment,
    ...webhookVariables(endpoint.url),
  };
  await load(environment);
  const faults: Record<string, [(post: Post) => Response, RegExp]> = {
    "a server error": [
      () => new Response("secret of the receiver", { status: 500 }),
      /^it answered 500$/,
    ],
    "a client error": [
      () => new Response(null, { status: 404 }),
      /^it answered 404$/,
    ],
    "a redirect": [
      () =>
        new Response(null, {
          status: 307,
          headers: { location: elsewhere.url },
        }),
      /^it answered 307, and redirects are not followed$/,
    ],
  };
  for (const [name, [answer, error]] of Object.entries(faults)) {
    await t.step(name, async () => {
      await makeDue(db);
      endpoint.answer = answer;
      const { json: event, stderr } = await load(environment);
      assertStringIncludes(
        stderr,
        `webhook at http://127.0.0.1:${endpoint.port}`,
      );
      assert(!stderr.includes("/hook"), stderr);
      const [delivery] = (await storedEvents(environment)).at(-1).deliveries;
      assertEquals(delivery.status, "pending");
      assertEquals(delivery.attempts, 1);
      assertMatch(delivery.last_error, error);
      assert(delivery.next_attempt_at);
      assertEquals(idsOf(endpoint).at(-1), event.event_id);

      await makeDue(db);
      endpoint.answer = taken;
      const seen = endpoint.posts.length;
      const { json: later } = await load(environment);
      assertEquals(idsOf(endpoint).slice(seen), [
        event.event_id,
        later.event_id,
      ]);
      assertEquals(
        (await storedEvents(environment)).at(-2).deliveries[0].attempts,
        2,
      );
    });
  }
  assertEquals(elsewhere.posts.length, 0);
  assertEquals(endpoint.forged, []);
});

Deno.test("an endpoint that refuses or closes connections does not delay a load", async () => {
  await using db = await migratedDatabases(ROWS);
  const port = findFreePort();
  const environment = {
    ...db.environment,
    ...webhookVariables(`http://127.0.0.1:${port}/hook`),
  };
  const { json: refused } = await load(environment);
  const [first] = await storedEvents(environment);
  assertStringIncludes(first.deliveries[0].last_error, "refused");
  assert(!first.deliveries[0].last_error.includes("/hook"));
  {
    using listener = Deno.listen({ hostname: "127.0.0.1", port });
    const closing = (async () => {
      for await (const connection of listener) connection.close();
    })();
    await makeDue(db);
    await load(environment);
    listener.close();
    await closing;
  }
  const [again] = await storedEvents(environment);
  assertEquals(again.deliveries[0].attempts, 2);
  await using endpoint = startEndpoint(taken, port);
  await makeDue(db);
  await load(environment);
  assertEquals(idsOf(endpoint).length, 3);
  assertEquals(idsOf(endpoint)[0], refused.event_id);
});

Deno.test("a silent endpoint does not delay the commit, the result or the next load", async () => {
  await using db = await migratedDatabases(ROWS);
  const release = Promise.withResolvers<void>();
  await using endpoint = startEndpoint(async () => {
    await release.promise;
    return taken({} as Post);
  });
  const environment = {
    ...db.environment,
    ...webhookVariables(endpoint.url),
  };
  const slow = startProgram(["load", "--json"], environment);
  await until("it is posted", () => Promise.resolve(endpoint.posts.length > 0));
  // No lock is held, so this load runs from start to end.
  await load(db.environment);
  const finished = await slow.finished;
  release.resolve();
  assertEquals(finished.code, 0, finished.stderr);
  assertEquals(
    JSON.parse(finished.stdout).event_id,
    endpoint.posts[0]!.id,
  );
  const [event] = await storedEvents(environment);
  assertEquals(event.deliveries[0].status, "pending");
  assertEquals(event.deliveries[0].last_error, "no answer within 15 s");
});

Deno.test("an answer without an end counts by its status code", async () => {
  await using db = await migratedDatabases(ROWS);
  await using endpoint = startEndpoint(() =>
    new Response(
      new ReadableStream({
        start(controller) {
          controller.enqueue(new Uint8Array(10));
        },
      }),
    )
  );
  const environment = {
    ...db.environment,
    ...webhookVariables(endpoint.url),
  };
  await load(environment);
  const [event] = await storedEvents(environment);
  assertEquals(event.deliveries[0].status, "delivered");
});

Deno.test("the delivery respects Retry-After in seconds and as a date", async () => {
  await using db = await migratedDatabases(ROWS);
  await using endpoint = startEndpoint();
  const environment = {
    ...db.environment,
    ...webhookVariables(endpoint.url),
  };
  const inAnHour = new Date(Date.now() + 3_600_000).toUTCString();
  await load(environment);
  for (const [status, header] of [[429, "3600"], [503, inAnHour]] as const) {
    await makeDue(db);
    endpoint.answer = () =>
      new Response(null, { status, headers: { "retry-after": header } });
    await load(environment);
    const posts = endpoint.posts.length;
    const [row] = await db.warehouse.unsafe(
      "select extract(epoch from next_attempt_at - clock_timestamp())::float8 as seconds from marketing_data_service.publisher",
    );
    assert(row!.seconds > 3500 && row!.seconds <= 3600, `${row!.seconds}`);
    await load(environment);
    assertEquals(endpoint.posts.length, posts, "it was left alone");
  }
});

Deno.test("410 stops the deliveries until the URL changes or they are resumed, and no event is lost", async () => {
  await using db = await migratedDatabases(ROWS);
  await using endpoint = startEndpoint(() =>
    new Response(null, { status: 410 })
  );
  const environment = {
    ...db.environment,
    ...webhookVariables(endpoint.url),
  };
  const { stderr } = await load(environment);
  assertStringIncludes(stderr, "410 Gone");
  assertStringIncludes(stderr, "events --resume");
  endpoint.answer = taken;
  const second = await load(environment);
  assertStringIncludes(second.stderr, "events --resume");
  assertEquals(endpoint.posts.length, 1);
  assertEquals(
    (await storedEvents(environment)).map((e) => e.deliveries[0].status),
    ["stopped", "stopped"],
  );

  await load({ ...environment, EVENT_WEBHOOK_URL: `${endpoint.url}/new` });
  const stored = await storedEvents(environment);
  const ids = stored.map((e) => e.event.event_id);
  assertEquals(idsOf(endpoint).slice(1), ids);

  endpoint.answer = () => new Response(null, { status: 410 });
  await load(environment);
  endpoint.answer = taken;
  const resumed = await runProgram(["events", "--resume"], environment);
  assertEquals(resumed.stdout, "resumed webhook\n");
  const again = await runProgram(["events", "--resume"], environment);
  assertEquals(again.stdout, "no delivery was ended with 410\n");
  await load(environment);
  assertEquals(
    new Set(
      (await storedEvents(environment)).map((e) => e.deliveries[0].status),
    ),
    new Set(["delivered"]),
  );
});

Deno.test("the endpoint gets the same event again after kill -9 between sending and marking", async () => {
  await using db = await migratedDatabases(ROWS);
  await using endpoint = startEndpoint();
  const environment = {
    ...db.environment,
    ...webhookVariables(endpoint.url),
  };
  await load(environment);
  const program = startProgram(["load"], environment);
  endpoint.answer = () => {
    program.process.kill("SIGKILL");
    return taken({} as Post);
  };
  const { code } = await program.finished;
  assertEquals(code, 137);
  endpoint.answer = taken;
  await load(environment);
  const stored = (await storedEvents(environment)).map((e) => e.event.event_id);
  assertEquals(idsOf(endpoint), [stored[0], stored[1], stored[1], stored[2]]);
  assertEquals(endpoint.forged, []);
});

Deno.test("file and webhook each get every event when the other fails", async () => {
  await using db = await migratedDatabases(ROWS);
  await using endpoint = startEndpoint(() =>
    new Response(null, { status: 500 })
  );
  const folder = await Deno.makeTempDir();
  try {
    const file = `${folder}/events.jsonl`;
    const environment = {
      ...db.environment,
      ...webhookVariables(endpoint.url),
      EVENT_PUBLISHER_TYPE: "file",
      EVENT_FILE: file,
    };
    const { json: first } = await load(environment);
    const lines = async () =>
      (await Deno.readTextFile(file)).trim().split("\n").map((line) =>
        JSON.parse(line).event_id
      );
    assertEquals(await lines(), [first.event_id]);
    endpoint.answer = taken;
    await makeDue(db);
    const { json: second } = await load(environment);
    assertEquals(await lines(), [first.event_id, second.event_id]);
    assertEquals(idsOf(endpoint).slice(-2), [first.event_id, second.event_id]);
    const stored = await storedEvents(environment);
    assertEquals(
      stored[0].deliveries.map((
        d: { publisher: string; status: string; attempts: number },
      ) => [d.publisher, d.status, d.attempts]),
      [["file", "delivered", 1], ["webhook", "delivered", 2]],
    );
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

Deno.test("retention keeps undelivered events, and gives up events that failed for three days", async () => {
  await using db = await migratedDatabases(ROWS);
  await using endpoint = startEndpoint(() =>
    new Response(null, { status: 500 })
  );
  const environment = {
    ...db.environment,
    ...webhookVariables(endpoint.url),
    RUN_RETENTION_DAYS: "1",
  };
  const ages = (days: number) =>
    db.warehouse.unsafe(
      `update marketing_data_service.run set finished_at = finished_at - interval '${days} days';
       update marketing_data_service.event set created_at = created_at - interval '${days} days';
       update marketing_data_service.publisher set next_attempt_at = null,
         failing_since = failing_since - interval '${days} days'`,
    );
  const { json: first } = await load(environment);
  const { json: second } = await load(environment);
  await ages(2);
  const { json: third } = await load(environment);
  const stored = async () =>
    (await storedEvents(environment)).map((e) => e.event.event_id);
  assertEquals(await stored(), [
    first.event_id,
    second.event_id,
    third.event_id,
  ]);

  await ages(1.5);
  const early = await load(environment);
  assertEquals((await stored()).length, 4, "too few attempts to give up");
  await db.warehouse.unsafe(
    "update marketing_data_service.publisher set failures = 9, next_attempt_at = null",
  );
  const given = await load(environment);
  assertStringIncludes(given.stderr, "Gave up 2 events");
  // Both are settled now, and older than the retention.
  const left = [third, early.json, given.json].map((event) => event.event_id);
  assertEquals(await stored(), left);
  await makeDue(db);
  endpoint.answer = taken;
  const seen = endpoint.posts.length;
  const { json: last } = await load(environment);
  assertEquals(idsOf(endpoint).slice(seen), [
    ...left,
    last.event_id,
  ]);
});
