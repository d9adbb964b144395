/** A list of tables, where they are too many for cards. */
import type { Child } from "hono/jsx";

/** Maximum number of tables that a page shows as cards. */
export const MAX_CARDS = 4;

/** Maximum number of failures that a page explains. */
export const MAX_EXPLAINED = 20;

/** A column after the name of the table. */
interface ListColumn {
  readonly name: string;
  /** `number` sorts the largest value first. `state` shows the progress of a running load. */
  readonly kind?: "number" | "state";
}

/** A cell, with the number to sort it by where its text is not a number. An unknown text is a dash. */
interface ListCell {
  readonly value: number | undefined;
  readonly text: Child;
}

/** One table. */
export interface ListRow {
  readonly name: string;
  readonly group?: string | undefined;
  readonly hasFailed: boolean;
  readonly cells: readonly (ListCell | Child)[];
}

/**
 * The list, with failed tables first. The script of the page adds a filter and
 * sorts by any column. Rows have no attributes that the style can do without:
 * there may be 500 of them.
 */
export function TableList(
  { kind, columns, rows }: {
    /** Class that gives the columns their widths. */
    kind: "overview" | "result";
    columns: readonly ListColumn[];
    rows: readonly ListRow[];
  },
) {
  const sorted = rows.toSorted((a, b) =>
    Number(b.hasFailed) - Number(a.hasFailed)
  );
  return (
    <section class="card" aria-labelledby="tables-title">
      <div class="head">
        <h2 id="tables-title">
          Tables <small id="shown">{rows.length}</small>
        </h2>
        <p id="tools" hidden>
          <label for="filter">Filter</label>
          <input id="filter" type="search" autocomplete="off" />
        </p>
      </div>
      <table class={`tables ${kind}`} aria-labelledby="tables-title">
        <thead>
          <tr>
            <th scope="col">Table</th>
            {columns.map(({ name, kind }) => (
              <th scope="col" class={kind}>{name}</th>
            ))}
          </tr>
        </thead>
        <tbody>
          {sorted.map(({ name, group, cells }) => (
            <tr>
              <th scope="row">
                {name}
                {group && <small>{group}</small>}
              </th>
              {cells.map((cell) => (
                isListCell(cell)
                  ? <td data-v={cell.value}>{cell.text ?? "–"}</td>
                  : <td>{cell === undefined ? "–" : cell}</td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
    </section>
  );
}

function isListCell(cell: ListCell | Child): cell is ListCell {
  return typeof cell === "object" && cell !== null && "value" in cell;
}
