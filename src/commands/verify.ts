/** `verify`: compares source and target now. */
import { compareTables } from "../compare.ts";
import type { Command } from "./command.ts";
import { printComparisons } from "./comparison.ts";
import { loadCommand, tablesOf } from "./load.ts";

export const verifyCommand: Command = {
  name: "verify",
  summary:
    "Compares the warehouse tables with the source tables; exits with 1 when they differ.",
  flags: {
    table: {
      ...loadCommand.flags.table!,
      description: "Compare only this table",
    },
  },
  async run(context) {
    const tables = tablesOf(context.arguments.values.table ?? []);
    const outcomes = await compareTables(
      context.config(),
      tables,
      context.signal,
    );
    return printComparisons(context.output, outcomes, "verdict");
  },
};
