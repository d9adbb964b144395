/** `config`: prints the effective variables, and the declared tables. */
import { effectiveVariables } from "../../config/config.ts";
import { checkFiles } from "../../delivery/file.ts";
import { describeTable } from "../../tables/describe_table.ts";
import type { Command } from "../command.ts";

export const configCommand: Command = {
  name: "config",
  summary:
    "Prints the effective value of every variable, with secrets masked, and the declared tables.",
  flags: {},
  async run({ config, environment, output }) {
    // Report mistakes before printing anything.
    await checkFiles(config());
    const tables = config().tables.map(describeTable);
    const variables = effectiveVariables(environment);
    output.show(
      {
        ...Object.fromEntries(
          variables.map(({ name, ...rest }) => [name, rest]),
        ),
        tables,
      },
      {
        columns: [{}, {}, {}],
        rows: variables.map(({ name, value, origin, description }) => [
          `${name}=${value ?? ""}`,
          origin,
          description,
        ]),
      },
      "",
      {
        columns: [
          { name: "Table" },
          { name: "Source" },
          { name: "Target" },
          { name: "Columns", isNumber: true },
          { name: "Key" },
          { name: "Group" },
        ],
        rows: tables.map(({ name, source, target, columns, key, group }) => [
          name,
          source,
          target,
          columns ? String(columns.length) : "all",
          key?.join(", ") ?? "",
          group ?? "",
        ]),
      },
    );
    return 0;
  },
};
