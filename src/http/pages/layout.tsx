/** The layout of every page. */
import type { Context } from "hono";
import { accepts } from "hono/accepts";
import type { Child } from "hono/jsx";
import type { RunState } from "../../runs/run.ts";
import type { ErrorKind } from "../../errors.ts";
import { VERSION } from "../../identity.ts";
import { LIST_SCRIPT, LIST_STYLESHEET, SCRIPT, STYLESHEET } from "./assets.ts";
import { Icons } from "./components/icons.tsx";

const ICON =
  `data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E%3Crect width='16' height='16' rx='4' fill='%230c6b63'/%3E%3Cpath d='M4 6h8M4 10h8' stroke='%23fff' stroke-width='2' stroke-linecap='round'/%3E%3C/svg%3E`;

/** Id of the last element of a page. The script writes the news into it. */
const LAST = "news";

interface Page {
  /** Title in the browser's tab, before the name of the service. */
  readonly title: string;
  /** Navigation entry that the page belongs to. */
  readonly section?: "/" | "/runs" | "/docs";
  /** Omits the navigation, for visitors who are not signed in. */
  readonly isClosed?: boolean;
  /** The queued or running run whose progress the page follows. */
  readonly follow?:
    | { readonly run_id: string; readonly status: RunState }
    | undefined;
  /** The newest run. The script refreshes the page when it changes. */
  readonly version?: string;
  /** Whether the page has a list of tables. */
  readonly hasList?: boolean;
  readonly body: Child;
}

const SECTIONS = [["/", "Overview"], ["/runs", "Runs"], ["/docs", "API"]];

/** Returns a response with a page. */
export function answerPage(
  c: Context,
  page: Page,
  status: ErrorKind["status"] | 200 = 200,
): Response {
  const isSignedIn = c.get("isSignedIn") === true;
  const html = String(<Layout {...page} isSignedIn={isSignedIn} />);
  return c.html(`<!doctype html>${relative(html, c.req.url)}`, status);
}

/** Returns a page with relative links, because a proxy may serve it below a path. */
function relative(html: string, url: string): string {
  const depth = new URL(url).pathname.split("/").length - 2;
  const root = depth > 0 ? "../".repeat(depth) : "./";
  // Quotes in texts are escaped.
  return html.replaceAll(/ (href|src|action)="\//g, ` $1="${root}`);
}

/** Returns whether the caller prefers a page to JSON, as browsers do. */
export function prefersHtml(c: Context): boolean {
  const [json, html] = ["application/json", "text/html"] as const;
  return accepts(c, {
    header: "Accept",
    supports: [json, "application/problem+json", html],
    default: json,
  }) === html;
}

function Layout(page: Page & { isSignedIn: boolean }) {
  return (
    <html lang="en">
      <head>
        <meta charset="utf-8" />
        <meta name="viewport" content="width=device-width, initial-scale=1" />
        <meta name="color-scheme" content="light dark" />
        <title>{page.title} · marketing-data-service</title>
        <link rel="icon" href={ICON} />
        {/* Nothing moves while a page arrives: it is shown when it has arrived. */}
        <link rel="expect" href={`#${LAST}`} blocking="render" />
        <link rel="stylesheet" href={STYLESHEET.path} />
        <script defer src={SCRIPT.path}></script>
        {page.hasList && (
          <>
            <link rel="stylesheet" href={LIST_STYLESHEET.path} />
            <script defer src={LIST_SCRIPT.path}></script>
          </>
        )}
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
          {!page.isClosed && (
            <>
              <span>Version {VERSION}. All times are UTC.</span>
              <span>
                <a href="/health">Health</a> <a href="/metrics">Metrics</a>{" "}
                <a href="/openapi.json">OpenAPI</a>
              </span>
            </>
          )}
        </footer>
        <p id={LAST} class="unseen" role="status"></p>
      </body>
    </html>
  );
}
