import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { browserTest } from "../support/browser.ts";
import {
  assertAccessible,
  keepPicture,
  setScene,
} from "../support/dashboard_scene.ts";

const TOKEN = "tok-en-1234567890";

browserTest("a browser signs in with the token, and signs out", async (t) => {
  await using scene = await setScene({ API_TOKEN: TOKEN }, {
    deals: 5,
    leads: 5,
  });
  const { server } = scene;
  const page = await scene.open();
  const field = page.getByLabel("Token");
  const enter = page.getByRole("button", { name: "Sign in" });

  await t.step(
    "a page without a session shows the form, with 401",
    async () => {
      const response = await page.goto("/runs?status=failed");
      assertEquals(response!.status(), 401);
      assertEquals(await page.locator("h1").textContent(), "Sign in");
      await assertAccessible(page);
      await keepPicture(page, "sign-in");
    },
  );

  await t.step(
    "a wrong token is reported and does not appear in a URL",
    async () => {
      await field.fill("tok-en-123457");
      await enter.click();
      await page.getByRole("alert").waitFor();
      assertEquals(
        await page.getByRole("alert").textContent(),
        "The token is wrong. Enter the value of API_TOKEN.",
      );
      assert(!page.url().includes("tok-en"));
      await assertAccessible(page);
      await keepPicture(page, "sign-in-refused");
      assertEquals((await page.context().cookies()).length, 0);
    },
  );

  await t.step(
    "the right token leads to the requested page",
    async () => {
      await field.fill(TOKEN);
      await enter.click();
      await page.waitForURL("/runs?status=failed");
      assertEquals(await page.locator("h1").textContent(), "Runs");
      const [cookie] = await page.context().cookies();
      assert(cookie!.httpOnly && cookie!.sameSite === "Strict");
      assert(cookie!.expires > Date.now() / 1000);
      assert(!decodeURIComponent(cookie!.value).includes(TOKEN));
    },
  );

  await t.step("the session starts a load and follows the run", async () => {
    await page.goto("/");
    await page.getByRole("button", { name: "Load now" }).click();
    await page.getByRole("heading", { name: "Succeeded" }).waitFor();
  });

  await t.step(
    "every page requires the token after sign-out",
    async () => {
      await page.getByRole("button", { name: "Sign out" }).click();
      assertEquals(await page.locator("h1").textContent(), "Sign in");
      assertEquals((await page.context().cookies()).length, 0);
    },
  );

  await t.step("the sign-in works without JavaScript", async () => {
    const plain = await scene.open({ javaScriptEnabled: false });
    await plain.goto("/docs");
    await plain.getByLabel("Token").fill(TOKEN);
    await plain.getByRole("button", { name: "Sign in" }).click();
    await plain.waitForURL("/docs");
    assertEquals(await plain.locator("h1").textContent(), "API");
  });

  await t.step("a forged or stale cookie does not sign in", async () => {
    const signedIn = await server.fetch("/session", {
      method: "POST",
      body: new URLSearchParams({ token: TOKEN, next: "/.//elsewhere.test" }),
      redirect: "manual",
    });
    await signedIn.body?.cancel();
    assertEquals(signedIn.status, 303);
    assertEquals(signedIn.headers.get("location"), "./");
    const [cookie] = signedIn.headers.getSetCookie();
    const [, name, end, signature] = /^(\w+)=(\d+)(\.[^;]+)/.exec(cookie!)!;
    const status = async (value: string) =>
      (await server.json("/runs", {
        headers: { cookie: `${name}=${value}` },
      })).status;
    assertEquals(await status(`${end}${signature}`), 200);
    assertEquals(await status(`${Number(end) + 1}${signature}`), 401);
    assertEquals(await status(`${end}`), 401);
    assertEquals(await status(TOKEN), 401);
  });

  await t.step("a program gets problem documents, not forms", async () => {
    const refused = await server.json("/session", {
      method: "POST",
      body: new URLSearchParams({ token: "wrong" }),
    });
    assertEquals(refused.status, 401);
    assertEquals(refused.body.code, "unauthorized");
    assertEquals((await server.json("/runs")).body.code, "unauthorized");
  });

  await t.step("the cookie is Secure behind TLS", async () => {
    const response = await server.fetch("/session", {
      method: "POST",
      headers: { "x-forwarded-proto": "https" },
      body: new URLSearchParams({ token: TOKEN }),
      redirect: "manual",
    });
    await response.body?.cancel();
    assertStringIncludes(response.headers.get("set-cookie")!, "Secure");
  });
});

browserTest("a page of another origin cannot start a load", async () => {
  await using scene = await setScene({}, { deals: 5, leads: 5 });
  const { server } = scene;
  // For a browser, another name of the same host is another site.
  const target = server.url;
  await using stranger = Deno.serve(
    { hostname: "127.0.0.1", port: 0, onListen() {} },
    () =>
      new Response(
        `<form method="post" action="${target}/load-async"><button>Win</button></form>`,
        { headers: { "content-type": "text/html" } },
      ),
  );
  const page = await scene.open();
  await page.goto(`http://localhost:${stranger.addr.port}/`).catch(() => {});
  const answer = page.waitForResponse(`${target}/load-async`);
  await page.getByRole("button", { name: "Win" }).click();
  const response = await answer;
  assertEquals(response.status(), 403);
  assertStringIncludes(
    response.headers()["content-type"]!,
    "application/problem+json",
  );
  assertEquals((await response.json()).code, "cross_origin");
  await page.close();
  const post = (headers: Record<string, string>) =>
    server.json("/load", { method: "POST", headers });
  const host = new URL(target).host;
  for (
    const [headers, status] of [
      [{ origin: "https://elsewhere.test" }, 403],
      [{ origin: "null" }, 403],
      [{ "sec-fetch-site": "same-site", origin: `http://${host}` }, 403],
      [{ origin: `http://${host}` }, 200],
      [{ "sec-fetch-site": "same-origin" }, 200],
      [{}, 200],
    ] as const
  ) {
    assertEquals(
      (await post(headers)).status,
      status,
      JSON.stringify(headers),
    );
  }
  assertEquals((await server.json("/runs")).body.runs.length, 3);
});
