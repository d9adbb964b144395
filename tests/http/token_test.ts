import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { getLogger } from "@logtape/logtape";
import { isHttps } from "../../src/http/middleware/auth.ts";
import { FailedTokens } from "../../src/http/middleware/failed_tokens.ts";
import { migratedDatabases } from "../support/databases.ts";
import { runJson } from "../support/program_here.ts";
import { startServer } from "../support/server.ts";

const TOKEN = "tok-en-12345678907890";
const RIGHT = { headers: { authorization: `Bearer ${TOKEN}` } };

Deno.test("GET /health shows details only to callers with the token", async () => {
  await using db = await migratedDatabases({ rows: { deals: 3, leads: 3 } });
  await using server = await startServer(db, { API_TOKEN: TOKEN });
  const { port } = new URL(server.url);
  const get = async (path: string, init?: RequestInit) =>
    await (await server.fetch(path, init)).text();
  assertEquals(JSON.parse(await get("/health")), { status: "healthy" });
  assertEquals(
    JSON.parse(await get("/health", RIGHT)).checks.dwh.status,
    "healthy",
  );
  const page = await get("/", { headers: { accept: "text/html" } });
  assertStringIncludes(page, "Sign in");
  assert(!/Version \d/.test(page), "the sign-in page shows the version");
  const asked = await runJson(["health", "--service"], {
    ...db.environment,
    API_TOKEN: TOKEN,
    PORT: port,
    // A token may go only to the service.
    HTTP_PROXY: "http://127.0.0.1:1",
  });
  assertEquals(asked.code, 0, asked.stderr);
  assertEquals(asked.json.checks.dwh.status, "healthy");
});

Deno.test("a wrong token is logged with its address, at a bounded rate", async () => {
  await using db = await migratedDatabases({ rows: { deals: 3, leads: 3 } });
  const server = await startServer(db, { API_TOKEN: TOKEN });
  const wrong = await Promise.all(
    Array.from({ length: 4 }, () =>
      server.json("/runs", {
        headers: {
          authorization: "Bearer wrong",
          "x-forwarded-for": "10.1.2.3\u009b31m",
        },
      })),
  );
  assertEquals(wrong.map(({ status }) => status), [401, 401, 401, 401]);
  const form = await server.fetch("/session", {
    method: "POST",
    body: new URLSearchParams({ token: "wrong" }),
    redirect: "manual",
  });
  await form.body?.cancel();
  assertEquals(form.status, 401);
  assertEquals((await server.json("/runs", RIGHT)).status, 200);
  server.kill("SIGTERM");
  const { stderr } = await server.finished;
  const lines = stderr.split("\n").filter((line) =>
    line.includes("wrong token")
  );
  assertEquals(lines.length, 1);
  assertStringIncludes(lines[0]!, "127.0.0.1");
  assertStringIncludes(lines[0]!, "10.1.2.3");
  assert(!lines[0]!.includes("\u009b"));
});

Deno.test("FailedTokens.add() increases the delay of each address, expires entries and limits its memory", () => {
  let now = 0;
  const failures = new FailedTokens(getLogger(["test"]), () => now);
  const delays = Array.from({ length: 8 }, () => {
    const delay = failures.add("10.0.0.1");
    now += delay;
    return delay;
  });
  assertEquals(delays, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
  assertEquals(failures.add("10.0.0.2"), 100);
  now += 600_000;
  assertEquals(failures.add("10.0.0.1"), 100);
  for (let i = 0; i < 5000; i++) failures.add(`192.0.2.${i}`);
  assertEquals(failures.size, 1000);
});

Deno.test("FailedTokens.add() answers parallel wrong tokens of an address one after another", () => {
  const failures = new FailedTokens(getLogger(["test"]), () => 0);
  const add = (address: string, times: number) =>
    Array.from({ length: times }, () => failures.add(address));
  assertEquals(add("10.0.0.1", 8), [
    ...[100, 300, 700, 1500, 3100, 6300, 11_300, 16_300],
  ]);
  // The wait of one answer is limited.
  assertEquals(add("10.0.0.1", 1000).at(-1), 30_000);
  assertEquals(add("10.0.0.2", 1), [100]);
  // All addresses of an IPv6 network belong to one client.
  assertEquals(add("2001:db8::1", 1), [100]);
  assertEquals(add("2001:db8:0:0:ffff::2", 1), [300]);
  assertEquals(add("2001:db8:0:1::1", 1), [100]);
  assertEquals(add("::ffff:10.0.0.3", 1), [100]);
  assertEquals(add("::ffff:10.0.0.4", 1), [100]);
});

Deno.test("isHttps() reads the first protocol of X-Forwarded-Proto", () => {
  for (
    const value of [
      "https",
      "HTTPS",
      "https, http",
      "https,http",
      " https , http",
    ]
  ) {
    assert(isHttps(value), value);
  }
  for (const value of [undefined, "", "http", "http, https", "httpsx"]) {
    assert(!isHttps(value), value);
  }
});
