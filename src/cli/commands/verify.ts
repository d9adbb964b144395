/** `verify`: compares source and target. */
import { comparedWith, compareTables } from "../../sync/compare_tables.ts";
import { VARIABLES } from "../../config/variables.ts";
import { usage } from "../arguments.ts";
import type { Command } from "../command.ts";
import { printComparisons } from "../comparison_report.ts";
import { loadCommand, MAX_NAMED_ROWS, rowsOf, tablesOf } from "./load.ts";

/** The default time zone of Mara. */
const MARA_TIMEZONE = "Europe/Berlin";

export const verifyCommand: Command = {
  name: "verify",
  summary:
    "Compares the warehouse tables with the source tables, and runs their checks. Exits with 1 when they differ or a check does not hold.",
  flags: {
    table: {
      ...loadCommand.flags.table!,
      description:
        "Compare only this table. Repeat the flag for several tables",
    },
    group: {
      ...loadCommand.flags.group!,
      description:
        "Compare only the tables of this group. Repeat the flag for several groups",
    },
    rows: {
      value: "NUMBER",
      range: [1, MAX_NAMED_ROWS],
      excludes: ["against-mara"],
      description:
        `Name rows that differ, at most this number for each table (1 to ${MAX_NAMED_ROWS})`,
    },
    "against-mara": {
      description:
        "Explain differences that the Mara pipeline caused when it loaded the tables. Exits with 1 if others remain",
    },
    "mara-timezone": {
      value: "ZONE",
      needs: "against-mara",
      description: `Time zone of the Mara pipeline (default: ${MARA_TIMEZONE})`,
    },
  },
  async run({ arguments: { values, flags }, output, signal, ...context }) {
    const rows = rowsOf(values);
    const config = context.config();
    const tables = tablesOf(config.tables, values, "verify");
    if (!flags.has("against-mara")) {
      const outcomes = await compareTables(
        config,
        tables,
        signal,
        comparedWith({ rows, checkTimeoutSeconds: config.checkTimeoutSeconds }),
      );
      return printComparisons(output, outcomes, "verdict");
    }
    // Other commands start faster without these.
    const { compareWithMara } = await import("../../mara/comparison.ts");
    const { printMaraComparisons } = await import("../mara_report.ts");
    const zone = timezoneOf(values["mara-timezone"]?.[0] ?? MARA_TIMEZONE);
    const zones = { mara: zone, service: config.loadTimezone };
    const outcomes = await compareTables(
      config,
      tables,
      signal,
      compareWithMara(zones),
    );
    return printMaraComparisons(output, outcomes, zones);
  },
};

function timezoneOf(text: string): string {
  try {
    return VARIABLES.LOAD_TIMEZONE.parse(text);
  } catch (error) {
    throw usage(`--mara-timezone ${(error as Error).message}`, "verify");
  }
}
