// Keeps an open page up to date. Every page is complete without it.

let stream;
let isRefreshing = false;

/** Milliseconds between two polls, and after which the page is refreshed in any case. */
const LOOK = 5000;
const RENEW = 30000;
let renewedAt = Date.now();

const main = () => document.querySelector("main");
const news = document.querySelector("#news");

/** Refreshes the content of the page from the server, and keeps the reader's position. */
async function refresh() {
  if (isRefreshing) return;
  isRefreshing = true;
  try {
    const response = await fetch(location.href, {
      headers: { accept: "text/html" },
    });
    // The session is over: the form for it is the page now.
    if (response.status === 401) return location.reload();
    const html = await response.text();
    const next = new DOMParser().parseFromString(html, "text/html")
      .querySelector("main");
    const focused = document.activeElement?.id;
    for (const { id } of document.querySelectorAll("details[open]")) {
      if (id) next.querySelector(`#${id}`)?.setAttribute("open", "");
    }
    const before = main().querySelector("h1").textContent;
    main().replaceWith(document.adoptNode(next));
    if (focused && focused !== document.activeElement.id) {
      document.getElementById(focused)?.focus({ preventScroll: true });
    }
    const after = next.querySelector("h1").textContent;
    if (after !== before) news.textContent = after;
    renewedAt = Date.now();
    follow();
  } catch {
    // The service is away: what is shown stays, and the next look tells.
  } finally {
    isRefreshing = false;
  }
}

/** Follows the run that the page shows, until it is over. */
function follow() {
  stream?.close();
  const { follow: run, status } = main().dataset;
  if (!run) return;
  stream = new EventSource(`/runs/${run}/stream`);
  const show = ({ data }) => {
    const state = JSON.parse(data);
    // What was queued has begun: its page has other words.
    if (status !== state.status) return refresh();
    for (const table of state.tables) showTable(table);
  };
  stream.addEventListener("state", show);
  stream.addEventListener("progress", show);
  stream.addEventListener("end", () => {
    stream.close();
    refresh();
  });
}

const count = new Intl.NumberFormat("en");

function showTable({ table, phase, rows, bytes, total_rows }) {
  const row = document.querySelector(`.live[data-table="${table}"]`);
  const bar = row?.querySelector("progress");
  if (!bar) return;
  const of = total_rows ? ` of ${count.format(total_rows)}` : "";
  const size = bytes === 0
    ? ""
    : bytes < 999_500
    ? `, ${(bytes / 1e3).toFixed(1)} kB`
    : `, ${(bytes / 1e6).toFixed(1)} MB`;
  row.querySelector("[data-part=phase]").textContent = phase;
  row.querySelector("[data-part=rows]").textContent = rows > 0
    ? `${count.format(rows)}${of} rows${size}`
    : "";
  bar.max = total_rows || 1;
  bar.value = phase === "wait" || phase === "commit"
    ? bar.max
    : total_rows
    ? rows
    : 0;
}

/** Looks whether there is a run that the page does not show yet. */
async function look() {
  const { version, follow: run } = main().dataset;
  if (document.hidden || (version === undefined && !run)) return;
  if (Date.now() - renewedAt >= RENEW) return await refresh();
  // A stream that was cut connects again by itself, unless the service is stopping.
  if (run && stream?.readyState !== EventSource.OPEN) return await refresh();
  if (version === undefined) return;
  try {
    const answer = await fetch("/", {
      headers: { accept: "application/json" },
    });
    const { last_run: last } = answer.ok ? await answer.json() : {};
    if (
      !answer.ok || (last ? `${last.run_id} ${last.status}` : "") !== version
    ) {
      await refresh();
    }
  } catch {
    // The next look tells.
  }
}

follow();
setInterval(look, LOOK);
document.addEventListener("visibilitychange", look);
