import { assert, assertEquals, assertMatch } from "@std/assert";
import { createDatabases } from "../support/databases.ts";
import { startServer } from "../support/server.ts";

Deno.test("pages load a stylesheet and a script with hashed paths, without a token", async () => {
  await using db = await createDatabases({ rows: { deals: 3, leads: 3 } });
  await using server = await startServer(db, {
    API_TOKEN: "tok-en-1234567890",
  });
  const response = await server.fetch("/", {
    headers: { accept: "text/html" },
  });
  const page = await response.text();
  const policy = response.headers.get("content-security-policy")!;
  assertMatch(policy, /style-src 'self'; script-src 'self'/);
  assert(!policy.includes("nonce"));
  assert(!/<style|<script(?! defer src=)| style=| on\w+=/.test(page), page);
  const assets = [...page.matchAll(/(?:href|src)="\.(\/assets\/[^"]+)"/g)]
    .map(([, path]) => path!);
  assertEquals(assets.length, 2);
  for (
    const [path, type] of [
      [assets[0]!, "text/css"],
      [assets[1]!, "text/javascript"],
    ] as const
  ) {
    assertMatch(path, /^\/assets\/dashboard\.[0-9a-f]{12}\.(css|js)$/);
    const asset = await server.fetch(path);
    assert((await asset.text()).length > 1000);
    assertEquals(
      [
        asset.status,
        asset.headers.get("content-type"),
        asset.headers.get("cache-control"),
        asset.headers.get("x-content-type-options"),
      ],
      [
        200,
        `${type}; charset=utf-8`,
        "public, max-age=31536000, immutable",
        "nosniff",
      ],
    );
  }
  const stale = await server.json("/assets/dashboard.000000000000.css");
  assertEquals([stale.status, stale.body.code], [404, "not_found"]);
});

Deno.test("links and redirects work below the path of a proxy", async () => {
  await using db = await createDatabases({ rows: { deals: 3, leads: 3 } });
  await using server = await startServer(db, {
    PUBLIC_URL: `https://a.test/b`,
  });
  const { body: { run_id } } = await server.json("/load", { method: "POST" });
  const ask = (path: string, method = "GET") =>
    server.fetch(path, {
      method,
      redirect: "manual",
      headers: { accept: "text/html" },
    });
  const inside = (link: string, page: string) => {
    const { origin, pathname, search } = new URL(
      link.replaceAll("&amp;", "&"),
      `http://proxy.test/b${page}`,
    );
    assertEquals(origin, "http://proxy.test");
    assertMatch(pathname, /^\/b\//, `${link} of ${page}`);
    return pathname.slice(2) + search;
  };
  for (
    const page of ["/", "/runs", `/runs/${run_id}`, "/docs", "/not/a/page/"]
  ) {
    const html = await (await ask(page)).text();
    const links = [...html.matchAll(/ (?:href|src)="([^#"][^"]*)"/g)]
      .map(([, link]) => link!).filter((link) => !link.startsWith("data:"));
    assert(links.length >= 8, page);
    for (const link of new Set(links)) {
      const answer = await ask(inside(link, page));
      await answer.body?.cancel();
      assertEquals(answer.status, 200, `${link} of ${page}`);
    }
    for (const [, link] of html.matchAll(/ action="([^"]*)"/g)) {
      assertEquals(inside(link!, page), "/load-async");
    }
  }
  for (
    const [path, there] of [
      ["/load-async", /^\/runs\/[0-9a-f-]{36}$/],
      ["/session", /^\/$/],
      ["/session/end", /^\/$/],
    ] as const
  ) {
    const answer = await ask(path, "POST");
    await answer.body?.cancel();
    assertEquals(answer.status, 303);
    assertMatch(inside(answer.headers.get("location")!, path), there);
  }
});
