/** The dashboard: health, tables and recent runs. */
import type { Child } from "hono/jsx";
import type { Check, Health } from "../../service/health.ts";
import type {
  RunOutcome,
  RunSummary,
  TableHistory,
} from "../../runs/history.ts";
import type { LiveRun } from "../../service/live_runs.ts";
import {
  formatCount,
  formatDistance,
  formatSeconds,
  formatTables,
} from "../../format.ts";
import {
  describeChange,
  describeTally,
  describeVerification,
} from "../../runs/describe.ts";
import type { RunState } from "../../runs/run.ts";
import type { TableDeclaration } from "../../tables/declaration.ts";
import { DurationChart, RowsChart } from "./components/charts.tsx";
import { Icon, Status } from "./components/icons.tsx";
import { LiveRow } from "./components/live_row.tsx";
import { Distance, Moment } from "./components/moment.tsx";
import { Pair } from "./components/pair.tsx";
import { Sparkline } from "./components/sparkline.tsx";
import { RunTable } from "./components/run_table.tsx";
import { TableCard } from "./components/table_card.tsx";
import {
  type ListRow,
  MAX_CARDS,
  MAX_EXPLAINED,
  TableList,
} from "./components/table_list.tsx";

export interface Overview {
  readonly now: Date;
  readonly health: Health;
  /** Recent runs, newest first. */
  readonly runs: readonly RunOutcome[];
  /** The runs of the chart, newest first. */
  readonly charted: readonly RunSummary[];
  readonly tables: readonly TableDeclaration[];
  /** The histories of the tables that were loaded. */
  readonly histories: readonly TableHistory[];
  /** The running or queued run. */
  readonly current: RunSummary | undefined;
  readonly live: LiveRun | undefined;
  readonly nextTick: Date | undefined;
  /** Why the service could not create or update its schema in the warehouse. */
  readonly startFailure: string | undefined;
  /** Why a load cannot start now. */
  readonly notReadyReason: string | undefined;
}

/** Number of runs in the list. The charts show more. */
export const LISTED = 8;

export function OverviewPage(overview: Overview) {
  const { now, health, runs, charted, tables, nextTick } = overview;
  const last = runs.find((run) => run.finished_at !== null);
  const finished = charted.filter((run) => run.finished_at !== null);
  const isLong = tables.length > MAX_CARDS;
  return (
    <>
      <Verdict {...overview} last={last} />
      <dl class="facts">
        <Pair name="Source">
          <Database check={health.checks.olist} />
        </Pair>
        <Pair name="Warehouse">
          <Database check={health.checks.dwh} />
        </Pair>
        <Pair name="Last run">
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
        </Pair>
        <Pair name="Next run">
          {nextTick
            ? <Distance at={nextTick} now={now} />
            : <span class="none">Not scheduled</span>}
          <small>
            {nextTick
              ? <Moment at={nextTick} now={now} />
              : "LOAD_SCHEDULE is not set"}
          </small>
        </Pair>
      </dl>
      {!isLong && (
        <div class="cards">
          {tables.map((table) => TableSummary({ ...overview, table }))}
        </div>
      )}
      <section class="card" aria-labelledby="runs-title">
        <div class="head">
          <h2 id="runs-title">Runs</h2>
          <p>
            <Counts runs={finished} />
          </p>
        </div>
        {runs.length === 0
          ? (
            <p class="empty">
              {health.checks.dwh.status === "healthy"
                ? "No load has run yet. The first load copies all rows. Later loads copy only rows that differ."
                : "The history is in the warehouse, which is unhealthy."}
            </p>
          )
          : (
            <>
              <DurationChart runs={finished.toReversed()} />
              <RunTable
                runs={runs.slice(0, LISTED)}
                caption="Recent runs, newest first"
                now={now}
              />
            </>
          )}
      </section>
      {isLong && <Tables {...overview} />}
    </>
  );
}

/** The list of all tables. */
function Tables({ tables, histories, now, live }: Overview) {
  let explained = 0;
  const rows = tables.map(({ name, group }, i): ListRow => {
    const { loaded, failed, durations } = histories[i] ?? {};
    const freshAt = loaded
      ? new Date(loaded.source_snapshot_at ?? loaded.finished_at)
      : undefined;
    const entry = loaded?.entry;
    const phase = live?.tables.get(name)?.phase;
    return {
      name,
      group,
      hasFailed: Boolean(failed),
      cells: [
        entry && formatCount(entry.records_loaded),
        {
          value: freshAt && Math.floor(freshAt.getTime() / 1000),
          text: freshAt && formatDistance(freshAt, now),
        },
        phase ??
          (failed
            ? ++explained > MAX_EXPLAINED ? "failed" : (
              <>
                <a href={`/runs/${failed.run_id}`}>
                  <Status state="failed" />
                </a>
                <small class="clip">{failed.entry.error}</small>
              </>
            )
            : entry && describeChange(entry)),
        {
          value: entry?.duration,
          text: entry && formatSeconds(entry.duration),
        },
        Sparkline({ values: durations ?? [] }),
      ],
    };
  });
  return (
    <TableList
      kind="overview"
      columns={[
        { name: "Rows", kind: "number" },
        { name: "Fresh as of" },
        { name: "Last result", kind: "state" },
        { name: "Took", kind: "number" },
        { name: "Last loads" },
      ]}
      rows={rows}
    />
  );
}

/** Number of runs that did not succeed, with links to them. */
function Counts({ runs }: { runs: readonly RunSummary[] }) {
  if (runs.length === 0) return null;
  const count = (state: RunState) =>
    runs.filter(({ status }) => status === state).length;
  return (
    <>
      {runs.length === 1 ? "One run" : `The last ${runs.length}`}:{" "}
      {(["failed", "interrupted"] as const)
        .filter((state) => state === "failed" || count(state) > 0)
        .map((state) => (
          <>
            <a href={`/runs?status=${state}`}>{count(state)} {state}</a>,{" "}
          </>
        ))}
      <a href="/runs">All runs</a>
    </>
  );
}

/** The summary of the page in one sentence, and the button. */
function Verdict(
  overview: Overview & { last: RunOutcome | undefined },
) {
  const { now, last, notReadyReason } = overview;
  const { state, title, detail } = verdictOf(overview);
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
              />, {describeVerification(last.tally)} verified.
            </>
          ))}
        </p>
      </div>
      {/* Needs no script. It leads to the page of the run. */}
      <form class="load" method="post" action="/load-async">
        <button
          type="submit"
          id="load"
          disabled={notReadyReason !== undefined}
          aria-describedby="load-hint"
        >
          Load now
        </button>
        <p id="load-hint">
          {notReadyReason ??
            "Compares the tables and copies rows that differ."}
        </p>
      </form>
    </section>
  );
}

function verdictOf(
  { health: { checks }, startFailure, current, last, tables }: Overview & {
    last: RunOutcome | undefined;
  },
): { state: RunState; title: string; detail?: Child } {
  const unhealthy = checks.dwh.status !== "healthy"
    ? { name: "warehouse", check: checks.dwh }
    : checks.olist.status !== "healthy"
    ? { name: "source", check: checks.olist }
    : undefined;
  if (unhealthy) {
    return {
      state: "failed",
      title: `The ${unhealthy.name} is unhealthy`,
      detail: unhealthy.check.error,
    };
  }
  if (startFailure) {
    return {
      state: "failed",
      title: "The service cannot prepare the warehouse",
      detail: startFailure,
    };
  }
  if (current) {
    const isRunning = current.status === "running";
    return {
      state: current.status,
      title: isRunning ? "A load is running" : "A load is queued",
      detail: (
        <a href={`/runs/${current.run_id}`}>
          {isRunning ? "Watch this run" : "See this run"}
        </a>
      ),
    };
  }
  if (!last) {
    return {
      state: "queued",
      title: "No load has run yet",
      detail: "Both databases are healthy. The first load can start.",
    };
  }
  if (last.status !== "succeeded") {
    return {
      state: last.status,
      title: `The last load ${
        last.status === "failed" ? "failed" : "was interrupted"
      }`,
      detail: (
        <>
          {last.entries.length > 0 || last.tally.failed === 0
            ? last.error
            : `${describeTally(last.tally)}.`}{" "}
          <a href={`/runs/${last.run_id}`}>See this run</a>
        </>
      ),
    };
  }
  return {
    state: "succeeded",
    title: titleOf(last.tables, tables.length),
  };
}

/** Returns which tables a successful run made equal. */
function titleOf(loaded: readonly string[], declared: number): string {
  const verb = loaded.length === 1 ? "equals its" : "equal their";
  const subject = loaded.length !== declared || declared === 1
    ? formatTables(loaded)
    : declared === 2
    ? "Both tables"
    : `All ${formatCount(declared)} tables`;
  return `${subject} ${verb} source`;
}

function Database({ check }: { check: Check }) {
  const isHealthy = check.status === "healthy";
  return (
    <>
      <Status
        state={isHealthy ? "succeeded" : "failed"}
        text={isHealthy ? "Healthy" : "Unhealthy"}
      />
      <small>
        {isHealthy
          ? `answers in ${formatSeconds(check.latency_ms / 1000)}`
          : "see the error above"}
      </small>
    </>
  );
}

/** The rows, the age and the charts of one table. */
function TableSummary(
  { table, histories, now, runs: recent, current, live }: Overview & {
    table: TableDeclaration;
  },
) {
  const { name } = table;
  const history = histories.find((history) => history.table === name);
  const loaded = history?.loaded;
  const runs = recent.toReversed().filter((run) =>
    run.finished_at !== null && run.tables.includes(name)
  );
  const lastEntry = runs.at(-1)?.entries.find((e) => e.table === name);
  return (
    <TableCard name={name} table={table}>
      <p class="figure">
        <b>{loaded ? formatCount(loaded.entry.records_loaded) : "–"}</b>{" "}
        {loaded?.entry.records_loaded === 1 ? "row" : "rows"}
      </p>
      <dl class="pairs">
        <Pair name="Fresh as of">
          {loaded && (
            <Distance
              at={loaded.source_snapshot_at ?? loaded.finished_at}
              now={now}
            />
          )}
        </Pair>
        <Pair name="Last change">
          {history?.written_at && (
            <Distance
              at={history.written_at}
              now={now}
            />
          )}
        </Pair>
        <Pair name="Last run">{lastEntry && describeChange(lastEntry)}</Pair>
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
          <DurationChart runs={runs} table={name} />
        </div>
      </div>
      <LiveRow
        table={name}
        progress={live?.tables.get(name)}
        isActive={current?.tables.includes(name) ?? false}
        idle="No load is running"
      />
    </TableCard>
  );
}
