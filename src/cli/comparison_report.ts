/** The report of a comparison of source and target. */
import { equal as holdSame } from "../diff/fingerprint.ts";
import { formatFailure } from "../sync/checks.ts";
import type { ComparisonOutcome } from "../sync/compare_tables.ts";
import type { Output } from "./output.ts";
import { formatCount, formatQuantity, MAX_NAMES } from "../format.ts";
import { rowBlocks } from "./row_report.ts";
import type { Part, TextTable } from "./terminal_table.ts";

/**
 * Prints the outcomes and returns the exit code. Different data is a failure as
 * a `verdict`, and a planned change as a `plan`.
 */
export function printComparisons(
  output: Output,
  outcomes: readonly ComparisonOutcome[],
  as: "verdict" | "plan",
): number {
  const tables = outcomes.map(asJson);
  const isEqual = tables.every(({ equal }) => equal);
  const describe = as === "plan" ? describePlan : describeVerdict;
  output.show(
    { equal: isEqual, tables },
    ...outcomes.flatMap((outcome) =>
      "comparison" in outcome && outcome.comparison.rows
        ? rowBlocks(outcome.table, outcome.comparison.rows)
        : []
    ),
    ...partsOf(
      outcomes.map((outcome): Result => [
        outcome.table,
        ...("error" in outcome
          ? ["FAILED", outcome.error.line] as const
          : describe(outcome.comparison)),
      ]),
      output.isTerminal,
    ),
    ...(as === "verdict" && outcomes.some(hasUnnamedRows)
      ? ["Use `verify --rows 20` to see rows that differ."]
      : []),
  );
  const isSound = isEqual &&
    outcomes.every((outcome) =>
      "comparison" in outcome && failedChecks(outcome.comparison).length === 0
    );
  return exitOf(outcomes, as === "plan" || isSound);
}

/** A table, its result, and the details. */
type Result = readonly [string, string, string];

/** Returns the results. A long list ends with those that matter, and with their numbers. */
function partsOf(results: readonly Result[], isTerminal: boolean): Part[] {
  if (results.length <= MAX_NAMES) return [resultList(results)];
  const isFine = ([, result]: Result) =>
    result === "equal" || result === "unchanged";
  const listed = [
    ...(isTerminal ? [] : results.filter(isFine)),
    ...results.filter((result) => !isFine(result)),
  ];
  const counts = [...Map.groupBy(results, ([, result]) => result)]
    .map(([result, { length }]) => `${formatCount(length)} ${result}`);
  return [
    ...(listed.length > 0 ? [resultList(listed)] : []),
    `${formatQuantity(results.length, "table")}: ${counts.join(", ")}`,
  ];
}

/** Returns a list of tables, each with its result and the details. */
export function resultList(rows: TextTable["rows"]): TextTable {
  return { columns: [{}, { width: "DIFFERENT".length }, {}], rows };
}

/** Returns the exit code: that of the first error, or 1 when the data are not as expected. */
export function exitOf(
  outcomes: readonly ComparisonOutcome<unknown>[],
  isExpected: boolean,
): number {
  const failed = outcomes.find((outcome) => "error" in outcome);
  return failed && "error" in failed
    ? failed.error.kind.exit
    : isExpected
    ? 0
    : 1;
}

type Comparison = Extract<ComparisonOutcome, { comparison: unknown }>[
  "comparison"
];

const isEqual = ({ source, target }: Comparison) =>
  target !== null && holdSame(source, target);

/** Returns whether rows can differ that --rows would name. */
function hasUnnamedRows(outcome: ComparisonOutcome): boolean {
  if ("error" in outcome) return false;
  const { comparison } = outcome;
  return !isEqual(comparison) && !!comparison.target && !comparison.rows;
}

const failedChecks = ({ checks = [] }: Comparison) =>
  checks.filter(({ ok }) => !ok);

function asJson(outcome: ComparisonOutcome) {
  const { table } = outcome;
  if ("error" in outcome) {
    const { line, code } = outcome.error;
    return { table, equal: false, error: line, code };
  }
  const { source, target, plan, rowsToCopy, rows, checks } = outcome.comparison;
  return {
    table,
    equal: isEqual(outcome.comparison),
    source_count: source.count,
    target_count: target?.count ?? null,
    source_checksum: source.checksum,
    target_checksum: target?.checksum ?? null,
    mode: plan.mode,
    rows_to_copy: rowsToCopy,
    ...(rows ? { differing_rows: rows } : {}),
    ...(checks ? { checks } : {}),
  };
}

function describeVerdict(comparison: Comparison): [string, string] {
  const { source, target, rowsToCopy } = comparison;
  const failed = failedChecks(comparison).map(formatFailure);
  const details = (text: string) => [text, ...failed].join("; ");
  return isEqual(comparison)
    ? [
      failed.length > 0 ? "FAILED" : "equal",
      details(formatQuantity(source.count, "row")),
    ]
    : target === null
    ? ["MISSING", missingTarget(source.count)]
    : [
      "DIFFERENT",
      details(
        `${formatQuantity(source.count, "row")} in the source, ${
          formatCount(target.count)
        } in the target; ${formatQuantity(rowsToCopy, "row")} to copy, ${
          formatCount(rowsToDelete(comparison))
        } to delete`,
      ),
    ];
}

function describePlan(comparison: Comparison): [string, string] {
  const { source, plan, rowsToCopy } = comparison;
  const rows = formatQuantity(source.count, "row");
  if (plan.mode === "unchanged") return [plan.mode, `nothing to copy, ${rows}`];
  const copies = `would copy ${formatCount(rowsToCopy)} of ${rows}`;
  return plan.mode === "full" ? [plan.mode, copies] : [
    plan.mode,
    `${copies} and delete ${formatCount(rowsToDelete(comparison))}`,
  ];
}

/** Returns the number of rows of the target that a load replaces or removes. */
function rowsToDelete({ source, target, rowsToCopy }: Comparison): number {
  return (target?.count ?? 0) + rowsToCopy - source.count;
}

/** Returns the details of a target that does not exist. */
export function missingTarget(sourceCount: number): string {
  return `the target does not exist; the source has ${
    formatQuantity(sourceCount, "row")
  }`;
}
