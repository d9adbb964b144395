/** The progress of one table. Its place is kept when no load is running. */
import { formatBytes, formatCount, formatQuantity } from "../../../format.ts";
import type { Progress } from "../../../sync/progress.ts";

/** The row. The script of the page updates it from the stream. */
export function LiveRow(
  { table, progress, isActive, idle }: {
    table: string;
    progress: Progress | undefined;
    isActive: boolean;
    idle: string;
  },
) {
  const { phase, rows = 0, bytes = 0, totalRows } = progress ?? {};
  return (
    <div class="live" data-table={table}>
      <p>
        <b data-part="phase">{phase ?? (isActive ? "waiting" : idle)}</b>{" "}
        <span data-part="rows">
          {rows > 0
            ? `${totalRows ? `${formatCount(rows)} of ` : ""}${
              formatQuantity(totalRows || rows, "row")
            }${bytes > 0 ? `, ${formatBytes(bytes)}` : ""}`
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
