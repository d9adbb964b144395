/** The dashboard: is all well, what do the tables hold, what have the last runs done. */
import type { Child } from "hono/jsx";
import type { Check, Health } from "../../service/health.ts";
import type { RunOutcome, TableHistory } from "../../runs/history.ts";
import type { LiveRun } from "../../service/live_runs.ts";
import { formatCount, formatSeconds } from "../../format.ts";
import { describeChange } from "../../runs/describe.ts";
import type { RunState } from "../../runs/run.ts";
import type { TableDeclaration } from "../../tables/declaration.ts";
import {
  DurationChart,
  RowsChart,
  TableDurationChart,
} from "./components/charts.tsx";
import { Icon, Status } from "./components/icons.tsx";
import { LiveRow } from "./components/live_row.tsx";
import { LoadButton } from "./components/load_button.tsx";
import { Distance, Moment } from "./components/moment.tsx";
import { RunTable } from "./components/run_table.tsx";

/** What the overview shows. */
export interface Overview {
  readonly now: Date;
  readonly health: Health;
  /** The last runs, newest first. */
  readonly runs: readonly RunOutcome[];
  /** The declared tables, and the histories of those that were loaded. */
  readonly tables: readonly TableDeclaration[];
  readonly histories: readonly TableHistory[];
  /** The run that is going on or waits. */
  readonly current: RunOutcome | undefined;
  readonly live: LiveRun | undefined;
  readonly nextTick: Date | undefined;
  /** Why no load can be asked for. */
  readonly unsupportedReason: string | undefined;
}

/** Runs in the list; the charts have more. */
const LISTED = 8;

/** The page's content. */
export function OverviewPage(overview: Overview) {
  const { now, health, runs, tables, histories } = overview;
  const last = runs.find((run) => run.finished_at !== null);
  const oldestFirst = runs.filter((run) => run.finished_at !== null)
    .toReversed();
  const counts = (["failed", "interrupted"] as const).map((state) =>
    [
      state,
      oldestFirst.filter(({ status }) => status === state).length,
    ] as const
  ).filter(([state, count]) => count > 0 || state === "failed");
  return (
    <>
      <Verdict {...overview} last={last} />
      <dl class="facts">
        <Fact name="Source">
          <Database check={health.checks.olist} />
        </Fact>
        <Fact name="Warehouse">
          <Database check={health.checks.dwh} />
        </Fact>
        <Fact name="Last run">
          {last
            ? (
              <>
                <Status state={last.status} />
                <small>
                  <a href={`/runs/${last.run_id}`}>
                    <Distance at={last.finished_at!} now={now} />
                  </a>{" "}
                  by {last.trigger}, took {formatSeconds(last.duration ?? 0)}
                </small>
              </>
            )
            : (
              <span class="none">
                {health.checks.dwh.status === "healthy" ? "None" : "Unknown"}
              </span>
            )}
        </Fact>
        <Fact name="Next run">
          {overview.nextTick
            ? (
              <>
                <Distance at={overview.nextTick} now={now} />
                <small>
                  <Moment at={overview.nextTick} now={now} />
                </small>
              </>
            )
            : (
              <>
                <span class="none">Not scheduled</span>
                <small>LOAD_SCHEDULE is not set</small>
              </>
            )}
        </Fact>
      </dl>
      <div class="cards">
        {tables.map((table) => (
          <TableCard
            {...overview}
            name={table.name}
            path={[table.source, table.target].map((t) =>
              `${t.schema}.${t.name}`
            )}
            history={histories.find((t) => t.table === table.name)}
            oldestFirst={oldestFirst}
          />
        ))}
      </div>
      <section class="card" aria-labelledby="runs-title">
        <div class="head">
          <h2 id="runs-title">Runs</h2>
          <p>
            {oldestFirst.length > 0 && (
              <>
                {oldestFirst.length === 1
                  ? "One run"
                  : `The last ${oldestFirst.length}`}: {counts.map((
                    [state, count],
                  ) => (
                    <>
                      <a href={`/runs?status=${state}`}>
                        {count} {state}
                      </a>,{" "}
                    </>
                  ))}
                <a href="/runs">All runs</a>
              </>
            )}
          </p>
        </div>
        {runs.length === 0
          ? (
            <p class="empty">
              {health.checks.dwh.status === "healthy"
                ? "No load has run yet. The first one copies everything; those after it copy what differs."
                : "The history is in the warehouse; it is shown when that answers."}
            </p>
          )
          : (
            <>
              <DurationChart runs={oldestFirst} />
              <RunTable
                runs={runs.slice(0, LISTED)}
                caption="The last runs, newest first"
                now={now}
              />
            </>
          )}
      </section>
    </>
  );
}

/** The one sentence that a passer-by reads, and the button. */
function Verdict(
  { now, health, current, last, tables, unsupportedReason }: Overview & {
    last: RunOutcome | undefined;
  },
) {
  const { state, title, detail } = verdictOf(health, current, last, tables);
  return (
    <section class="verdict">
      <Icon state={state} />
      <div>
        <h1>{title}</h1>
        <p>
          {detail ?? (last && (
            <>
              As of{" "}
              <Distance
                at={last.source_snapshot_at ?? last.finished_at!}
                now={now}
              />,{" "}
              {last.entries.every((e) =>
                  e.status === "success" && e.checksum !== null
                )
                ? "count and content"
                : "count"} verified.
            </>
          ))}
        </p>
      </div>
      <LoadButton unsupportedReason={unsupportedReason} />
    </section>
  );
}

function verdictOf(
  { checks }: Health,
  current: RunOutcome | undefined,
  last: RunOutcome | undefined,
  tables: readonly TableDeclaration[],
): { state: RunState; title: string; detail?: Child } {
  for (
    const [check, name] of [
      [checks.dwh, "warehouse"],
      [checks.olist, "source"],
    ] as const
  ) {
    if (check.status === "healthy") continue;
    return {
      state: "failed",
      title: `The ${name} is out of reach`,
      detail: check.error,
    };
  }
  if (current?.status === "running") {
    return {
      state: "running",
      title: "A load is running",
      detail: <a href={`/runs/${current.run_id}`}>Watch this run</a>,
    };
  }
  if (current) {
    return {
      state: "queued",
      title: "A load waits for its turn",
      detail: <a href={`/runs/${current.run_id}`}>See this run</a>,
    };
  }
  if (!last) {
    return {
      state: "queued",
      title: "No load has run yet",
      detail: "Both databases answer: the first load can begin.",
    };
  }
  if (last.status !== "succeeded") {
    return {
      state: last.status,
      title: last.status === "failed"
        ? "The last load failed"
        : "The last load was interrupted",
      detail: (
        <>
          {last.error} <a href={`/runs/${last.run_id}`}>See this run</a>
        </>
      ),
    };
  }
  return {
    state: "succeeded",
    title: last.tables.length === tables.length
      ? tables.length === 2
        ? "Both tables equal their source"
        : "All tables equal their source"
      : `${last.tables.join(", ")} equals its source`,
  };
}

function Fact({ name, children }: { name: string; children?: Child }) {
  return (
    <div>
      <dt>{name}</dt>
      <dd>{children}</dd>
    </div>
  );
}

function Database({ check }: { check: Check }) {
  return check.status === "healthy"
    ? (
      <>
        <Status state="succeeded" text="Answers" />
        <small>in {check.latency_ms.toFixed(1)} ms</small>
      </>
    )
    : (
      <>
        <Status state="failed" text="No answer" />
        <small>see above</small>
      </>
    );
}

function TableCard(
  { name, path, history, now, oldestFirst, current, live }: Overview & {
    name: string;
    path: readonly string[];
    history: TableHistory | undefined;
    oldestFirst: readonly RunOutcome[];
  },
) {
  const loaded = history?.loaded;
  const runs = oldestFirst.filter((run) => run.tables.includes(name));
  const lastEntry = runs.at(-1)?.entries.find((e) => e.table === name);
  return (
    <section class="card" aria-labelledby={`t-${name}`}>
      <h2 id={`t-${name}`}>{name}</h2>
      <p class="path">{path.join(" → ")}</p>
      <p class="figure">
        <b>{loaded ? formatCount(loaded.entry.records_loaded) : "–"}</b> rows
      </p>
      <dl class="pairs">
        <div>
          <dt>Fresh as of</dt>
          <dd>
            {loaded
              ? (
                <Distance
                  at={loaded.source_snapshot_at ?? loaded.finished_at}
                  now={now}
                />
              )
              : "–"}
          </dd>
        </div>
        <div>
          <dt>Last change</dt>
          <dd>
            {history?.written_at
              ? <Distance at={history.written_at} now={now} />
              : "–"}
          </dd>
        </div>
        <div>
          <dt>Last run</dt>
          <dd>{lastEntry ? describeChange(lastEntry) : "–"}</dd>
        </div>
      </dl>
      <div class="charts">
        <div>
          <h3>
            Rows, log scale <span class="key up">inserted</span>{" "}
            <span class="key down">deleted</span>
          </h3>
          <RowsChart runs={runs} table={name} />
        </div>
        <div>
          <h3>Duration</h3>
          <TableDurationChart runs={runs} table={name} />
        </div>
      </div>
      <LiveRow
        table={name}
        progress={live?.tables.get(name)}
        isActive={current?.tables.includes(name) ?? false}
        idle="No load is running"
      />
    </section>
  );
}
