/** `load`: makes the targets equal to the source. */
import { asServiceError, ERRORS, ServiceError } from "../../errors.ts";
import {
  entriesOf,
  type LoadEvent,
  type TableEntry,
} from "../../runs/event.ts";
import { load } from "../../load/load.ts";
import { prepareDeliveries } from "../../delivery/deliverer.ts";
import type { RunOptions } from "../../runs/run.ts";
import {
  groupsOf,
  namesOf,
  NO_GROUP,
  selectTables,
  type TableDeclaration,
} from "../../tables/declaration.ts";
import {
  formatBytes,
  formatCount,
  formatQuantity,
  formatSeconds,
  MAX_NAMES,
} from "../../format.ts";
import { describeTally, tallyOf } from "../../runs/describe.ts";
import { notAllowed, usage } from "../arguments.ts";
import type { Command, CommandContext, ParsedArguments } from "../command.ts";
import { startProgress } from "../progress_bars.ts";
import type { Cell, TextTable } from "../terminal_table.ts";

/** The maximum number of rows that a comparison names for one table. */
export const MAX_NAMED_ROWS = 1000;

export const loadCommand: Command = {
  name: "load",
  summary:
    "Makes the warehouse tables equal to the source tables, and publishes an event.",
  flags: {
    table: {
      value: "NAME",
      isRepeatable: true,
      description: "Load only this table. Repeat the flag for several tables",
    },
    group: {
      value: "NAME",
      isRepeatable: true,
      description:
        "Load only the tables of this group. Repeat the flag for several groups",
    },
    mode: {
      value: "MODE",
      allowed: ["auto", "full"],
      description: "auto copies rows that differ, full copies all rows",
    },
    atomic: { description: "Make all tables visible together or not at all" },
    recreate: { description: "Drop the target tables and create them again" },
    "allow-shrink": {
      description:
        "Allow the load to remove more rows of a table than MAX_SHRINK",
    },
    "dry-run": {
      description: "Print the plan of a load, and change nothing",
    },
    rows: {
      value: "NUMBER",
      range: [1, MAX_NAMED_ROWS],
      needs: "dry-run",
      description:
        `With --dry-run: name rows that differ, at most this number for each table (1 to ${MAX_NAMED_ROWS})`,
    },
  },
  async run(context) {
    const { flags, values } = context.arguments;
    const rows = rowsOf(values);
    const config = context.config();
    const tables = tablesOf(config.tables, values, "load");
    const options: RunOptions = {
      tables: namesOf(tables),
      mode: (values.mode?.[0] ?? config.loadMode) as "auto" | "full",
      atomic: flags.has("atomic") || config.loadAtomic,
      recreate: flags.has("recreate"),
      allowShrink: flags.has("allow-shrink"),
    };
    if (flags.has("dry-run")) {
      // A load starts faster without these.
      const { comparedWith, compareTables } = await import(
        "../../sync/compare_tables.ts"
      );
      const { printComparisons } = await import("../comparison_report.ts");
      const outcomes = await compareTables(
        config,
        tables,
        context.signal,
        comparedWith({
          load: { ...options, maxShrink: config.maxShrink },
          rows,
        }),
      );
      return printComparisons(context.output, outcomes, "plan");
    }
    await prepareDeliveries(config);
    const app = await context.app();
    const progress = await startProgress(context.output, options.tables);
    try {
      const event = await load(app, "cli", options, {
        signal: context.signal,
        progress: (_, p) => progress.update(p),
      });
      progress.stop();
      return reportEvent(context, event);
    } finally {
      progress.stop();
    }
  },
};

/**
 * Returns the tables that --table and --group select, or all tables without these
 * flags.
 *
 * @throws {ServiceError} `usage` for a name that is not declared.
 */
export function tablesOf(
  tables: readonly TableDeclaration[],
  { table = [], group = [] }: ParsedArguments["values"],
  command: string,
): readonly TableDeclaration[] {
  checkNames("table", table, namesOf(tables), command);
  const groups = groupsOf(tables);
  if (group.length > 0 && groups.length === 0) {
    throw usage(`--group cannot be used, because ${NO_GROUP}`, command);
  }
  checkNames("group", group, groups, command);
  return selectTables(tables, table, group);
}

/** Returns the value of --rows, if it is given. */
export function rowsOf(
  { rows: given = [] }: ParsedArguments["values"],
): number | undefined {
  return given[0] === undefined ? undefined : Number(given[0]);
}

function checkNames(
  flag: string,
  names: readonly string[],
  declared: readonly string[],
  command: string,
): void {
  const unknown = names.find((name) => !declared.includes(name));
  if (unknown !== undefined) throw notAllowed(flag, unknown, declared, command);
}

/**
 * Prints the event and returns the exit code.
 *
 * @throws {ServiceError} `output_unwritable` after a load that succeeded. The
 * message then says that the load is committed.
 */
function reportEvent(context: CommandContext, event: LoadEvent): number {
  try {
    printEvent(context, event);
    reportFailures(context, event);
  } catch (cause) {
    const { code, message, remedy } = asServiceError(cause);
    if (code !== "output_unwritable") throw cause;
    if (event.status === "success") {
      throw new ServiceError(
        code,
        `${message}. Run ${event.run_id} succeeded, and its data is committed`,
        { cause, remedy: `${remedy} \`runs --id\` shows the run.` },
      );
    }
    context.output.progress(
      `${message}. Run ${event.run_id} failed: ${event.error}`,
    );
  }
  return exitCodeOf(event);
}

/** Prints a line for each failed table to standard error, unless both streams are terminals. */
function reportFailures({ output }: CommandContext, event: LoadEvent): void {
  if (event.status === "success") return;
  if (output.isTerminal && output.isInteractive) return;
  for (const entry of event.details.results) {
    if (entry.status === "failure") output.progress(entry.error);
  }
}

/** Returns the exit code for a run: that of the first table that failed by itself. */
function exitCodeOf(event: LoadEvent): number {
  if (event.status === "success") return 0;
  const codes = event.details.results.flatMap((r) =>
    r.status === "failure" ? [r.code] : []
  );
  const code = codes.find((code) => code !== "rolled_back") ?? "internal";
  // A signal ended the other process that ran this load. The caller handles signals to this process.
  return code === "terminated" ? 1 : ERRORS[code].exit;
}

function printEvent({ output }: CommandContext, event: LoadEvent): void {
  const entries = entriesOf(event);
  const isLong = entries.length > MAX_NAMES;
  // A person sees the end of a long output.
  const sorted = isLong
    ? entries.toSorted((a, b) =>
      Number(a.status === "failure") - Number(b.status === "failure")
    )
    : entries;
  const listed = isLong && output.isTerminal
    ? sorted.filter((entry) =>
      entry.status === "failure" || entry.mode !== "unchanged"
    )
    : sorted;
  output.show(
    event,
    ...(listed.length > 0 ? [tableOf(listed)] : []),
    ...sorted.flatMap(notesOf),
    ...(isLong
      ? [
        `${formatQuantity(entries.length, "table")}: ${
          describeTally(tallyOf(entries))
        }`,
      ]
      : []),
    `run ${event.run_id} ${
      event.status === "success" ? "succeeded" : "failed"
    }, event ${event.event_id}`,
  );
}

function tableOf(entries: readonly TableEntry[]): TextTable {
  return {
    columns: [
      { name: "Table" },
      { name: "Result" },
      { name: "Rows", isNumber: true },
      { name: "Inserted", isNumber: true },
      { name: "Deleted", isNumber: true },
      { name: "Took", isNumber: true },
      { name: "Copied", isNumber: true },
    ],
    rows: entries.map((entry) =>
      entry.status === "failure"
        ? [entry.table, { text: "failed", tone: "bad" }]
        : [
          entry.table,
          { text: entry.mode, tone: "good" },
          formatCount(entry.records_loaded),
          formatCount(entry.rows_inserted),
          formatCount(entry.rows_deleted),
          formatSeconds(entry.duration),
          formatBytes(entry.bytes_copied),
        ]
    ),
  };
}

/** Returns the error of a table with its remedy, or its warnings. */
function notesOf(entry: TableEntry): Cell[] {
  return entry.status === "failure"
    ? [{ text: entry.error, tone: "bad", isMarked: true }]
    : entry.warnings.map((warning) => ({
      text: `${entry.table}: ${warning}`,
      tone: "warn",
      isMarked: true,
    }));
}
