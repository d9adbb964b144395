import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import type { Page } from "playwright-core";
import type { Databases } from "../support/databases.ts";
import { formatBytes } from "../../src/format.ts";
import { until } from "../support/server.ts";
import { browserTest } from "../support/browser.ts";
import {
  assertAccessible,
  keepPicture,
  serveSlowly,
  setScene,
  watchShifts,
} from "../support/dashboard_scene.ts";

/** Locks a table, so that the next load waits until this is disposed of. */
async function heldTable(db: Databases): Promise<AsyncDisposable> {
  const writer = db.connect("warehouse");
  await writer.unsafe(
    "begin; lock table m_data.closed_deal in row exclusive mode",
  );
  let isHeld = true;
  return {
    async [Symbol.asyncDispose]() {
      if (!isHeld) return;
      isHeld = false;
      await writer.unsafe("rollback");
      await writer.end({ timeout: 1 });
    },
  };
}

browserTest(
  "a browser starts a load, follows it and shows its result",
  async (t) => {
    await using scene = await setScene({ LOCK_TIMEOUT: "120" });
    const { db, server } = scene;
    const page = await scene.open();
    const heading = page.locator("h1");

    await t.step(
      "the page explains the first load when there is no run",
      async () => {
        await page.goto("/");
        assertEquals(await heading.textContent(), "No load has run yet");
        await assertAccessible(page);
        await keepPicture(page, "empty");
        await page.goto("/runs");
        assertStringIncludes(
          await page.locator("main").innerText(),
          "No load has run yet.",
        );
      },
    );

    await t.step("Load now leads to the run and shows its end", async () => {
      await page.goto("/");
      await page.getByRole("button", { name: "Load now" }).click();
      await page.waitForURL(/\/runs\/[0-9a-f-]{36}$/);
      await page.getByRole("heading", { name: "Succeeded" }).waitFor();
      const text = await page.locator("main").innerText();
      assertStringIncludes(text, "full +842");
      assertStringIncludes(text, "full +8,000");
      assertStringIncludes(text, "verified count and content");
      assertEquals(await page.locator(".phases rect").count() > 4, true);
    });

    await t.step("no page moves while it arrives slowly", async () => {
      await using slow = serveSlowly(server.url);
      for (const path of ["/", "/runs", new URL(page.url()).pathname]) {
        const watcher = await scene.open({ baseURL: slow.url });
        const shifts = await watchShifts(watcher);
        await watcher.goto(path);
        // Waits until the page is shown.
        await watcher.locator("footer").click();
        assertEquals(await shifts(), [], path);
        await watcher.context().close();
      }
    });

    await t.step(
      "a running load is shown live without layout shifts",
      async () => {
        await using held = await heldTable(db);
        await page.goto("/");
        await page.getByRole("button", { name: "Load now" }).click();
        await page.waitForURL(/\/runs\//);
        const runPage = page.url();
        // The test only counts shifts: tools that examine a page cause some.
        const watched = await Promise.all(
          ["/", runPage].map(async (path) => {
            const watcher = await scene.open();
            const shifts = await watchShifts(watcher);
            await watcher.goto(path);
            return { watcher, shifts };
          }),
        );
        const overview = await scene.open();
        await overview.goto("/");
        await overview.getByRole("heading", { name: "A load is running" })
          .waitFor();
        await page.getByRole("heading", { name: "Loading" }).waitFor();
        // The other table is finished. This one waits for its lock.
        for (const seen of [page, ...watched.map(({ watcher }) => watcher)]) {
          await seen.locator('[data-table="closed_deal"] b', {
            hasText: "lock",
          }).waitFor();
          await seen.locator('[data-table="marketing_qualified_lead"]', {
            hasText: "8,000 of 8,000 rows",
          }).waitFor();
        }
        for (const [seen, name] of [[page, "live-run"], [overview, "live"]]) {
          await assertAccessible(seen as Page);
          await keepPicture(seen as Page, name as string);
        }
        // The script formats bytes as the server does.
        for (const bytes of [0, 903, 197_000, 999_600, 1_250_000, 12.3e9]) {
          const row = { table: "closed_deal", phase: "copy", rows: 1, bytes };
          assertEquals(
            await page.evaluate(
              `showTable(${JSON.stringify(row)});
               document.querySelector("[data-table=closed_deal] span").innerText`,
            ),
            bytes === 0 ? "1 row" : `1 row, ${formatBytes(bytes)}`,
          );
        }
        await held[Symbol.asyncDispose]();
        await page.getByRole("heading", { name: "Succeeded" }).waitFor();
        for (const { watcher, shifts } of watched) {
          await watcher.getByRole("heading", {
            name: /Both tables equal|Succeeded/,
          }).waitFor();
          assertEquals(await shifts(), [], watcher.url());
        }
        // A screen reader announces the change.
        assertEquals(await page.locator("#news").textContent(), "Succeeded");
      },
    );

    await t.step(
      "the button leads to the same page without JavaScript",
      async () => {
        const plain = await scene.open({ javaScriptEnabled: false });
        await plain.goto("/");
        await plain.getByRole("button", { name: "Load now" }).click();
        await plain.waitForURL(/\/runs\//);
        // The page reloads itself while the run is in progress.
        await plain.getByRole("heading", { name: "Succeeded" }).waitFor();
        await plain.goto("/");
        assertStringIncludes(
          await plain.locator("main").innerText(),
          "Both tables equal their source",
        );
        await plain.close();
      },
    );

    await t.step(
      "an open page shows a run that another caller started",
      async () => {
        await page.goto("/");
        const [before] = await page.locator("tbody a").all();
        const link = await before!.getAttribute("href");
        await server.json("/load", { method: "POST" });
        await page.waitForFunction(
          (link) =>
            // deno-lint-ignore no-explicit-any -- the page's document
            (globalThis as any).document.querySelector("tbody a")
              .getAttribute("href") !== link,
          link,
        );
      },
    );

    await t.step("a failed run shows table, cause and remedy", async () => {
      await db.source.unsafe(
        "alter table marketing.closed_deals rename column won_date to won_on",
      );
      await page.goto("/");
      await page.getByRole("button", { name: "Load now" }).click();
      await page.getByRole("heading", { name: "Failed" }).waitFor();
      const panel = page.getByLabel("What went wrong");
      assertStringIncludes(
        await panel.locator(".message").innerText(),
        'column "won_date" is missing in marketing.closed_deals',
      );
      assertStringIncludes(
        await panel.locator(".remedy").innerText(),
        "Add the column to the source table",
      );
      await assertAccessible(page);
      await keepPicture(page, "failed");
      await page.locator("summary").click();
      assertStringIncludes(
        await page.locator("pre").innerText(),
        "marketing-data-load-failed",
      );
      await page.goto("/");
      assertEquals(await heading.textContent(), "The last load failed");
      await assertAccessible(page);
      await keepPicture(page, "last-failed");
      await page.getByRole("link", { name: "1 failed" }).click();
      assertEquals(await page.locator("tbody tr").count(), 1);
    });

    await t.step("an unknown path shows an error page", async () => {
      const response = await page.goto(`/runs/${crypto.randomUUID()}`);
      assertEquals(response!.status(), 404);
      assertStringIncludes(
        await page.locator("main").innerText(),
        "What to do",
      );
      await assertAccessible(page);
      await keepPicture(page, "not-found");
    });

    await t.step(
      "the button is disabled with a reason while the service drains",
      async () => {
        await db.source.unsafe(
          "alter table marketing.closed_deals rename column won_on to won_date",
        );
        await using held = await heldTable(db);
        const { body } = await server.json("/load-async", { method: "POST" });
        await until(
          "it runs",
          async () =>
            (await server.json(`/runs/${body.run_id}`)).body.status ===
              "running",
        );
        server.kill("SIGTERM");
        await until(
          "it drains",
          async () => (await server.json("/health/ready")).status === 503,
        );
        await page.goto("/");
        const button = page.getByRole("button", { name: "Load now" });
        assert(await button.isDisabled());
        assertStringIncludes(
          await page.locator("#load-hint").innerText(),
          "shutting down",
        );
        await page.goto("about:blank");
        await held[Symbol.asyncDispose]();
        assertEquals((await server.finished).code, 143);
      },
    );
  },
);

browserTest(
  "the page reports an unreachable warehouse, and recovers with it",
  async () => {
    await using scene = await setScene();
    const { db } = scene;
    const page = await scene.open();
    const name = db.environment.DWH_DB_NAME!;
    await page.goto("/");
    await page.getByRole("heading", { name: "No load has run yet" }).waitFor();
    await using admin = db.connect("source");
    await admin.unsafe(`alter database ${name} allow_connections false`);
    await admin.unsafe(
      `select pg_terminate_backend(pid) from pg_stat_activity where datname = '${name}'`,
    );
    await page.goto("/");
    assertEquals(
      await page.locator("h1").textContent(),
      "The warehouse is unhealthy",
    );
    assert(await page.getByRole("button", { name: "Load now" }).isDisabled());
    assertStringIncludes(
      await page.locator("#load-hint").innerText(),
      "warehouse is unhealthy",
    );
    await assertAccessible(page);
    await keepPicture(page, "warehouse-away");
    const response = await page.request.get("/runs", {
      headers: { accept: "text/html" },
    });
    assert(response.status() >= 500);
    assertStringIncludes(await response.text(), "What to do");
    await admin.unsafe(`alter database ${name} allow_connections true`);
    // The open page polls for changes.
    await page.getByRole("heading", { name: "No load has run yet" }).waitFor();
  },
);
