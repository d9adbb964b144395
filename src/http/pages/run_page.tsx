/** One run: what it is doing, or did, and why it failed. */
import type { Child } from "hono/jsx";
import type { LoadedEntry } from "../../runs/event.ts";
import type { RunDetails } from "../../runs/history.ts";
import type { LiveRun } from "../../service/live_runs.ts";
import { formatBytes, formatCount, formatSeconds } from "../../format.ts";
import { describeChange } from "../../runs/describe.ts";
import {
  selectTables,
  type TableDeclaration,
} from "../../tables/declaration.ts";
import { Icon, Status } from "./components/icons.tsx";
import { Json } from "./components/json.tsx";
import { LiveRow } from "./components/live_row.tsx";
import { Distance, Moment } from "./components/moment.tsx";
import { Timeline } from "./components/timeline.tsx";

/** What the page of a run shows. */
interface RunPageProps {
  readonly now: Date;
  readonly run: RunDetails;
  readonly live: LiveRun | undefined;
  /** The declared tables. */
  readonly tables: readonly TableDeclaration[];
}

/** The page's content. */
export function RunPage({ now, run, live, tables }: RunPageProps) {
  return (
    <>
      <p class="crumb">
        <a href="/runs">Runs</a> / <code>{run.run_id}</code>
      </p>
      <section class="verdict">
        <Icon state={run.status} />
        <div>
          <h1>{TITLES[run.status]}</h1>
          <p>
            Asked for by {run.trigger}{" "}
            <Distance at={run.requested_at} now={now} />
            {run.duration !== null && `, took ${formatSeconds(run.duration)}`}
          </p>
        </div>
      </section>
      <Outcome run={run} />
      <section class="card" aria-labelledby="timeline-title">
        <h2 id="timeline-title">Timeline</h2>
        <Timeline run={run} />
      </section>
      <div class="cards">
        {selectTables(tables, run.tables).map((table) => (
          <TableCard
            name={table.name}
            path={[table.source, table.target].map((t) =>
              `${t.schema}.${t.name}`
            )}
            run={run}
            live={live}
          />
        ))}
      </div>
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
              <Json value={run.event} />
            </details>
          )
          : <p class="empty">It is announced when the run is over.</p>}
      </section>
    </>
  );
}

const TITLES: Readonly<Record<RunDetails["status"], string>> = {
  queued: "Waiting for its turn",
  running: "Loading",
  succeeded: "Succeeded",
  failed: "Failed",
  interrupted: "Interrupted",
};

/** What came of it; has its height also before that is known. */
function Outcome({ run }: { run: RunDetails }) {
  const failures = failuresOf(run);
  if (failures.length > 0) {
    return (
      <section class="outcome-panel bad" aria-label="What went wrong">
        {failures.map(({ message, remedy }) => (
          <div>
            <p class="message">{message}</p>
            {remedy && (
              <p class="remedy">
                <b>What to do</b> {remedy}
              </p>
            )}
          </div>
        ))}
      </section>
    );
  }
  const loaded = run.table_loads.length;
  return (
    <section
      class={run.finished_at === null ? "outcome-panel waits" : "outcome-panel"}
      aria-label="Outcome"
    >
      <p>
        {run.status === "queued"
          ? "Another load is running, or this one is about to begin."
          : run.status === "running"
          ? "What readers see stays as it was until everything is verified."
          : `${
            loaded === 1 ? "The table holds" : "The tables hold"
          } exactly the source's rows: ${
            run.table_loads.every(({ result }) =>
                result.status === "success" && result.checksum !== null
              )
              ? "count and content were"
              : "their count was"
          } verified before they became visible.`}
      </p>
    </section>
  );
}

/** The failures of a run, each once: those of its tables, or its own where no table has one. */
function failuresOf(run: RunDetails) {
  const entries = run.table_loads.flatMap(({ result }) =>
    result.status === "failure" ? [result] : []
  );
  // A table that was only taken along is not the cause.
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

function TableCard(
  { name, path, run, live }: {
    name: string;
    path: readonly string[];
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
    <section class="card" aria-labelledby={`t-${name}`}>
      <h2 id={`t-${name}`}>{name}</h2>
      <p class="path">{path.join(" → ")}</p>
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
        <Pair name="Rows">
          {loaded && formatCount(loaded.records_loaded)}
        </Pair>
        <Pair name="Inserted">
          {loaded && formatCount(loaded.rows_inserted)}
        </Pair>
        <Pair name="Deleted">
          {loaded && formatCount(loaded.rows_deleted)}
        </Pair>
        <Pair name="Copied">
          {loaded && formatBytes(loaded.bytes_copied)}
        </Pair>
        <Pair name="Took">{loaded && formatSeconds(loaded.duration)}</Pair>
        <Pair name="Attempts">{entry && String(entry.attempts)}</Pair>
        <Pair name="Checksum" isLong>
          {loaded?.checksum && <code>{loaded.checksum}</code>}
        </Pair>
      </dl>
      <Warnings entry={loaded} />
      <LiveRow
        table={name}
        progress={isActive ? live?.tables.get(name) : undefined}
        isActive={isActive}
        idle={check
          ? `Committed: ${
            formatCount(check.source_count)
          } rows in the source, ${formatCount(check.target_count)} in the table`
          : "Not loaded: the old rows stay"}
      />
    </section>
  );
}

function Warnings({ entry }: { entry: LoadedEntry | undefined }) {
  if (!entry || entry.warnings.length === 0) return null;
  return (
    <ul class="warnings" aria-label="Warnings">
      {entry.warnings.map((warning) => (
        <li>
          <Status state="interrupted" text={warning} />
        </li>
      ))}
    </ul>
  );
}

function Pair(
  { name, isLong = false, children }: {
    name: string;
    isLong?: boolean;
    children?: Child;
  },
) {
  return (
    <div class={isLong ? "long" : undefined}>
      <dt>{name}</dt>
      <dd>{children || "–"}</dd>
    </div>
  );
}
