import { assertEquals, assertStringIncludes } from "@std/assert";
import { createDatabases } from "../support/databases.ts";
import { runJson, runProgram } from "../support/program.ts";
import { findFreePort, startServer, until } from "../support/server.ts";

Deno.test("health --service asks the service instead of the databases", async () => {
  await using db = await createDatabases();
  await using server = await startServer(db);
  const { port } = new URL(server.url);
  // This process cannot reach the databases, so the result comes from the service.
  const blind = { OLIST_DB_PORT: "1", DWH_DB_PORT: "1", PORT: port };
  const well = await runJson(["health", "--service"], blind);
  assertEquals([well.code, well.json.status], [0, "healthy"], well.stderr);
  const wide = await runProgram(["health", "--service"], {
    ...blind,
    HOST: "0.0.0.0",
  });
  assertEquals(wide.code, 0, wide.stderr);
});

Deno.test("a health check neither waits for other statements nor ends them", async () => {
  await using db = await createDatabases();
  await using server = await startServer(db);
  await using other = db.connect("warehouse");
  await other.unsafe(
    "begin; lock table marketing_data_service.run in access exclusive mode",
  );
  const answers = Array.from({ length: 5 }, () => server.json("/runs"));
  await until("the requests wait", async () => {
    const waiting = await other.unsafe(
      "select from pg_locks where not granted and relation = 'marketing_data_service.run'::regclass",
    );
    return waiting.length >= 3;
  });
  const health = await server.json("/health");
  await other.unsafe("rollback");
  const statuses = (await Promise.all(answers)).map(({ status }) => status);
  assertEquals([health.status, ...statuses], [200, 200, 200, 200, 200, 200]);
});

Deno.test("health --service exits with 69 for an unhealthy service, a missing one and another program", async () => {
  await using db = await createDatabases();
  {
    await using server = await startServer(db, {
      OLIST_DB_PORT: String(findFreePort()),
    });
    const { port } = new URL(server.url);
    const ill = await runJson(["health", "--service"], { PORT: port });
    assertEquals([ill.code, ill.json.status], [69, "unhealthy"]);
    const live = await runJson(["health", "--live"], { PORT: port });
    assertEquals([live.code, live.json.status], [0, "live"], live.stderr);
  }
  for (const flag of ["--service", "--live"]) {
    const none = await runProgram(["health", flag], {
      PORT: String(findFreePort()),
    });
    assertEquals(none.code, 69);
    assertStringIncludes(
      none.stderr,
      "Cannot reach the service on http://127.0.0.1:",
    );
  }
  const endless = () =>
    new ReadableStream({
      pull: (controller) => controller.enqueue(new Uint8Array(2 ** 20)),
    });
  for (
    const body of [
      ...['{"status":"UP"}', '{"status":404}', "null", "<html>"],
      endless,
    ]
  ) {
    await using other = Deno.serve(
      { hostname: "127.0.0.1", port: 0, onListen() {} },
      () => new Response(typeof body === "string" ? body : body()),
    );
    const { code, stderr } = await runProgram(["health", "--service"], {
      PORT: String(other.addr.port),
    });
    assertEquals(code, 69, stderr);
    assertStringIncludes(stderr, "/health: another program answered.");
  }
});
