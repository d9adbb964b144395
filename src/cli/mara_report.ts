/** The report of a comparison with the tables of a Mara pipeline. */
import type { ComparisonOutcome } from "../sync/compare_tables.ts";
import type {
  Habit,
  MaraComparison,
  Unexplained,
  Zones,
} from "../mara/comparison.ts";
import { formatCount, formatQuantity } from "../format.ts";
import { exitOf, missingTarget, resultList } from "./comparison_report.ts";
import type { Output } from "./output.ts";

/** Prints the outcomes and returns the exit code: 0 when everything is equal or explained. */
export function printMaraComparisons(
  output: Output,
  outcomes: readonly ComparisonOutcome<MaraComparison>[],
  zones: Zones,
): number {
  const isExplained = outcomes.every((outcome) =>
    "comparison" in outcome && outcome.comparison.unexplained === null
  );
  output.show(
    { explained: isExplained, tables: outcomes.map(asJson) },
    resultList(outcomes.flatMap((outcome) => {
      const [result, details, ...more] = describe(outcome, zones);
      return [
        [outcome.table, result!, details!],
        ...more.map((line) => ["", "", line]),
      ];
    })),
  );
  return exitOf(outcomes, isExplained);
}

function asJson(outcome: ComparisonOutcome<MaraComparison>) {
  const { table } = outcome;
  if ("error" in outcome) {
    const { line, code } = outcome.error;
    return { table, verdict: "failed", error: line, code };
  }
  const { sourceCount, targetCount, habits, unexplained } = outcome.comparison;
  return {
    table,
    verdict: verdictOf(outcome.comparison),
    source_count: sourceCount,
    target_count: targetCount,
    habits: Object.fromEntries(habits.map(({ habit, rows }) => [habit, rows])),
    missing: unexplained?.missing ?? 0,
    surplus: unexplained?.surplus ?? 0,
    at_least: unexplained?.isAtLeast ?? false,
    missing_keys: unexplained?.missingKeys ?? [],
    surplus_keys: unexplained?.surplusKeys ?? [],
  };
}

function verdictOf({ habits, unexplained }: MaraComparison) {
  return unexplained ? "different" : habits.length > 0 ? "explained" : "equal";
}

/** Returns the result, the details, and more lines of details. */
function describe(
  outcome: ComparisonOutcome<MaraComparison>,
  zones: Zones,
): string[] {
  if ("error" in outcome) return ["FAILED", outcome.error.line];
  const { comparison } = outcome;
  const { sourceCount, targetCount, habits, unexplained } = comparison;
  const explained = habits.map(({ habit, rows }) =>
    `${formatQuantity(rows, "row")}: ${HABIT_TEXTS[habit](zones)}`
  );
  switch (verdictOf(comparison)) {
    case "equal":
      return [
        "equal",
        `${formatQuantity(sourceCount, "row")}, as the service loads them`,
      ];
    case "explained":
      return [
        "explained",
        `${formatQuantity(sourceCount, "row")}, equal except for Mara's habits`,
        ...explained,
      ];
    case "different":
      return targetCount === null ? ["MISSING", missingTarget(sourceCount)] : [
        "DIFFERENT",
        `${formatQuantity(sourceCount, "row")} in the source, ${
          formatCount(targetCount)
        } in the target`,
        ...explained,
        ...unexplainedLines(unexplained!),
      ];
  }
}

const HABIT_TEXTS: Readonly<Record<Habit, (zones: Zones) => string>> = {
  timezone: ({ mara, service }) =>
    `a DATE or TIMESTAMP is in ${mara}, and would be in ${service} (LOAD_TIMEZONE)`,
  text_form: () =>
    "a REAL has the decimals of its text, and a CHAR keeps its padding",
  blank_lines: () => "blank lines inside a text are missing",
  backslashes: () => "a backslash in a text escaped the next character",
  empty_texts: () => "an empty text is NULL",
};

function unexplainedLines(unexplained: Unexplained): string[] {
  const some = unexplained.isAtLeast ? "at least " : "";
  const line = (
    side: string,
    other: string,
    count: number,
    keys: readonly (string | null)[],
  ) =>
    count === 0 ? [] : [
      `${some}${formatQuantity(count, "row")} of the ${side} ${
        count === 1 ? "is" : "are"
      } not in the ${other}, such as ${
        keys.map((key) => JSON.stringify(key)).join(", ")
      }`,
    ];
  return [
    ...line(
      "source",
      "target",
      unexplained.missing,
      unexplained.missingKeys,
    ),
    ...line(
      "target",
      "source",
      unexplained.surplus,
      unexplained.surplusKeys,
    ),
  ];
}
