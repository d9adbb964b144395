/** The report of a comparison of source and target. */
import type { ComparisonOutcome } from "../sync/compare_tables.ts";
import { equal as holdSame } from "../diff/fingerprint.ts";
import type { Output } from "./output.ts";

/**
 * Prints the outcomes and returns the exit code. Different data is a failure as
 * a `verdict`, and a planned change as a `plan`.
 */
export function printComparisons(
  output: Output,
  outcomes: readonly ComparisonOutcome[],
  as: "verdict" | "plan",
): number {
  const rows = outcomes.map(describe);
  if (output.isJson) {
    output.json({ equal: rows.every((row) => row.equal), tables: rows });
  } else {
    const width = Math.max(...outcomes.map(({ table }) => table.length));
    for (const row of rows) {
      output.line(
        `${row.table.padEnd(width)}  ${
          as === "plan" ? row.planned : row.verdict
        }`,
      );
    }
  }
  const failed = outcomes.find((outcome) => "error" in outcome);
  if (failed && "error" in failed) return failed.error.kind.exit;
  return as === "verdict" && rows.some((row) => !row.equal) ? 1 : 0;
}

function describe(outcome: ComparisonOutcome) {
  if ("error" in outcome) {
    const { error } = outcome;
    return {
      table: outcome.table,
      equal: false,
      error: error.line,
      code: error.code,
      verdict: `FAILED  ${error.line}`,
      planned: `FAILED  ${error.line}`,
    };
  }
  const { source, target, plan, rowsToCopy: rows } = outcome.comparison;
  const equal = target !== null && holdSame(source, target);
  return {
    table: outcome.table,
    equal,
    source_count: source.count,
    target_count: target?.count ?? null,
    source_checksum: source.checksum,
    target_checksum: target?.checksum ?? null,
    mode: plan.mode,
    rows_to_copy: rows,
    verdict: equal
      ? `equal      ${source.count} rows`
      : target === null
      ? `MISSING    the target does not exist; the source has ${source.count} rows`
      : `DIFFERENT  ${source.count} rows in the source, ${target.count} in the target; ` +
        `${rows} rows to copy`,
    planned: plan.mode === "unchanged"
      ? `unchanged  nothing to copy, ${source.count} rows`
      : `${plan.mode.padEnd(9)}  would copy ${rows} of ${source.count} rows`,
  };
}
