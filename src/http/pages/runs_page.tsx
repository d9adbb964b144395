/** The list of runs. */
import type { RunOutcome } from "../../runs/history.ts";
import type { RunState } from "../../runs/run.ts";
import { nameOf } from "./components/icons.tsx";
import { RunTable } from "./components/run_table.tsx";

const FILTERS = [
  undefined,
  "succeeded",
  "failed",
  "interrupted",
  "running",
  "queued",
] as const;

export function RunsPage({ now, runs, status, limit, isPast, older }: {
  readonly now: Date;
  readonly runs: readonly RunOutcome[];
  readonly status: RunState | undefined;
  readonly limit: number;
  /** Whether newer runs exist. */
  readonly isPast: boolean;
  /** Id of the last run of this page, if older runs exist. */
  readonly older: string | undefined;
}) {
  const link = (parameters: Record<string, string | undefined>) => {
    const given = Object.entries({
      limit: limit === DEFAULT_LIMIT ? undefined : String(limit),
      ...parameters,
    }).flatMap(([name, value]) => value === undefined ? [] : [[name, value]]);
    return given.length === 0 ? "/runs" : `/runs?${new URLSearchParams(given)}`;
  };
  return (
    <>
      <h1>Runs</h1>
      <nav class="filter" aria-label="Status of the runs">
        {FILTERS.map((value) => (
          <a
            href={link({ status: value })}
            aria-current={value === status ? "true" : undefined}
          >
            {value ? nameOf(value) : "All"}
          </a>
        ))}
      </nav>
      <section class="card" aria-label="Runs">
        {runs.length === 0
          ? (
            <p class="empty">
              {isPast
                ? "No older runs."
                : status
                ? `No run has the status ${status}.`
                : "No load has run yet."}
            </p>
          )
          : (
            <RunTable
              runs={runs}
              now={now}
              caption={status
                ? `Runs with the status ${status}, newest first`
                : "Runs, newest first"}
            />
          )}
      </section>
      <nav class="paging" aria-label="Pages of runs">
        {isPast && <a href={link({ status })}>Newest</a>}
        {older && <a href={link({ status, before: older })}>Older</a>}
      </nav>
    </>
  );
}

/** Number of runs on a page without the parameter `limit`. */
const DEFAULT_LIMIT = 50;
