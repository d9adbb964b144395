/** What a browser sees at `/`. */
import type { RunSummary } from "../history.ts";
import { escapeHtml, page } from "./page.ts";

/** The dashboard as HTML. `nonce` is what the content security policy lets styles and scripts through by. */
export function dashboard(
  runs: readonly RunSummary[],
  nonce: string,
): string {
  const rows = runs.map((run) =>
    `<tr><td><a href="/runs/${run.run_id}">${run.run_id}</a></td><td>${
      escapeHtml(run.status)
    }</td><td>${escapeHtml(run.trigger)}</td><td>${
      escapeHtml(run.requested_at)
    }</td><td>${escapeHtml(run.error ?? "")}</td></tr>`
  );
  return page(
    "marketing-data-service",
    nonce,
    `<p><a href="/docs">API</a> · <a href="/health">health</a> · <a href="/metrics">metrics</a></p>
<table><tr><th>run</th><th>status</th><th>trigger</th><th>requested</th><th>error</th></tr>${
      rows.join("")
    }</table>`,
  );
}
