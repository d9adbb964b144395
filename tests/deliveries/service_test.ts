import { assert, assertEquals, assertMatch } from "@std/assert";
import { type Databases, migratedDatabases } from "../support/databases.ts";
import { runProgram } from "../support/program_here.ts";
import { findFreePort, startServer, until } from "../support/server.ts";
import {
  type Endpoint,
  idsOf,
  startEndpoint,
  taken,
  webhookVariables,
} from "../support/webhook_endpoint.ts";

const ROWS = { rows: { deals: 3, leads: 3 } };

/** Returns the ids of all events in order. */
async function storedIds(db: Databases): Promise<string[]> {
  const rows = await db.warehouse.unsafe(
    "select event_id::text as id from marketing_data_service.event order by seq",
  );
  return rows.map((row) => row.id);
}

async function untilTaken(endpoint: Endpoint, count: number): Promise<void> {
  await until(
    `${count} events are posted`,
    () => Promise.resolve(new Set(idsOf(endpoint)).size >= count),
  );
}

Deno.test("the service delivers all events when the endpoint is back, also those of other processes and after a restart", async () => {
  await using db = await migratedDatabases(ROWS);
  const port = findFreePort();
  const variables = webhookVariables(`http://127.0.0.1:${port}/hook`);
  {
    await using server = await startServer(db, variables);
    for (let i = 0; i < 2; i++) {
      const { status } = await server.json("/load", { method: "POST" });
      assertEquals(status, 200);
    }
    await until("an attempt failed", async () => {
      const { body } = await server.json("/events");
      const [delivery] = body.events[0].deliveries;
      return delivery.status === "pending" && delivery.attempts > 1 &&
        /refused/.test(delivery.last_error);
    });
    const metrics = await (await server.fetch("/metrics")).text();
    assertMatch(
      metrics,
      /marketing_data_deliveries_total\{publisher="webhook",outcome="failed"\} [1-9]/,
    );
    assertMatch(
      metrics,
      /marketing_data_undelivered_events\{publisher="webhook"\} 2/,
    );
    server.kill("SIGKILL");
  }
  // A process without a webhook.
  assertEquals((await runProgram(["load"], db.environment)).code, 0);
  await using server = await startServer(db, variables);
  await using endpoint = startEndpoint(taken, port);
  await untilTaken(endpoint, 3);
  assertEquals(idsOf(endpoint), await storedIds(db));
  await until("they are marked", async () => {
    const { body } = await server.json("/events");
    return body.events.every((event: { deliveries: [{ status: string }] }) =>
      event.deliveries[0].status === "delivered"
    );
  });
  const metrics = await (await server.fetch("/metrics")).text();
  assertMatch(
    metrics,
    /marketing_data_undelivered_events\{publisher="webhook"\} 0/,
  );
  assertEquals(endpoint.forged, []);
});

Deno.test("processes that deliver in parallel keep the order and send each event once", async () => {
  await using db = await migratedDatabases(ROWS);
  let atOnce = 0;
  let most = 0;
  await using endpoint = startEndpoint(async () => {
    most = Math.max(most, ++atOnce);
    // Allows the others to interfere.
    for (let i = 0; i < 5; i++) await new Promise((done) => setTimeout(done));
    atOnce--;
    return taken(endpoint.posts[0]!);
  });
  const variables = webhookVariables(endpoint.url);
  await using first = await startServer(db, variables);
  await using second = await startServer(db, variables);
  for (let round = 0; round < 4; round++) {
    const answers = await Promise.all([
      first.json("/load", { method: "POST" }),
      second.json("/load", { method: "POST" }),
      runProgram(["load"], { ...db.environment, ...variables }),
    ]);
    assertEquals(answers[2].code, 0, answers[2].stderr);
  }
  const stored = await storedIds(db);
  assert(stored.length >= 4);
  await untilTaken(endpoint, stored.length);
  assertEquals(idsOf(endpoint), stored);
  assertEquals(most, 1);
});

Deno.test("a service stopped during a silent delivery ends in time, and the event is sent again", async () => {
  await using db = await migratedDatabases(ROWS);
  const release = Promise.withResolvers<void>();
  await using endpoint = startEndpoint(async (post) => {
    await release.promise;
    return taken(post);
  });
  const variables = webhookVariables(endpoint.url);
  await using server = await startServer(db, variables);
  assertEquals((await server.json("/load", { method: "POST" })).status, 200);
  await untilTaken(endpoint, 1);
  server.kill("SIGTERM");
  assertEquals((await server.finished).code, 143);
  release.resolve();
  endpoint.answer = taken;
  await using next = await startServer(db, variables);
  await until("it is delivered", async () => {
    const { body } = await next.json("/events");
    return body.events[0].deliveries[0].status === "delivered";
  });
  assertEquals([...new Set(idsOf(endpoint))], await storedIds(db));
});

Deno.test("an unwritable event file is reported in the log and in the events, and gets every event later", async () => {
  await using db = await migratedDatabases(ROWS);
  const folder = await Deno.makeTempDir();
  try {
    const file = `${folder}/events.jsonl`;
    const environment = { EVENT_PUBLISHER_TYPE: "file", EVENT_FILE: file };
    await using server = await startServer(db, environment);
    // Not even root can open a folder for writing.
    await Deno.remove(file).catch(() => {});
    await Deno.mkdir(file);
    assertEquals((await server.json("/load", { method: "POST" })).status, 200);
    await until("it failed", async () => {
      const { body } = await server.json("/events");
      const [delivery] = body.events[0].deliveries;
      return delivery.publisher === "file" && delivery.status === "pending" &&
        delivery.attempts > 0 &&
        delivery.last_error.includes("Cannot write to the event file");
    });
    await Deno.remove(file);
    // The end of a run retries the file at once.
    assertEquals((await server.json("/load", { method: "POST" })).status, 200);
    const stored = await storedIds(db);
    await until("both are in the file", async () => {
      const text = await Deno.readTextFile(file).catch(() => "");
      return text.split("\n").length === stored.length + 1;
    });
    const lines = (await Deno.readTextFile(file)).trim().split("\n");
    assertEquals(lines.map((line) => JSON.parse(line).event_id), stored);
    server.kill("SIGTERM");
    assertMatch(
      (await server.finished).stderr,
      /Cannot deliver event \S+ to the event file/,
    );
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

Deno.test("processes that share an event file write whole lines, in order, once each", async () => {
  await using db = await migratedDatabases(ROWS);
  const folder = await Deno.makeTempDir();
  try {
    const file = `${folder}/events.jsonl`;
    const environment = { EVENT_PUBLISHER_TYPE: "file", EVENT_FILE: file };
    await using first = await startServer(db, environment);
    await using second = await startServer(db, environment);
    for (let round = 0; round < 4; round++) {
      await Promise.all([
        first.json("/load", { method: "POST" }),
        second.json("/load", { method: "POST" }),
        runProgram(["load"], { ...db.environment, ...environment }),
      ]);
    }
    const stored = await storedIds(db);
    const lines = async () => (await Deno.readTextFile(file)).split("\n");
    await until(
      "all are in the file",
      async () => (await lines()).length > stored.length,
    );
    assertEquals(
      (await lines()).slice(0, -1).map((line) => JSON.parse(line).event_id),
      stored,
    );
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});
