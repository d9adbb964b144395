/** The history, page by page. */
import type { RunOutcome } from "../../runs/history.ts";
import type { RunState } from "../../runs/run.ts";
import { RunTable } from "./components/run_table.tsx";

/** What the list shows. */
interface RunsPageProps {
  readonly now: Date;
  readonly runs: readonly RunOutcome[];
  readonly status: RunState | undefined;
  readonly limit: number;
  /** True where this is not the newest page. */
  readonly isPast: boolean;
  /** Id of the run that the next page begins after. */
  readonly older: string | undefined;
}

const FILTERS = [
  [undefined, "All"],
  ["succeeded", "Succeeded"],
  ["failed", "Failed"],
  ["interrupted", "Interrupted"],
  ["running", "Running"],
  ["queued", "Queued"],
] as const;

/** The page's content. */
export function RunsPage(
  { now, runs, status, limit, isPast, older }: RunsPageProps,
) {
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
        {FILTERS.map(([value, name]) => (
          <a
            href={link({ status: value })}
            aria-current={value === status ? "true" : undefined}
          >
            {name}
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
                ? `No run is ${status}.`
                : "No load has run yet."}
            </p>
          )
          : (
            <RunTable
              runs={runs}
              now={now}
              caption={status
                ? `Runs that are ${status}, newest first`
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

/** Runs on a page where nothing is said about it. */
const DEFAULT_LIMIT = 50;
