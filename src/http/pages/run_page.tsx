/** One run: progress, result, and the cause of a failure. */
import type { DifferingRows } from "../../diff/differing_rows.ts";
import type { LoadEvent } from "../../runs/event.ts";
import type { RunDetails } from "../../runs/history.ts";
import type { LiveRun } from "../../service/live_runs.ts";
import {
  formatBytes,
  formatCount,
  formatQuantity,
  formatSeconds,
} from "../../format.ts";
import {
  describeChange,
  describeVerification,
  tallyOf,
} from "../../runs/describe.ts";
import type { TableDeclaration } from "../../tables/declaration.ts";
import { DifferingRowCard } from "./components/differing_rows.tsx";
import { Icon, nameOf, Status } from "./components/icons.tsx";
import { Json } from "./components/json.tsx";
import { LiveRow } from "./components/live_row.tsx";
import { Distance, Moment } from "./components/moment.tsx";
import { Pair } from "./components/pair.tsx";
import { TableCard } from "./components/table_card.tsx";
import {
  type ListRow,
  MAX_CARDS,
  MAX_EXPLAINED,
  TableList,
} from "./components/table_list.tsx";
import { Timeline } from "./components/timeline.tsx";

export function RunPage({ now, run, live, tables, rows }: {
  readonly now: Date;
  readonly run: RunDetails;
  readonly live: LiveRun | undefined;
  readonly tables: readonly TableDeclaration[];
  /** The first rows that the load changed, by table. */
  readonly rows: ReadonlyMap<string, DifferingRows>;
}) {
  return (
    <>
      <p class="crumb">
        <a href="/runs">Runs</a> / <code>{run.run_id}</code>
      </p>
      <section class="verdict">
        <Icon state={run.status} />
        <div>
          <h1>{run.status === "running" ? "Loading" : nameOf(run.status)}</h1>
          <p>
            Requested by {run.trigger}{" "}
            <Distance at={run.requested_at} now={now} />
            {run.duration !== null && `, took ${formatSeconds(run.duration)}`}
          </p>
        </div>
      </section>
      <Outcome run={run} />
      {run.tables.length > MAX_CARDS ? <ManyTables run={run} live={live} /> : (
        <>
          <section class="card" aria-labelledby="timeline-title">
            <h2 id="timeline-title">Timeline</h2>
            <Timeline run={run} tables={run.tables} />
          </section>
          <div class="cards">
            {run.tables.map((name) => (
              <TableResult
                name={name}
                table={tables.find((table) => table.name === name)}
                run={run}
                live={live}
              />
            ))}
          </div>
        </>
      )}
      {[...rows].map(([name, found]) => (
        <DifferingRowCard name={name} found={found} />
      ))}
      <section class="card" aria-labelledby="request-title">
        <h2 id="request-title">Request</h2>
        <dl class="pairs request">
          <Pair name="Requested">
            <Moment at={run.requested_at} />
          </Pair>
          <Pair name="Started">
            {run.started_at && <Moment at={run.started_at} />}
          </Pair>
          <Pair name="Finished">
            {run.finished_at && <Moment at={run.finished_at} />}
          </Pair>
          <Pair name="Source as of">
            {run.source_snapshot_at && <Moment at={run.source_snapshot_at} />}
          </Pair>
          <Pair name="Mode">
            {[
              run.mode,
              run.atomic && "atomic",
              run.recreate && "recreate",
              run.allow_shrink && "allow shrink",
            ].filter(Boolean).join(", ")}
          </Pair>
          <Pair name="Run by">{run.runner}</Pair>
        </dl>
      </section>
      <section class="card" aria-labelledby="event-title">
        <h2 id="event-title">Event</h2>
        {run.event
          ? (
            <details id="event">
              <summary>
                <code>{run.event.event_type}</code>
              </summary>
              <Json value={shortened(run.event)} />
            </details>
          )
          : <p class="empty">The event is published when the run ends.</p>}
      </section>
    </>
  );
}

/** Number of tables in the timeline of many tables. */
const SLOWEST = 5;

/** The slowest tables, the warnings, and the list of all tables. */
function ManyTables(
  { run, live }: { run: RunDetails; live: LiveRun | undefined },
) {
  const loads = new Map(run.table_loads.map((load) => [load.table, load]));
  const loaded = run.table_loads.flatMap(({ result }) =>
    result.status === "success" ? [result] : []
  );
  const slowest = loaded.toSorted((a, b) => b.duration - a.duration)
    .slice(0, SLOWEST).map(({ table }) => table);
  const warnings = loaded.flatMap(({ table, warnings }) =>
    warnings.map((warning) => `${table}: ${warning}`)
  );
  const more = warnings.splice(MAX_EXPLAINED).length;
  if (more > 0) warnings.push(formatQuantity(more, "more warning"));
  const rows = run.tables.map((name): ListRow => {
    const entry = loads.get(name)?.result;
    const hasFailed = entry?.status === "failure";
    const numbers = entry?.status === "success" ? entry : undefined;
    return {
      name,
      hasFailed,
      cells: [
        hasFailed
          ? Status({ state: "failed", text: "Not loaded" })
          : entry
          ? describeChange(entry)
          : live?.tables.get(name)?.phase ??
            (run.finished_at === null ? "waiting" : undefined),
        numbers && formatCount(numbers.records_loaded),
        numbers && formatCount(numbers.rows_inserted),
        numbers && formatCount(numbers.rows_deleted),
        {
          value: numbers?.bytes_copied,
          text: numbers && formatBytes(numbers.bytes_copied),
        },
        {
          value: numbers?.duration,
          text: numbers && formatSeconds(numbers.duration),
        },
      ],
    };
  });
  return (
    <>
      {slowest.length > 0 && (
        <section class="card" aria-labelledby="timeline-title">
          <h2 id="timeline-title">Slowest tables</h2>
          <Timeline run={run} tables={slowest} />
        </section>
      )}
      {warnings.length > 0 && (
        <section class="card" aria-labelledby="warnings-title">
          <h2 id="warnings-title">Warnings</h2>
          <Warnings warnings={warnings} />
        </section>
      )}
      <TableList
        kind="result"
        columns={[
          { name: "Result", kind: "state" },
          { name: "Rows", kind: "number" },
          { name: "Inserted", kind: "number" },
          { name: "Deleted", kind: "number" },
          { name: "Copied", kind: "number" },
          { name: "Took", kind: "number" },
        ]}
        rows={rows}
      />
    </>
  );
}

/** Returns the event without the entries of most tables, where they would fill the page. */
function shortened(event: LoadEvent): unknown {
  const short = (entries: readonly unknown[]) =>
    entries.length <= MAX_CARDS ? entries : [
      ...entries.slice(0, MAX_CARDS),
      `${
        formatCount(entries.length - MAX_CARDS)
      } more in GET /runs/${event.run_id}`,
    ];
  if (event.status === "failure") {
    const failed = event.details.results.toSorted((a, b) =>
      a.status.localeCompare(b.status)
    );
    return { ...event, details: { ...event.details, results: short(failed) } };
  }
  const { results, integrity_checks } = event.results;
  return {
    ...event,
    results: {
      ...event.results,
      results: short(results),
      integrity_checks: short(integrity_checks),
    },
  };
}

/** The outcome. Its place is kept while the run continues. */
function Outcome({ run }: { run: RunDetails }) {
  const failures = failuresOf(run);
  if (failures.length > 0) {
    return (
      <section class="outcome-panel bad" aria-label="What went wrong">
        {failures.slice(0, MAX_EXPLAINED).map(({ message, remedy }) => (
          <div>
            <p class="message">{message}</p>
            {remedy && (
              <p class="remedy">
                <b>What to do</b> {remedy}
              </p>
            )}
          </div>
        ))}
        {failures.length > MAX_EXPLAINED && (
          <div>
            {formatQuantity(failures.length - MAX_EXPLAINED, "more table")}{" "}
            failed.
          </div>
        )}
      </section>
    );
  }
  return (
    <section
      class={run.finished_at === null ? "outcome-panel waits" : "outcome-panel"}
      aria-label="Outcome"
    >
      <p>{describeState(run)}</p>
    </section>
  );
}

/** Describes the tables of a run without failures. */
function describeState({ status, table_loads: loads }: RunDetails): string {
  if (status === "queued") {
    return "The run starts when no other load is running.";
  }
  if (status === "running") {
    return "Readers see the old rows of a table until its new rows are verified.";
  }
  const verified = describeVerification(
    tallyOf(loads.map(({ result }) => result)),
  );
  return `${
    loads.length === 1 ? "The table equals its" : "The tables equal their"
  } source. The load verified ${verified} before the commit.`;
}

/** Returns the different failures of the tables, or the failure of the run if no table failed. */
function failuresOf(run: RunDetails) {
  const entries = run.table_loads.flatMap(({ result }) =>
    result.status === "failure" ? [result] : []
  );
  // A table that was only rolled back with another one is not the cause.
  const causes = entries.filter(({ code }) => code !== "rolled_back");
  const failures = causes.length > 0
    ? causes.map(({ error, message, remedy }) => ({
      message: message ?? error,
      remedy,
    }))
    : run.error !== null
    ? [{ message: run.error, remedy: undefined }]
    : [];
  return failures.filter(({ message }, i) =>
    failures.findIndex((other) => other.message === message) === i
  );
}

function TableResult(
  { name, table, run, live }: {
    name: string;
    table: TableDeclaration | undefined;
    run: RunDetails;
    live: LiveRun | undefined;
  },
) {
  const load = run.table_loads.find(({ table }) => table === name);
  const entry = load?.result;
  const loaded = entry?.status === "success" ? entry : undefined;
  const check = load?.integrity_check;
  const isActive = run.finished_at === null;
  return (
    <TableCard name={name} table={table}>
      <p class="figure">
        {entry
          ? (
            <Status
              state={loaded ? "succeeded" : "failed"}
              text={loaded ? describeChange(loaded) : "Not loaded"}
            />
          )
          : <Status state={run.status} />}
      </p>
      <dl class="pairs">
        <Pair name="Rows">{loaded && formatCount(loaded.records_loaded)}</Pair>
        <Pair name="Inserted">
          {loaded && formatCount(loaded.rows_inserted)}
        </Pair>
        <Pair name="Deleted">{loaded && formatCount(loaded.rows_deleted)}</Pair>
        <Pair name="Copied">{loaded && formatBytes(loaded.bytes_copied)}</Pair>
        <Pair name="Took">{loaded && formatSeconds(loaded.duration)}</Pair>
        <Pair name="Attempts">{entry && String(entry.attempts)}</Pair>
        {check?.checks && (
          <Pair name="Checks that hold" isLong>
            {check.checks.map((result) => result.check).join("; ")}
          </Pair>
        )}
        <Pair name="Checksum" isLong>
          {loaded?.checksum && <code>{loaded.checksum}</code>}
        </Pair>
      </dl>
      <Warnings warnings={loaded?.warnings ?? []} />
      <LiveRow
        table={name}
        progress={isActive ? live?.tables.get(name) : undefined}
        isActive={isActive}
        idle={check
          ? `Committed: ${
            formatQuantity(check.source_count, "row")
          } in the source, ${formatCount(check.target_count)} in the table`
          : "Not loaded. The old rows remain"}
      />
    </TableCard>
  );
}

function Warnings({ warnings }: { warnings: readonly string[] }) {
  if (warnings.length === 0) return null;
  return (
    <ul class="warnings" aria-label="Warnings">
      {warnings.map((warning) => (
        <li>
          <Status state="interrupted" text={warning} />
        </li>
      ))}
    </ul>
  );
}
