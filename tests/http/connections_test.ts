import { assert, assertEquals } from "@std/assert";
import {
  ACCEPT_BATCH,
  connectionLimit,
  MAX_CONNECTIONS,
} from "../../src/http/server.ts";
import { migratedDatabases } from "../support/databases.ts";
import { testWith } from "../support/debian.ts";
import { withDescriptorLimit } from "../support/program.ts";
import { type Server, startServer, until } from "../support/server.ts";

const ROWS = { deals: 3, leads: 3 };

/** Opens a connection and writes a text on it. */
async function open(server: Server, text = ""): Promise<Deno.TcpConn> {
  const { hostname, port } = new URL(server.url);
  const connection = await Deno.connect({ hostname, port: Number(port) });
  if (text) {
    await connection.write(new TextEncoder().encode(text)).catch(() => {});
  }
  return connection;
}

/** Opens connections, at most `count`, and returns those that opened. */
async function openMany(
  server: Server,
  count: number,
  text = "",
): Promise<Deno.TcpConn[]> {
  const connections: Deno.TcpConn[] = [];
  for (let i = 0; i < count; i++) {
    const connection = await open(server, text).catch(() => undefined);
    if (connection) connections.push(connection);
  }
  return connections;
}

/** Waits until the server closes the connection, and returns what it sent before. */
async function textUntilClosed(connection: Deno.TcpConn): Promise<string> {
  const bytes = new Uint8Array(4096);
  let text = "";
  try {
    while (true) {
      const size = await connection.read(bytes);
      if (size === null) return text;
      text += new TextDecoder().decode(bytes.subarray(0, size));
    }
  } catch {
    return text;
  } finally {
    connection.close();
  }
}

testWith(
  ["prlimit"],
  "listen() keeps serving after the process runs out of file descriptors",
  async () => {
    await using db = await migratedDatabases({ rows: ROWS });
    await using server = await startServer(db);
    await server.json("/load", { method: "POST" });
    const writer = db.connect("warehouse");
    try {
      await writer.unsafe(
        "begin; lock table m_data.closed_deal in row exclusive mode",
      );
      const load = server.json("/load", { method: "POST" });
      await until("the load has begun", async () => {
        const { body } = await server.json("/runs?status=running");
        return body.runs.length === 1;
      });
      const limit = await new Deno.Command("prlimit", {
        args: ["--pid", String(server.pid), "--nofile=100:100"],
      }).output();
      assert(limit.success);
      const connections = await openMany(server, 300);
      for (const connection of connections) {
        void textUntilClosed(connection);
      }
      await until("the service answers again", async () => {
        const answer = await server.json("/health/live", {
          signal: AbortSignal.timeout(1000),
        }).catch(() => undefined);
        return answer?.status === 200;
      }, 60);
      await writer.unsafe("rollback");
      // The load may find no free descriptor, and then its event reports that.
      assert((await load).body.event_type.startsWith("marketing-data-load"));
      await until("a load succeeds again", async () => {
        const { body } = await server.json("/load", { method: "POST" });
        return body.status === "success";
      }, 60);
    } finally {
      await writer.end({ timeout: 1 });
    }
  },
);

Deno.test("a load succeeds while more connections arrive than the process may open files", async () => {
  await using db = await migratedDatabases({ rows: ROWS });
  await using server = await startServer(db, {}, withDescriptorLimit(256));
  await server.json("/load-async", { method: "POST" });
  const clients = Array.from({ length: 700 }, () => open(server));
  let runs;
  await until("the run has ended", async () => {
    runs = await db.warehouse.unsafe(
      "select state, error from marketing_data_service.run where finished_at is not null",
    );
    return runs.length === 1;
  });
  assertEquals([...runs!], [{ state: "succeeded", error: null }]);
  server.kill("SIGKILL");
  for (const client of await Promise.allSettled(clients)) {
    if (client.status === "fulfilled") client.value.close();
  }
});

Deno.test("connectionLimit() keeps file descriptors for loads", () => {
  assertEquals(connectionLimit(230), 62);
  assertEquals(connectionLimit(20_000), MAX_CONNECTIONS);
  assertEquals(connectionLimit(100), 16);
});

Deno.test("listen() closes connections that send no header, half a header or half a body", async () => {
  await using db = await migratedDatabases({ rows: ROWS });
  await using server = await startServer(db);
  const texts = [
    "",
    "GET / HTTP/1.1\r\nHost",
    "POST /session HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nabc",
    "GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n",
  ];
  const answers = await Promise.all(
    texts.map(async (text) => textUntilClosed(await open(server, text))),
  );
  assertEquals(
    answers.map((answer) => answer.slice(9, 12)),
    ["408", "408", "408", "200"],
  );
});

Deno.test("listen() closes a connection with many pipelined requests", async () => {
  await using db = await migratedDatabases({ rows: ROWS });
  await using server = await startServer(db);
  const countAnswers = async (requests: number) => {
    const text = "GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n";
    const answers = await textUntilClosed(
      await open(server, text.repeat(requests)),
    );
    return answers.split("HTTP/1.1 200 OK").length - 1;
  };
  assertEquals(await countAnswers(4), 4);
  assert(await countAnswers(1000) < 10);
  // Consecutive requests are not pipelined.
  using client = await open(server);
  const reader = client.readable.getReader();
  for (let i = 0; i < 50; i++) {
    await client.write(
      new TextEncoder().encode(
        "HEAD /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n",
      ),
    );
    assert(!(await reader.read()).done, `closed after ${i} requests`);
  }
});

Deno.test({
  name: "listen() limits the number of connections",
  ignore: Deno.build.os !== "linux",
  async fn() {
    await using db = await migratedDatabases({ rows: ROWS });
    await using server = await startServer(db);
    const countOpen = () =>
      [...Deno.readDirSync(`/proc/${server.pid}/fd`)].length;
    const before = countOpen();
    const connections = await openMany(
      server,
      MAX_CONNECTIONS + 2 * ACCEPT_BATCH,
      `POST /session HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4000\r\n\r\n${
        "x".repeat(3000)
      }`,
    );
    try {
      // The server closes the last connections only after it accepted them.
      assert(countOpen() - before <= MAX_CONNECTIONS + ACCEPT_BATCH + 20);
      await until(
        "the server has closed them",
        () => Promise.resolve(countOpen() - before <= MAX_CONNECTIONS + 20),
        5,
      );
    } finally {
      for (const connection of connections) connection.close();
    }
    await until("the service answers again", async () => {
      const answer = await server.json("/health/live").catch(() => undefined);
      return answer?.status === 200;
    });
  },
});
