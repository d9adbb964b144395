import { assertEquals, assertStringIncludes } from "@std/assert";
import { migratedDatabases } from "../support/databases.ts";
import { type Server, startServer } from "../support/server.ts";

/** Sends a request unchanged and returns the whole answer. */
async function send(server: Server, lines: readonly string[]): Promise<string> {
  const { hostname, port } = new URL(server.url);
  using connection = await Deno.connect({ hostname, port: Number(port) });
  await connection.write(
    new TextEncoder().encode([...lines, "", ""].join("\r\n")),
  );
  return await new Response(connection.readable).text();
}

const ask = (server: Server, host: string, path = "/runs") =>
  send(server, [
    `GET ${path} HTTP/1.1`,
    `Host: ${host}`,
    "Connection: close",
  ]);

Deno.test("without a token, the service refuses requests for another host", async (t) => {
  await using db = await migratedDatabases({ rows: { deals: 3, leads: 3 } });
  await using server = await startServer(db);

  for (
    const host of [
      "localhost",
      "LocalHost:80",
      "127.0.0.1",
      "127.8.9.10:8000",
      "[::1]",
      "[::1]:8000",
    ]
  ) {
    await t.step(`${host} is answered`, async () => {
      assertStringIncludes(await ask(server, host), "HTTP/1.1 200");
    });
  }

  for (
    const host of [
      "rebound.example",
      "rebound.example:8000",
      "localhost.rebound.example",
      "127.0.0.1.rebound.example",
      "128.0.0.1",
      "[::2]:8000",
    ]
  ) {
    await t.step(`${host} is refused`, async () => {
      for (const path of ["/", "/runs", "/health", "/metrics"]) {
        const answer = await ask(server, host, path);
        assertStringIncludes(answer, "HTTP/1.1 403");
        assertStringIncludes(answer, "application/problem+json");
        assertStringIncludes(answer, `"code":"foreign_host"`);
        assertStringIncludes(answer, "API_TOKEN");
      }
    });
  }

  await t.step(
    "the service refuses a load from a page with a rebound name",
    async () => {
      const answer = await send(server, [
        "POST /load-async HTTP/1.1",
        "Host: rebound.example",
        "Origin: http://rebound.example",
        "Sec-Fetch-Site: same-origin",
        "Content-Length: 0",
        "Connection: close",
      ]);
      assertStringIncludes(answer, `"code":"foreign_host"`);
      assertEquals((await server.json("/runs")).body.runs, []);
    },
  );

  await t.step("HTTP/1.0 without a host is answered", async () => {
    assertStringIncludes(
      await send(server, ["GET /runs HTTP/1.0"]),
      " 200 OK",
    );
  });

  await t.step("HTTP/1.1 without a host is refused", async () => {
    const answer = await send(server, [
      "GET /runs HTTP/1.1",
      "Connection: close",
    ]);
    assertStringIncludes(answer, "HTTP/1.1 400");
    assertStringIncludes(answer, "The Host header is missing");
  });
});

Deno.test("with a token, the service answers for every host", async () => {
  await using db = await migratedDatabases({ rows: { deals: 3, leads: 3 } });
  await using server = await startServer(db, {
    API_TOKEN: "tok-en-1234567890",
  });
  assertStringIncludes(await ask(server, "loads.example"), "HTTP/1.1 401");
  assertStringIncludes(
    await send(server, [
      "GET /runs HTTP/1.1",
      "Host: loads.example",
      "Authorization: Bearer tok-en-1234567890",
      "Connection: close",
    ]),
    "HTTP/1.1 200",
  );
});

Deno.test("the service refuses a malformed Host first", async (t) => {
  await using db = await migratedDatabases({ rows: { deals: 3, leads: 3 } });
  await using closed = await startServer(db, {
    API_TOKEN: "tok-en-1234567890",
  });
  await using open = await startServer(db);
  const invalid = [
    "a b",
    "[",
    "[]",
    "[::1",
    "[::g]",
    "[1:2]",
    "x:99999",
    "x:80:80",
    "x:y",
    "x/health?",
    "x/health#",
    "x/session?",
    "localhost/health?",
    "x?",
    "x#",
    "x\\y",
    "user@localhost",
    "x%2fhealth%3f",
    "x%",
    "1.2.3.999",
    "<x>",
    "h\u00f6st",
    ":80",
    "",
  ];
  for (const host of invalid) {
    await t.step(JSON.stringify(host), async () => {
      for (const server of [closed, open]) {
        for (const accept of ["text/html", "application/json"]) {
          const answer = await send(server, [
            "GET /runs HTTP/1.1",
            `Host: ${host}`,
            `Accept: ${accept}`,
            "Connection: close",
          ]);
          assertStringIncludes(answer, "HTTP/1.1 400 Bad Request");
          assertStringIncludes(answer, "application/problem+json");
          assertStringIncludes(answer, `"code":"usage"`);
          assertStringIncludes(answer, "Host header");
        }
      }
    });
  }

  for (
    const host of [
      "loads.example",
      "loads_1.example.:8000",
      "LOADS.example:",
      "10.0.0.1:8000",
      "[2001:db8::1]:8000",
      "[::ffff:10.0.0.1]",
      "xn--hst-sna.example",
    ]
  ) {
    await t.step(`${host} is accepted`, async () => {
      const answer = await ask(closed, host, "/health/live");
      assertStringIncludes(answer, "HTTP/1.1 200");
    });
  }
});

Deno.test("a page is sent only to clients that prefer HTML", async () => {
  await using db = await migratedDatabases({ rows: { deals: 3, leads: 3 } });
  await using server = await startServer(db);
  for (
    const [accept, type] of [
      ["*/*", "application/json"],
      ["", "application/json"],
      ["text/html;q=0", "application/json"],
      ["text/html;q=0, */*", "application/json"],
      ["application/json, text/html;q=0.9", "application/json"],
      ["application/json, text/plain, */*", "application/json"],
      ["text/html", "text/html"],
      ["TEXT/HTML", "text/html"],
      ["application/json;q=0.5, text/html", "text/html"],
      // The header of browsers.
      [
        "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8",
        "text/html",
      ],
    ] as const
  ) {
    const response = await server.fetch("/", { headers: { accept } });
    await response.body?.cancel();
    const given = response.headers.get("content-type")!.split(";")[0];
    assertEquals(given, type, accept);
  }
  const missing = await server.fetch("/nowhere", {
    headers: { accept: "application/problem+json, text/html;q=0.5" },
  });
  assertEquals((await missing.json()).code, "not_found");
});
