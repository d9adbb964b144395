/**
 * A service with its databases, and a browser on its pages.
 *
 * @module
 */
import { assertEquals } from "@std/assert";
import { delay } from "@std/async/delay";
import axe from "axe-core";
import type { BrowserContextOptions, Page } from "playwright-core";
import { type Databases, migratedDatabases } from "./databases.ts";
import { type Server, startServer } from "./server.ts";
import { startBrowser } from "./browser.ts";

/** Folder of the screenshots. */
const RESULTS = new URL("../../test-results/", import.meta.url);

/** Everything that a test of the dashboard needs. */
interface Scene extends AsyncDisposable {
  readonly db: Databases;
  readonly server: Server;
  /** A page of a fresh browser profile. An error in its script fails the test. */
  open(options?: BrowserContextOptions): Promise<Page>;
}

/** Creates the scene. Disposing of it removes everything. */
export async function setScene(
  variables: Readonly<Record<string, string>> = {},
  rows = { deals: 842, leads: 8000 },
): Promise<Scene> {
  await using made = new AsyncDisposableStack();
  const db = made.use(await migratedDatabases({ rows }));
  const server = made.use(await startServer(db, variables));
  const browser = made.use(await startBrowser());
  const errors: string[] = [];
  const kept = made.move();
  return {
    db,
    server,
    async open(options = {}) {
      const { baseURL = server.url } = options;
      const context = await browser.newContext({
        baseURL,
        viewport: { width: 1280, height: 900 },
        ...options,
      });
      const page = await context.newPage();
      page.on("pageerror", (error) => errors.push(error.message));
      page.on("console", (message) => {
        if (/Content Security Policy/.test(message.text())) {
          errors.push(message.text());
        }
      });
      page.on("request", (request) => {
        if (request.isNavigationRequest()) return;
        const { origin, protocol } = new URL(request.url());
        if (protocol !== "data:" && origin !== baseURL) {
          errors.push(`It asks another host: ${request.url()}`);
        }
      });
      return page;
    },
    async [Symbol.asyncDispose]() {
      await kept.disposeAsync();
      assertEquals(errors, [], "what the browser complained about");
    },
  };
}

/** Saves a screenshot of the page in `test-results/`, only on request because it takes long. */
export async function keepPicture(page: Page, name: string): Promise<void> {
  if (Deno.env.get("UPDATE_PICTURES") !== "1") return;
  await page.screenshot({
    path: new URL(`dashboard-${name}.png`, RESULTS).pathname,
    fullPage: true,
  });
}

/** Fails when axe-core finds an accessibility problem on the page. */
export async function assertAccessible(page: Page): Promise<void> {
  // Injects the script like a debugger, because the policy of the page blocks foreign scripts.
  await page.evaluate(axe.source);
  const found = await page.evaluate(async () => {
    // deno-lint-ignore no-explicit-any -- a global of the page
    const { violations } = await (globalThis as any).axe.run({
      // Otherwise it also describes each element that has no problem.
      resultTypes: ["violations"],
    });
    // deno-lint-ignore no-explicit-any -- as above
    return violations.map((v: any) =>
      // deno-lint-ignore no-explicit-any -- as above
      `${v.id}: ${v.nodes.map((n: any) => n.html).join(" | ")}`
    );
  });
  assertEquals(found, [], page.url());
}

/** Fails when the page is wider than its window. */
export async function assertFits(page: Page): Promise<void> {
  const [content, window] = await page.evaluate(() => {
    // deno-lint-ignore no-explicit-any -- the page's document
    const { documentElement: root } = (globalThis as any).document;
    return [root.scrollWidth, root.clientWidth];
  });
  assertEquals(content, window, `${page.url()} scrolls sideways`);
}

/** Serves the pages of a service like a slow network: in small pieces. */
export function serveSlowly(url: string): AsyncDisposable & { url: string } {
  const slow = Deno.serve(
    { port: 0, hostname: "127.0.0.1", onListen() {} },
    async (request) => {
      const { pathname } = new URL(request.url);
      const accept = request.headers.get("accept") ?? "*/*";
      const answer = await fetch(url + pathname, { headers: { accept } });
      const type = answer.headers.get("content-type") ?? "";
      const bytes = await answer.bytes();
      const pieces = async function* () {
        const size = type.startsWith("text/html")
          ? bytes.length / 50
          : Infinity;
        for (let at = 0; at < bytes.length; at += size) {
          yield bytes.subarray(at, at + size);
          await delay(20);
        }
      };
      return new Response(ReadableStream.from(pieces()), {
        headers: { "content-type": type },
      });
    },
  );
  return {
    url: `http://127.0.0.1:${slow.addr.port}`,
    [Symbol.asyncDispose]: () => slow[Symbol.asyncDispose](),
  };
}

/** Records the layout shifts of the page from its load on. */
export async function watchShifts(
  page: Page,
): Promise<() => Promise<readonly string[]>> {
  await page.addInitScript(() => {
    // deno-lint-ignore no-explicit-any -- a global of the page
    const page = globalThis as any;
    page.shifts = [];
    new PerformanceObserver((list) => {
      // deno-lint-ignore no-explicit-any -- an entry that this runtime's types do not know
      for (const { value, sources } of list.getEntries() as any[]) {
        // deno-lint-ignore no-explicit-any -- as above
        const moved = sources.map(({ node, previousRect, currentRect }: any) =>
          `${(node?.outerHTML ?? node?.textContent)?.slice(0, 80)} from ${
            JSON.stringify(previousRect)
          } to ${JSON.stringify(currentRect)}`
        );
        page.shifts.push(`${value}: ${moved.join("; ")}`);
      }
    }).observe({ type: "layout-shift", buffered: true });
  });
  return () =>
    page.evaluate(() => (globalThis as unknown as { shifts: string[] }).shifts);
}
