/** The phases of a run on one time axis. */
import type { RunDetails } from "../../../runs/history.ts";
import { formatSeconds } from "../../../format.ts";

/** A lane for each of the tables. Lanes are empty until the run ends, so the layout does not shift. */
export function Timeline(
  { run, tables }: { run: RunDetails; tables: readonly string[] },
) {
  const lanes = tables.map((table) => ({
    table,
    phases: run.table_loads.find((load) => load.table === table)?.phases ?? [],
  }));
  const total = Math.max(
    0,
    ...lanes.flatMap(({ phases }) =>
      phases.map(({ started_after, seconds }) => started_after + seconds)
    ),
  );
  const percent = (seconds: number) =>
    `${Math.round(seconds / total * 10_000) / 100}%`;
  return (
    <div>
      {lanes.map(({ table, phases }) => (
        <div class="lane">
          <h3>{table}</h3>
          <svg class="phases" aria-hidden="true">
            {phases.map(({ phase, started_after, seconds }) => (
              <rect
                class={`p-${phase}`}
                x={percent(started_after)}
                width={percent(Math.max(seconds, total / 400))}
              >
                <title>{`${phase}: ${formatSeconds(seconds)}`}</title>
              </rect>
            ))}
          </svg>
          {phases.length === 0
            ? (
              <p class="legend">
                {run.finished_at
                  ? "No phase completed."
                  : "Shown when the run ends."}
              </p>
            )
            : (
              <ol class="legend">
                {phases.map(({ phase, seconds }) => (
                  <li>
                    <svg class="swatch" aria-hidden="true">
                      <rect class={`p-${phase}`} />
                    </svg>
                    {phase} <b>{formatSeconds(seconds)}</b>
                  </li>
                ))}
              </ol>
            )}
        </div>
      ))}
      <p class="axis" aria-hidden="true">
        <span>0</span>
        <span>{total > 0 ? formatSeconds(total) : ""}</span>
      </p>
    </div>
  );
}
