// Filters and sorts a list of tables, and shows the progress of a running load in it.

/** The rows of the list of tables, by the name of the table. */
let rowOf = new Map();

/** Index of the column with the progress of a running load. */
let stateColumn = 0;

/** The filter and the order of the list. They outlive a refresh. */
let filter = "";
let sorted = { column: -1, isDescending: false };

/** Shows the progress of one table in its row of the list. */
function showInList({ table, phase, rows, total_rows: total }) {
  const cell = rowOf.get(table)?.cells[stateColumn];
  if (!cell) return;
  const share = total && rows < total
    ? ` ${Math.floor(rows * 100 / total)} %`
    : "";
  cell.textContent = phase === "wait" ? "verified" : phase + share;
}

/** Adds the filter and the order to a list of tables. */
function prepareList() {
  rowOf = new Map();
  const table = document.querySelector(".tables");
  if (!table) return;
  for (const row of table.tBodies[0].rows) {
    rowOf.set(row.cells[0].firstChild.textContent, row);
  }
  for (const [i, heading] of [...table.tHead.rows[0].cells].entries()) {
    if (heading.className === "state") stateColumn = i;
    const button = document.createElement("button");
    button.type = "button";
    button.id = `sort-${i}`;
    button.textContent = heading.textContent;
    heading.replaceChildren(button);
  }
  document.querySelector("#tools").hidden = false;
  document.querySelector("#filter").value = filter;
  sortList();
  filterList();
}

/** Returns the sort key of a row: a number, a text, or undefined. */
function keyOf(row, column) {
  const { dataset, textContent } = row.cells[column];
  const text = dataset.v ?? textContent.replaceAll(",", "");
  return text === "–" || text === ""
    ? undefined
    : isNaN(text)
    ? text
    : Number(text);
}

function sortList() {
  const { column, isDescending } = sorted;
  if (column < 0) return;
  const { tHead, tBodies: [body] } = document.querySelector(".tables");
  for (const [i, heading] of [...tHead.rows[0].cells].entries()) {
    if (i === column) {
      heading.ariaSort = isDescending ? "descending" : "ascending";
    } else heading.removeAttribute("aria-sort");
  }
  const rows = [...body.rows].map((row) => [keyOf(row, column), row]);
  rows.sort(([a], [b]) =>
    // Unknown values come last.
    a === b
      ? 0
      : a === undefined
      ? 1
      : b === undefined
      ? -1
      : (isDescending ? -1 : 1) *
        (typeof a === "number" && typeof b === "number"
          ? a - b
          : String(a).localeCompare(b, "en", { numeric: true }))
  );
  body.append(...rows.map(([, row]) => row));
}

/** Hides the rows whose text does not contain the filter. Returns how many are shown. */
function filterList() {
  const wanted = filter.trim().toLowerCase();
  let count = 0;
  for (const row of rowOf.values()) {
    row.hidden = !row.textContent.toLowerCase().includes(wanted);
    if (!row.hidden) count++;
  }
  const text = count === rowOf.size ? `${count}` : `${count} of ${rowOf.size}`;
  document.querySelector("#shown").textContent = text;
  return text;
}

document.addEventListener("input", ({ target }) => {
  if (target.id !== "filter") return;
  filter = target.value;
  document.querySelector("#news").textContent = `${filterList()} tables`;
});

document.addEventListener("click", ({ target }) => {
  const heading = target.closest(".tables thead button")?.parentElement;
  if (!heading) return;
  const column = heading.cellIndex;
  const isSame = column === sorted.column;
  // The largest numbers come first.
  const isDescending = isSame
    ? !sorted.isDescending
    : heading.className === "number";
  sorted = { column, isDescending };
  sortList();
});

prepareList();
document.addEventListener("refreshed", prepareList);
document.addEventListener("progress", ({ detail }) => showInList(detail));
