/** The first rows that a load changed: their keys, and old and new values. */
import type {
  DifferingRow,
  DifferingRows,
} from "../../../diff/differing_rows.ts";
import type { ColumnDifference } from "../../../diff/value_differences.ts";
import {
  formatCount,
  formatDifference,
  formatValue,
  printable,
} from "../../../format.ts";

/** Maximum number of columns of a row that the page shows. */
const MAX_COLUMNS = 20;

/** The rows in a table, or nothing without rows. */
export function DifferingRowTable(
  { name, found }: { name: string; found: DifferingRows | undefined },
) {
  if (!found || found.rows.length === 0) return null;
  const { rows, total } = found;
  const count = total === rows.length
    ? "Rows that changed"
    : `First ${rows.length} of ${
      total === null ? "more" : formatCount(total)
    } rows that changed`;
  return (
    <table class="changes">
      <caption>{count}</caption>
      <thead>
        <tr>
          <th scope="col">Row</th>
          <th scope="col">Column</th>
          <th scope="col">Old</th>
          <th scope="col">New</th>
        </tr>
      </thead>
      <tbody aria-label={`Rows of ${name}`}>
        {rows.map((row) => Row({ row }))}
      </tbody>
    </table>
  );
}

/** The lines of a row: one for each column that differs, or one that says what happened. */
function Row({ row }: { row: DifferingRow }) {
  const { columns = [], target } = row;
  const shown = columns.slice(0, MAX_COLUMNS);
  const more = columns.length - shown.length;
  const note = more > 0
    ? `and ${formatCount(more)} more columns`
    : columns.length > 0
    ? undefined
    : target > 0
    ? "deleted"
    : "inserted";
  const lines = [...shown, ...(note ? [note] : [])];
  return (
    <>
      {lines.map((line, i) => (
        <tr>
          {i === 0 && <th scope="row" rowspan={lines.length}>{nameOf(row)}</th>}
          {typeof line === "string"
            ? <td colspan={3}>{line}</td>
            : <Values difference={line} />}
        </tr>
      ))}
    </>
  );
}

/** The column, its old value and its new one. */
function Values({ difference }: { difference: ColumnDifference }) {
  const [source, target] = formatDifference(difference);
  return (
    <>
      <td>{printable(difference.column)}</td>
      {[target, source].map(([before, differing, after]) => (
        <td>
          {before}
          <mark>{differing}</mark>
          {after}
        </td>
      ))}
    </>
  );
}

function nameOf({ row, shortened = [] }: DifferingRow): string {
  return Object.entries(row).map(([column, text]) => {
    const value = formatValue(text);
    return `${printable(column)} ${
      shortened.includes(column) ? `${value.slice(0, -1)}…` : value
    }`;
  }).join(", ");
}
