/** `config`: prints the variables in force. */
import { effectiveVariables } from "../../config/config.ts";
import { checkFiles } from "../../delivery/file.ts";
import type { Command } from "../command.ts";

export const configCommand: Command = {
  name: "config",
  summary: "Prints every variable with its value in force, and masks secrets.",
  flags: {},
  async run({ config, environment, output }) {
    // Report mistakes before printing anything.
    await checkFiles(config());
    const variables = effectiveVariables(environment);
    output.show(
      Object.fromEntries(variables.map(({ name, ...rest }) => [name, rest])),
      {
        columns: [{}, {}, {}],
        rows: variables.map(({ name, value, origin, description }) => [
          `${name}=${value ?? ""}`,
          origin,
          description,
        ]),
      },
    );
    return 0;
  },
};
