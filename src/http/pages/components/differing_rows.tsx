/** The first rows that a load changed: their keys, and old and new values. */
import type {
  DifferingRow,
  DifferingRows,
} from "../../../diff/differing_rows.ts";
import {
  formatCount,
  formatDifference,
  formatQuantity,
  formatValue,
  printable,
} from "../../../format.ts";

/** Maximum number of columns of a row that the page shows. */
const MAX_COLUMNS = 20;

/** The card with the rows of one table. */
export function DifferingRowCard(
  { name, found: { rows, total } }: { name: string; found: DifferingRows },
) {
  const id = `rows-${name}`;
  return (
    <section class="card" aria-labelledby={id}>
      <h2 id={id}>
        {name}: {total === rows.length
          ? "rows that changed"
          : `${formatCount(rows.length)} of ${
            total === null ? "the" : formatCount(total)
          } rows that changed`}
      </h2>
      <table class="changes" aria-labelledby={id}>
        <thead>
          <tr>
            <th scope="col">Column</th>
            <th scope="col">Old</th>
            <th scope="col">New</th>
          </tr>
        </thead>
        {rows.map((row) => RowBody({ row }))}
      </table>
    </section>
  );
}

/** The lines of a row: its key, and the old and new value of each column that differs. */
function RowBody({ row }: { row: DifferingRow }) {
  const { columns, target } = row;
  const more = (columns?.length ?? 0) - MAX_COLUMNS;
  return (
    <tbody>
      <tr>
        <th scope="rowgroup" colspan={3}>
          <b>{columns ? "changed" : target > 0 ? "deleted" : "inserted"}</b>
          {" "}
          {nameOf(row)}
        </th>
      </tr>
      {columns?.slice(0, MAX_COLUMNS).map((difference) => {
        const [source, target] = formatDifference(difference);
        return (
          <tr>
            <td>{printable(difference.column)}</td>
            {[target, source].map(([before, differing, after]) => (
              <td>
                {before}
                <mark>{differing}</mark>
                {after}
              </td>
            ))}
          </tr>
        );
      })}
      {more > 0 && (
        <tr>
          <td colspan={3}>and {formatQuantity(more, "more column")}</td>
        </tr>
      )}
    </tbody>
  );
}

function nameOf({ row, shortened = [] }: DifferingRow): string {
  return Object.entries(row).map(([column, text]) =>
    `${printable(column)} ${formatValue(text, shortened.includes(column))}`
  ).join(", ");
}
