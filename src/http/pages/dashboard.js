// Keeps an open page up to date. Every page works without this script.

let stream;
let isRefreshing = false;

/** Milliseconds between two polls. */
const POLL_MILLISECONDS = 5000;

/** Milliseconds after which the page is refreshed without a change. */
const REFRESH_MILLISECONDS = 30_000;

let refreshedAt = Date.now();

const main = () => document.querySelector("main");
const news = document.querySelector("#news");

/** Replaces the content of the page by the current one. Keeps focus and open details. */
async function refresh() {
  if (isRefreshing) return;
  isRefreshing = true;
  try {
    const response = await fetch(location.href, {
      headers: { accept: "text/html" },
    });
    // The session has ended. The page is now the sign-in form.
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
    document.dispatchEvent(new Event("refreshed"));
    if (focused && focused !== document.activeElement.id) {
      document.getElementById(focused)?.focus({ preventScroll: true });
    }
    const after = next.querySelector("h1").textContent;
    if (after !== before) news.textContent = after;
    refreshedAt = Date.now();
    follow();
  } catch {
    // The service does not answer. The next poll retries.
  } finally {
    isRefreshing = false;
  }
}

/** Returns the URL of the overview. A proxy may serve it below a path. */
function root() {
  return document.querySelector(".brand").href;
}

/** Follows the run that the page shows, until it ends. */
function follow() {
  stream?.close();
  const { follow: run, status } = main().dataset;
  if (!run) return;
  stream = new EventSource(`${root()}runs/${run}/stream`);
  const show = ({ data }) => {
    const state = JSON.parse(data);
    // A queued run has started.
    if (status !== state.status) return refresh();
    for (const table of state.tables) {
      showTable(table);
      document.dispatchEvent(new CustomEvent("progress", { detail: table }));
    }
  };
  stream.addEventListener("state", show);
  stream.addEventListener("progress", show);
  stream.addEventListener("end", () => {
    stream.close();
    refresh();
  });
}

const count = new Intl.NumberFormat("en");

const UNITS = ["B", "kB", "MB", "GB", "TB"];

/** Returns a number of bytes as the server prints it. */
function formatBytes(bytes) {
  let unit = 0;
  for (; bytes >= 999.5 && unit < UNITS.length - 1; unit++) bytes /= 1000;
  return `${
    unit === 0 || bytes >= 99.95 ? Math.round(bytes) : bytes.toFixed(1)
  } ${UNITS[unit]}`;
}

/** Shows the progress of one table. */
function showTable({ table, phase, rows, bytes, total_rows }) {
  const row = document.querySelector(
    `.live[data-table="${CSS.escape(table)}"]`,
  );
  const bar = row?.querySelector("progress");
  if (!bar) return;
  const done = total_rows ? `${count.format(rows)} of ` : "";
  const all = total_rows || rows;
  const size = bytes === 0 ? "" : `, ${formatBytes(bytes)}`;
  row.querySelector("[data-part=phase]").textContent = phase;
  row.querySelector("[data-part=rows]").textContent = rows > 0
    ? `${done}${count.format(all)} row${all === 1 ? "" : "s"}${size}`
    : "";
  bar.max = total_rows || 1;
  bar.value = phase === "wait" || phase === "commit"
    ? bar.max
    : total_rows
    ? rows
    : 0;
}

/** Refreshes the page when there is a new run, or when the page is old. */
async function poll() {
  const { version, follow: run } = main().dataset;
  if (document.hidden || (version === undefined && !run)) return;
  if (Date.now() - refreshedAt >= REFRESH_MILLISECONDS) return await refresh();
  // The browser reopens a closed stream, except when the service is stopping.
  if (run && stream?.readyState !== EventSource.OPEN) return await refresh();
  if (version === undefined) return;
  try {
    const response = await fetch(root(), {
      headers: { accept: "application/json" },
    });
    const { last_run: last } = response.ok ? await response.json() : {};
    const newest = last ? `${last.run_id} ${last.status}` : "";
    if (!response.ok || newest !== version) await refresh();
  } catch {
    // The next poll retries.
  }
}

follow();
setInterval(poll, POLL_MILLISECONDS);
document.addEventListener("visibilitychange", poll);
