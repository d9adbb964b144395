/**
 * The content of an alert: a failed run, or the first load of tables after a
 * failure.
 */
import {
  formatCount,
  formatQuantity,
  formatSeconds,
  formatTables,
  printable,
} from "../format.ts";
import { describeOutcome } from "../runs/describe.ts";
import {
  entriesOf,
  type FailedEntry,
  type LoadEvent,
  type TableEntry,
} from "../runs/event.ts";

/** An alert. Its texts are single lines, are printable and have a limited length. */
export interface Alert {
  readonly isFailure: boolean;
  readonly title: string;
  readonly lines: readonly { readonly label: string; readonly text: string }[];
  readonly runUrl: string | undefined;
  /** Tables that fail after the event, as far as the receiver knows. */
  readonly failingTables: readonly string[];
}

/** Maximum number of causes that an alert explains. */
const MAX_CAUSES = 3;

/** Maximum number of tables that a title names. */
const MAX_TITLE_NAMES = 3;

/** Maximum lengths in characters. The longest alert stays below the 28 KB of Teams, and each text below the 3,000 characters of Slack. */
const MAX_TITLE = 150;
const MAX_LABEL = 300;
const MAX_TEXT = 500;

/**
 * Returns the alert about an event, or `undefined` without a failure or a recovery.
 * Reports every failure, and the first load of each failed table after it.
 *
 * @param failingTables the tables whose failure the receiver knows.
 * @param context the tables that this process declares, and the name of the warehouse.
 */
export function alertOf(
  event: LoadEvent,
  failingTables: readonly string[],
  context: { readonly declared: readonly string[]; readonly warehouse: string },
): Alert | undefined {
  const isFailure = event.status === "failure";
  const entries = entriesOf(event);
  const failed = entries.filter((entry) => entry.status === "failure");
  const loaded = entries.filter((entry) => entry.status === "success");
  const again = loaded.filter(({ table }) => failingTables.includes(table));
  if (!isFailure && again.length === 0) return undefined;
  const failing = new Set(failingTables);
  for (const { table } of loaded) failing.delete(table);
  // A table that is no longer declared never loads again.
  const rest = [...failing].filter((name) => context.declared.includes(name));
  for (const { table } of failed) failing.add(table);
  const lines = isFailure
    ? [
      ...linesOfCauses(failed),
      { label: "Loaded", text: formatTables(namesOf(loaded)) },
      { label: "Old rows", text: "The failed tables keep the rows they had." },
    ]
    : [
      { label: "Result", text: describeOutcome(again) },
      { label: "Still failing", text: formatTables(rest) },
    ];
  return {
    isFailure,
    title: shorten(
      isFailure
        ? `Load failed: ${titleNames(failed, entries.length)}`
        : `Loaded again: ${titleNames(again, entries.length)}`,
      MAX_TITLE,
    ),
    lines: [...lines, { label: "Run", text: describeRun(event, context) }]
      .filter(({ text }) => text !== "")
      .map(({ label, text }) => ({
        label: shorten(label, MAX_LABEL),
        text: shorten(text, MAX_TEXT),
      })),
    runUrl: event.run_url,
    failingTables: [...failing],
  };
}

/** Returns the causes with their tables and remedies. Tables that were rolled back with others come last. */
function linesOfCauses(failed: readonly FailedEntry[]) {
  const causes = Map.groupBy(
    failed.toSorted((a, b) =>
      Number(a.code === "rolled_back") - Number(b.code === "rolled_back")
    ),
    // Tables that fail for the same cause differ in their name only.
    ({ code, table, message, error }) =>
      `${code} ${(message ?? error).replaceAll(table, "")}`,
  );
  const shown = [...causes.values()].slice(0, MAX_CAUSES);
  const others = failed.length - shown.flat().length;
  return [
    ...shown.flatMap((entries) => [
      {
        // The text names a single table.
        label: entries.length > 1 ? formatTables(namesOf(entries)) : "Cause",
        text: entries[0]!.message ?? entries[0]!.error,
      },
      { label: "Remedy", text: entries[0]!.remedy ?? "" },
    ]),
    {
      label: "Tables with other causes",
      text: others > 0 ? formatCount(others) : "",
    },
  ];
}

function namesOf(entries: readonly TableEntry[]): string[] {
  return entries.map(({ table }) => table);
}

function titleNames(entries: readonly TableEntry[], total: number): string {
  const { length } = entries;
  if (length <= MAX_TITLE_NAMES) return namesOf(entries).join(", ");
  const all = formatQuantity(total, "table");
  return length < total ? `${formatCount(length)} of ${all}` : all;
}

/** Returns the id, the trigger and the duration of the run, and how to see it. */
function describeRun(
  { run_id, run_url, trigger, started_at, timestamp }: LoadEvent,
  { warehouse }: { readonly warehouse: string },
): string {
  const id = run_id.slice(0, 8);
  const milliseconds = (time: string) => Date.parse(`${time}Z`);
  return [
    `${id} by ${trigger}`,
    started_at
      ? formatSeconds(
        (milliseconds(timestamp) - milliseconds(started_at)) / 1000,
      )
      : "did not start",
    `warehouse ${warehouse}`,
    ...(run_url ? [] : [`details: runs --id ${id}`]),
  ].join(", ");
}

/** Returns the text as one printable line of at most so many characters. */
function shorten(text: string, maximum: number): string {
  const characters = [...printable(text)];
  return characters.length > maximum
    ? `${characters.slice(0, maximum - 1).join("")}…`
    : characters.join("");
}
