/** What a table's load is doing at this moment. Has its place also when nothing goes on. */
import { formatBytes, formatCount } from "../../../format.ts";
import type { Progress } from "../../../sync/progress.ts";

/** The row; the page's script fills it with what the stream tells. */
export function LiveRow(
  { table, progress, isActive, idle }: {
    table: string;
    progress: Progress | undefined;
    isActive: boolean;
    idle: string;
  },
) {
  const { phase, rows, bytes, totalRows } = progress ?? {
    phase: undefined,
    rows: 0,
    bytes: 0,
    totalRows: null,
  };
  return (
    <div class="live" data-table={table}>
      <p>
        <b data-part="phase">{phase ?? (isActive ? "waiting" : idle)}</b>{" "}
        <span data-part="rows">
          {rows > 0
            ? `${formatCount(rows)}${
              totalRows ? ` of ${formatCount(totalRows)}` : ""
            } rows${bytes > 0 ? `, ${formatBytes(bytes)}` : ""}`
            : ""}
        </span>
      </p>
      {isActive
        ? (
          <progress
            aria-label={`Progress of ${table}`}
            max={totalRows || 1}
            value={totalRows ? rows : 0}
          >
          </progress>
        )
        : <span class="bar"></span>}
    </div>
  );
}
