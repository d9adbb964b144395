/** `runs`: prints the history. */
import { ServiceError } from "../../errors.ts";
import {
  findRun,
  findRunIds,
  listOutcomes,
  type RunDetails,
  type RunOutcome,
} from "../../runs/history.ts";
import {
  formatMoment,
  formatSeconds,
  formatTables,
  MAX_NAMES,
} from "../../format.ts";
import {
  describeChange,
  describeOutcome,
  describeTally,
  tallyOf,
} from "../../runs/describe.ts";
import { requireHistory } from "../../runs/schema.ts";
import { RUN_STATES, type RunState } from "../../runs/run.ts";
import { usage } from "../arguments.ts";
import {
  type Command,
  type CommandContext,
  MAX_LISTED_ROWS,
} from "../command.ts";
import type { TextTable } from "../terminal_table.ts";

/** Number of characters of an id in a table. They are enough for `--id`. */
const SHORT_ID = 8;

export const runsCommand: Command = {
  name: "runs",
  summary: "Lists the newest runs, or shows one of them.",
  flags: {
    id: {
      value: "ID",
      excludes: ["limit", "status"],
      description: "Show only this run. The beginning of its id is enough",
    },
    limit: {
      value: "NUMBER",
      range: [1, MAX_LISTED_ROWS],
      description: "Maximum number of runs, the newest first (default: 20)",
    },
    status: {
      value: "STATUS",
      allowed: RUN_STATES,
      description: "List only runs in this state",
    },
  },
  async run(context) {
    const { values } = context.arguments;
    const id = values.id?.[0];
    if (id !== undefined) return await showRun(context, id);
    const limit = Number(values.limit?.[0] ?? 20);
    const status = values.status?.[0] as RunState | undefined;
    const { warehouse } = await context.app();
    await requireHistory(warehouse);
    const runs = await listOutcomes(warehouse, { limit, status });
    context.output.show(
      { runs: runs.map(({ entries: _, tally: __, ...run }) => run) },
      runs.length > 0 ? tableOf(runs) : "No runs.",
    );
    return 0;
  },
};

/** The tone of each state. */
const TONES = {
  queued: "soft",
  running: "go",
  succeeded: "good",
  failed: "bad",
  interrupted: "warn",
} as const;

function tableOf(runs: readonly RunOutcome[]): TextTable {
  return {
    columns: [
      { name: "Run" },
      { name: "Status" },
      { name: "Requested (UTC)" },
      { name: "Outcome", isFlexible: true },
      { name: "Took", isNumber: true },
      { name: "By" },
    ],
    rows: runs.map((run) => [
      run.run_id.slice(0, SHORT_ID),
      { text: run.status, tone: TONES[run.status] },
      formatMoment(new Date(run.requested_at)),
      run.error ??
        (run.entries.length > 0
          ? describeOutcome(run.entries)
          : describeTally(run.tally) || formatTables(run.tables)),
      run.duration === null ? "" : formatSeconds(run.duration),
      run.trigger,
    ]),
  };
}

/** @throws {ServiceError} `not_found`, or `usage` when several ids begin with `id`. */
async function showRun(context: CommandContext, id: string): Promise<number> {
  const { output } = context;
  if (!/^[0-9a-f-]{1,36}$/i.test(id)) {
    throw usage(`--id must be a run's id, not ${JSON.stringify(id)}`, "runs");
  }
  const { warehouse } = await context.app();
  await requireHistory(warehouse);
  const [found, another] = await findRunIds(warehouse, id.toLowerCase());
  if (another) throw usage(`several runs begin with ${id}`, "runs");
  const run = found && await findRun(warehouse, found);
  if (!run) {
    throw new ServiceError(
      "not_found",
      `Cannot show run ${id}: the history does not contain it`,
      {
        remedy: "Use `runs` to list the runs.",
      },
    );
  }
  output.show(run, listOf(run));
  return 0;
}

function listOf(run: RunDetails): TextTable {
  const rows: [string, string | null | undefined][] = [
    ["run", run.run_id],
    ["status", run.status],
    ["requested", `${run.requested_at} by ${run.trigger}`],
    ["started", run.started_at],
    [
      "finished",
      run.finished_at &&
      `${run.finished_at}  ${formatSeconds(run.duration ?? 0)}`,
    ],
    ["error", run.error],
    ...run.table_loads.length > MAX_NAMES
      ? summaryOf(run)
      : run.table_loads.flatMap(({ table, result, phases }) =>
        [
          describeChange(result),
          ...(result.status === "success" ? result.warnings : []),
          phases.map(({ phase, seconds }) =>
            `${phase} ${formatSeconds(seconds)}`
          )
            .join(", "),
        ].map((text, i): [string, string] => [i === 0 ? table : "", text])
      ),
    ["event", run.event?.event_id],
  ];
  return {
    columns: [{}, {}],
    rows: rows.flatMap(([name, text]) => text ? [[name, text]] : []),
  };
}

/** Returns the tally of many tables, and a line for each that changed, warned or failed. */
function summaryOf({ table_loads: loads }: RunDetails): [string, string][] {
  const results = loads.map(({ result }) => result);
  const changed = results.filter((result) =>
    result.status === "success" &&
    (result.mode !== "unchanged" || result.warnings.length > 0)
  );
  const failed = results.filter(({ status }) => status === "failure");
  return [
    ["tables", `${results.length}: ${describeTally(tallyOf(results))}`],
    ...[...changed, ...failed].flatMap((result): [string, string][] => [
      [
        result.table,
        result.status === "failure"
          ? result.error
          : `${describeChange(result)}  ${formatSeconds(result.duration)}`,
      ],
      ...(result.status === "success" ? result.warnings : [])
        .map((warning): [string, string] => ["", warning]),
    ]),
  ];
}
