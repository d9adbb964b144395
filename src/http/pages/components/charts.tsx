/** Charts of recent runs, as inline SVG that fills the available width. */
import type { RunOutcome, RunSummary } from "../../../runs/history.ts";
import {
  formatMoment,
  formatQuantity,
  formatSeconds,
} from "../../../format.ts";

/** A run, with its tables where the chart is about one of them. */
type ChartedRun = RunSummary & Partial<Pick<RunOutcome, "entries">>;

/** One run in a chart. The oldest run comes first. */
interface Column {
  /** Height above the line, and below it. */
  readonly up: number;
  readonly down?: number;
  readonly isFailed: boolean;
  readonly hint: string;
}

/** The duration of each run, or of each load of a table. */
export function DurationChart(
  { runs, table }: { runs: readonly ChartedRun[]; table?: string },
) {
  const columns = runs.map((run): Column => {
    if (table === undefined) {
      return {
        up: run.duration ?? 0,
        isFailed: run.status === "failed" || run.status === "interrupted",
        hint: `${dateOf(run)}: ${run.status}${
          run.duration === null ? "" : `, ${formatSeconds(run.duration)}`
        }`,
      };
    }
    const entry = entryOf(run, table);
    return {
      up: entry?.status === "success" ? entry.duration : 0,
      isFailed: entry?.status === "failure",
      hint: "",
    };
  });
  const longest = Math.max(0, ...columns.map(({ up }) => up));
  return (
    <Chart
      name={table === undefined
        ? "Duration of runs"
        : `Duration of loads of ${table}`}
      columns={columns}
      peak={longest}
      top={formatSeconds(longest)}
      summary={`the longest took ${formatSeconds(longest)}`}
    />
  );
}

/** The number of rows that each run inserted, above the line, and deleted, below it. The scale is logarithmic. */
export function RowsChart(
  { runs, table }: { runs: readonly RunOutcome[]; table: string },
) {
  let maximum = 0;
  const columns = runs.map((run): Column => {
    const entry = entryOf(run, table);
    const isLoaded = entry?.status === "success";
    const inserted = isLoaded ? entry.rows_inserted : 0;
    const deleted = isLoaded ? entry.rows_deleted : 0;
    maximum = Math.max(maximum, inserted, deleted);
    return {
      up: Math.log10(1 + inserted),
      down: Math.log10(1 + deleted),
      isFailed: entry?.status === "failure",
      hint: "",
    };
  });
  return (
    <Chart
      name={`Rows changed in ${table}`}
      columns={columns}
      peak={Math.log10(1 + maximum)}
      top={formatQuantity(maximum, "row")}
      summary={`at most ${formatQuantity(maximum, "row")} inserted or deleted`}
      isTwoSided
    />
  );
}

/** Number of columns that fit into a chart. Few runs do not make wide columns. */
const PLACES = 40;

function Chart({ name, columns, peak, top, summary, isTwoSided = false }: {
  readonly name: string;
  readonly columns: readonly Column[];
  /** The value that fills the height. */
  readonly peak: number;
  /** Label of the top of the chart. */
  readonly top: string;
  readonly summary: string;
  readonly isTwoSided?: boolean;
}) {
  const failed = columns.filter(({ isFailed }) => isFailed).length;
  const first = PLACES - columns.length;
  const line = isTwoSided ? 50 : 100;
  const height = (value: number) =>
    value <= 0 || peak <= 0
      ? 0
      : Math.max(3, Math.round(value / peak * (line - 4)));
  const bars = (of: (column: Column) => number, sign: number) =>
    columns.flatMap((column, i) => {
      const size = height(of(column));
      return size === 0
        ? []
        : [`M${first + i}.2 ${line}v${sign * size}h.6v${-sign * size}z`];
    }).join("");
  return (
    <figure class="chart">
      <svg
        class="plot"
        role="img"
        aria-label={columns.length === 0
          ? `${name}: no runs yet`
          : `${name}, ${
            formatQuantity(columns.length, "run")
          }: ${summary}, ${failed} failed`}
      >
        <svg viewBox={`0 0 ${PLACES} 100`} preserveAspectRatio="none">
          <path class="up" d={bars(({ up }) => up, -1)} />
          {isTwoSided && <path class="down" d={bars((c) => c.down ?? 0, 1)} />}
        </svg>
        <line x1="0" x2="100%" y1={`${line}%`} y2={`${line}%`} />
        {columns.map(({ isFailed, hint }, i) => (
          <>
            {isFailed && (
              <svg
                class="mark"
                x={`${(first + i + 0.5) * 100 / PLACES}%`}
                y="100%"
              >
                <path d="M-4 5l8 8m0-8l-8 8" />
              </svg>
            )}
            {hint && (
              <rect x={`${(first + i) * 100 / PLACES}%`} width="2.5%">
                <title>{hint}</title>
              </rect>
            )}
          </>
        ))}
      </svg>
      <figcaption aria-hidden="true">{peak > 0 ? top : ""}</figcaption>
    </figure>
  );
}

function entryOf(run: ChartedRun, table: string) {
  return run.entries?.find((entry) => entry.table === table);
}

function dateOf(run: RunSummary): string {
  return formatMoment(new Date(run.started_at ?? run.requested_at));
}
