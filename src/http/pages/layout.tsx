/** The frame of every page. */
import type { Context } from "hono";
import { accepts } from "hono/accepts";
import { raw } from "hono/html";
import type { Child } from "hono/jsx";
import type { RunState } from "../../runs/queue.ts";
import { VERSION } from "../../identity.ts";
import { nonceOf } from "../middleware/guards.ts";
import { Icons } from "./components/icons.tsx";

const STYLE = readAsset("dashboard.css");
const SCRIPT = readAsset("dashboard.js");

const ICON =
  `data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E%3Crect width='16' height='16' rx='4' fill='%230c6b63'/%3E%3Cpath d='M4 6h8M4 10h8' stroke='%23fff' stroke-width='2' stroke-linecap='round'/%3E%3C/svg%3E`;

/** A page of the service. */
export interface Page {
  /** What the browser's tab says before the service's name. */
  readonly title: string;
  /** Path of the page in the navigation that this one belongs to. */
  readonly section?: "/" | "/runs" | "/docs";
  /** Leaves out the navigation, for who is not signed in. */
  readonly isClosed?: boolean;
  readonly isSignedIn?: boolean;
  /** A run that the page follows while it goes on, as the page shows it. */
  readonly follow?:
    | { readonly run_id: string; readonly status: RunState }
    | undefined;
  /** Changes with what the page shows; it then looks for news by itself. */
  readonly version?: string;
  readonly body: Child;
}

const SECTIONS = [["/", "Overview"], ["/runs", "Runs"], ["/docs", "API"]];

/** Answers with a page. */
export function answerPage(
  c: Context,
  page: Page,
  status: 200 | 400 | 401 | 404 | 405 | 408 | 413 | 500 | 503 = 200,
): Response {
  // What is shown is of this moment, and of who is signed in.
  c.header("cache-control", "no-store");
  c.header("vary", "accept, cookie");
  const html = `<!doctype html>${<Frame {...page} nonce={nonceOf(c)} />}`;
  return c.html(html, status);
}

/** Whether a browser asks for a page, rather than a program for data: a page is for who would rather have it. */
export function wantsPage(c: Context): boolean {
  const [data, page] = ["application/json", "text/html"] as const;
  return accepts(c, {
    header: "Accept",
    supports: [data, "application/problem+json", page],
    default: data,
  }) === page;
}

function Frame(page: Page & { nonce: string }) {
  return (
    <html lang="en">
      <head>
        <meta charset="utf-8" />
        <meta name="viewport" content="width=device-width, initial-scale=1" />
        <meta name="color-scheme" content="light dark" />
        <title>{page.title} · marketing-data-service</title>
        <link rel="icon" href={ICON} />
        <style nonce={page.nonce}>{raw(STYLE)}</style>
        {page.follow && (
          <noscript>
            <meta http-equiv="refresh" content="3" />
          </noscript>
        )}
      </head>
      <body>
        <Icons />
        <a class="skip" href="#main">Skip to content</a>
        <header class="top">
          <a class="brand" href="/">
            <svg class="logo" aria-hidden="true" viewBox="0 0 16 16">
              <rect width="16" height="16" rx="4" />
              <path d="M4 6h8M4 10h8" />
            </svg>
            <span>marketing-data-service</span>
          </a>
          {!page.isClosed && (
            <nav aria-label="Pages">
              {SECTIONS.map(([path, name]) => (
                <a
                  href={path}
                  aria-current={page.section === path ? "page" : undefined}
                >
                  {name}
                </a>
              ))}
            </nav>
          )}
          {page.isSignedIn && (
            <form method="post" action="/session/end">
              <button class="quiet" type="submit">Sign out</button>
            </form>
          )}
        </header>
        <main
          id="main"
          tabindex={-1}
          data-follow={page.follow?.run_id}
          data-status={page.follow?.status}
          data-version={page.version}
        >
          {page.body}
        </main>
        <footer>
          {!page.isClosed && <span>Version {VERSION}. All times are UTC.</span>}
          {!page.isClosed && (
            <span>
              <a href="/health">Health</a> <a href="/metrics">Metrics</a>{" "}
              <a href="/openapi.json">OpenAPI</a>
            </span>
          )}
        </footer>
        <p id="news" class="unseen" role="status"></p>
        <script nonce={page.nonce}>{raw(SCRIPT)}</script>
      </body>
    </html>
  );
}

/** A file beside this one, without its comments and indentation, as it is part of every page. */
function readAsset(name: string): string {
  return Deno.readTextFileSync(new URL(name, import.meta.url))
    .replaceAll(/^\s*\/\*[\s\S]*?\*\/\s*$|^\s*\/\/.*$/gm, "")
    .replaceAll(/\n\s*/g, "\n").trim();
}
