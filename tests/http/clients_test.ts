import { assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { parseConfig } from "../../src/config/config.ts";
import { Pool } from "../../src/postgres/pool.ts";
import { sharedHealthCheck } from "../../src/service/health.ts";
import { migratedDatabases } from "../support/databases.ts";
import { runJson } from "../support/program_here.ts";
import { type Server, startServer, until } from "../support/server.ts";

const ROWS = { deals: 3, leads: 3 };

async function open(server: Server, text: string): Promise<Deno.TcpConn> {
  const { hostname, port } = new URL(server.url);
  const connection = await Deno.connect({ hostname, port: Number(port) });
  await connection.write(new TextEncoder().encode(text));
  return connection;
}

/** Sends a text and returns the first bytes of the response. */
async function send(server: Server, text: string): Promise<string> {
  using connection = await open(server, text);
  const bytes = new Uint8Array(4096);
  const size = await connection.read(bytes);
  return new TextDecoder().decode(bytes.subarray(0, size ?? 0));
}

Deno.test("a client that closes its connection causes no line in the log", async () => {
  await using db = await migratedDatabases({ rows: ROWS });
  const server = await startServer(db, { LOG_LEVEL: "INFO" });
  const { body } = await server.json("/load-async", { method: "POST" });
  await until("the run has ended", async () => {
    const run = await server.json(`/runs/${body.run_id}`);
    return run.body.status === "succeeded";
  });
  const writer = db.connect("warehouse");
  await writer.unsafe(
    "begin; lock table marketing_data_service.run in access exclusive mode",
  );
  const post = "HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nabc";
  for (
    const text of [
      `POST /load ${post}`,
      `POST /session ${post}`,
      "GET /runs HTTP/1.1\r\nHost: localhost\r\n\r\n",
      `GET /runs/${body.run_id}/stream HTTP/1.1\r\nHost: localhost\r\n\r\n`,
      "GET / HTTP/1.1\r\nHost: localhost\r\nAccept: text/html\r\n\r\n",
      "GET / HTTP/1.1\r\nHost",
    ]
  ) {
    (await open(server, text)).close();
  }
  assertEquals((await server.json("/health/live")).status, 200);
  await writer.unsafe("rollback");
  await writer.end({ timeout: 1 });
  assertEquals((await server.json("/runs")).status, 200);
  server.kill("SIGTERM");
  const { stderr } = await server.finished;
  const lines = stderr.trim().split("\n").map((line) => JSON.parse(line));
  assertEquals(
    lines.filter(({ level }) => level !== "INFO"),
    [],
  );
});

Deno.test("the service refuses HTTP/2, and checks the host of an upgrade request", async () => {
  await using db = await migratedDatabases({ rows: ROWS });
  await using server = await startServer(db);
  const preface = await send(
    server,
    "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
  );
  assertMatch(preface, /^HTTP\/1\.1 400 /);
  const upgrade = (host: string) =>
    send(
      server,
      `GET /runs HTTP/1.1\r\nHost: ${host}\r\nConnection: Upgrade, HTTP2-Settings\r\n` +
        "Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n\r\n",
    );
  const foreign = await upgrade("elsewhere.example");
  assertMatch(foreign, /^HTTP\/1\.1 403 /);
  assertStringIncludes(foreign, "foreign_host");
  assertMatch(await upgrade("localhost"), /^HTTP\/1\.1 200 /);
});

Deno.test("health --service connects directly, without the proxies of the environment", async () => {
  await using db = await migratedDatabases({ rows: ROWS });
  await using server = await startServer(db);
  let requests = 0;
  await using proxy = Deno.serve(
    { hostname: "127.0.0.1", port: 0, onListen() {} },
    () => {
      requests++;
      return new Response(null, { status: 502 });
    },
  );
  const url = `http://127.0.0.1:${proxy.addr.port}`;
  const names = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"];
  const environment = Object.fromEntries(
    [...names, ...names.map((name) => name.toLowerCase())]
      .map((name) => [name, url]),
  );
  const { port } = new URL(server.url);
  const { code, json, stderr } = await runJson(["health", "--service"], {
    ...environment,
    NODE_USE_ENV_PROXY: "1",
    PORT: port,
  });
  assertEquals([code, json.status, requests], [0, "healthy", 0], stderr);
});

Deno.test("sharedHealthCheck() checks each database once for callers at the same time", async () => {
  await using db = await migratedDatabases({ rows: ROWS });
  const config = parseConfig(db.environment, Deno.readTextFileSync);
  await using source = new Pool(config.olist, { ...config, max: 1 });
  await using warehouse = new Pool(config.dwh, { ...config, max: 1 });
  const health = sharedHealthCheck(source, warehouse);
  for (let round = 0; round < 2; round++) {
    const callers = Array.from({ length: 100 }, health);
    assertEquals([source.inFlight, warehouse.inFlight], [1, 1]);
    const results = await Promise.all(callers);
    assertEquals(new Set(results.map(({ status }) => status)).size, 1);
    assertEquals(results[0]!.status, "healthy");
  }
});
