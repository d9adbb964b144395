import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import type { Response } from "playwright-core";
import type { Parameter, Queryable } from "../../src/postgres/sql.ts";
import {
  listOutcomes,
  listTableHistory,
  type RunFilter,
} from "../../src/runs/history.ts";
import { namesOf } from "../../src/tables/declaration.ts";
import { MARKETING_TABLES } from "../../src/tables/marketing.ts";
import { browserTest } from "../support/browser.ts";
import { writeHistory } from "../support/history.ts";
import {
  assertAccessible,
  assertFits,
  keepPicture,
  setScene,
} from "../support/dashboard_scene.ts";

const WINDOWS = {
  phone: { width: 360, height: 740 },
  desk: { width: 1280, height: 900 },
  wall: { width: 2560, height: 1440 },
};

/** Maximum bytes of a page with its stylesheet and its script. */
const WEIGHT_LIMIT = 50_000;

/** The pages in the README. */
const PICTURES = new URL("../../docs/images/", import.meta.url);

browserTest(
  "every page stays small, fits the screen and is accessible with 10,000 runs",
  async (t) => {
    await using scene = await setScene({ LOAD_SCHEDULE: "0 6 * * MON-FRI" });
    const { db, server } = scene;
    await writeHistory(db, 10_000);
    await db.source.unsafe(
      "delete from marketing.closed_deals where mql_id < '1'",
    );
    const loaded = await server.json("/load", { method: "POST" });
    const failed = await server.json("/runs?status=failed&limit=1");
    const pages = {
      overview: "/",
      runs: "/runs",
      "runs-failed": "/runs?status=failed",
      run: `/runs/${loaded.body.run_id}`,
      "run-failed": `/runs/${failed.body.runs[0].run_id}`,
      api: "/docs",
    };

    // One page for all, because each new window costs a second of processor time.
    const page = await scene.open();
    for (const colorScheme of ["light", "dark"] as const) {
      for (const [size, viewport] of Object.entries(WINDOWS)) {
        await t.step(`${size}, ${colorScheme}`, async () => {
          await page.emulateMedia({ colorScheme });
          await page.setViewportSize(viewport);
          for (const [name, path] of Object.entries(pages)) {
            await page.goto(path);
            await assertFits(page);
            await assertAccessible(page);
            await keepPicture(page, `${name}-${size}-${colorScheme}`);
          }
        });
      }
    }
    await page.close();

    await t.step("a page has less than 50 KB with its assets", async () => {
      const page = await scene.open();
      const session = await page.context().newCDPSession(page);
      await session.send("Network.setCacheDisabled", { cacheDisabled: true });
      let responses: Response[] = [];
      page.on("response", (response) => {
        if (!response.url().startsWith("data:")) responses.push(response);
      });
      for (const path of Object.values(pages)) {
        responses = [];
        await page.goto(path, { waitUntil: "load" });
        const sizes = await Promise.all(
          responses.map(async (response) => (await response.body()).length),
        );
        assertEquals(sizes.length, 3, path);
        const total = sizes.reduce((sum, size) => sum + size, 0);
        assert(total < WEIGHT_LIMIT, `${path}: ${total} bytes`);
      }
      await page.close();
    });

    await t.step("the list continues on further pages", async () => {
      const page = await scene.open();
      await page.goto("/runs");
      const first = await page.locator("tbody a").first().getAttribute("href");
      await page.getByRole("link", { name: "Older" }).click();
      await page.waitForURL(/before=/);
      assertEquals(await page.locator("tbody tr").count(), 50);
      assert(
        await page.locator("tbody a").first().getAttribute("href") !== first,
      );
      await page.getByRole("link", { name: "Newest" }).click();
      assertEquals(
        await page.locator("tbody a").first().getAttribute("href"),
        first,
      );
      await page.close();
    });

    await t.step("the keyboard reaches every control in order", async () => {
      const page = await scene.open();
      await page.goto("/");
      const reached: string[] = [];
      for (let i = 0; i < 6; i++) {
        await page.keyboard.press("Tab");
        reached.push(await page.locator(":focus").innerText());
      }
      assertEquals(reached, [
        "Skip to content",
        "marketing-data-service",
        "Overview",
        "Runs",
        "API",
        "Load now",
      ]);
      await page.close();
    });

    await t.step(
      "the queries of a page do not grow with the history",
      async () => {
        // The worst case: 10,000 runs without a change.
        await db.warehouse.unsafe(
          `update marketing_data_service.table_load
           set result = jsonb_set(result::jsonb, '{mode}', '"unchanged"')::json
           where state = 'succeeded' and run_id <>
             (select id from marketing_data_service.run order by seq limit 1)`,
        );
        await db.warehouse.unsafe("vacuum analyze");
        const blocks = async (
          ask: (queryable: Queryable) => Promise<unknown>,
        ) => {
          let read = 0;
          await ask({
            async query(text: string, parameters: readonly Parameter[] = []) {
              const [row] = await db.warehouse.unsafe(
                `explain (analyze, buffers, format json) ${text}`,
                parameters.map((value) =>
                  value instanceof Array ? `{${value}}` : value
                ),
              );
              const [{ Plan: plan }] = row!["QUERY PLAN"];
              read += plan["Shared Hit Blocks"] + plan["Shared Read Blocks"];
              return [];
            },
          });
          return read;
        };
        const list = (filter: Partial<RunFilter>) => (queryable: Queryable) =>
          listOutcomes(queryable, { limit: 51, ...filter });
        assert(await blocks(list({})) < 500);
        assert(
          await blocks((queryable) =>
            listTableHistory(queryable, namesOf(MARKETING_TABLES))
          ) <
            100,
        );
      },
    );
  },
);

browserTest("the README shows the current pages", async () => {
  await using scene = await setScene({ LOAD_SCHEDULE: "0 6 * * MON-FRI" });
  const { db, server } = scene;
  await writeHistory(db, 60);
  await server.json("/load", { method: "POST" });
  await db.source.unsafe(
    "update marketing.marketing_qualified_leads set origin = 'email' where mql_id < '01'",
  );
  await server.json("/load", { method: "POST" });
  const readme = await Deno.readTextFile(
    new URL("../../README.md", import.meta.url),
  );
  for (const colorScheme of ["light", "dark"] as const) {
    const name = `dashboard-${colorScheme}.png`;
    assertStringIncludes(readme, `docs/images/${name}`);
    const page = await scene.open({
      colorScheme,
      viewport: { width: 1200, height: 800 },
    });
    await page.goto("/");
    await page.getByRole("heading", { name: "Both tables equal" }).waitFor();
    const picture = await page.screenshot({ fullPage: true });
    // Only on request, so that a test changes no file of the project.
    if (Deno.env.get("UPDATE_PICTURES") === "1") {
      await Deno.mkdir(PICTURES, { recursive: true });
      await Deno.writeFile(new URL(name, PICTURES), picture);
    }
    assert((await Deno.stat(new URL(name, PICTURES))).size > 10_000);
    await page.close();
  }
});
