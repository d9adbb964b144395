/** `config`: what is in force. */
import { effectiveVariables } from "../../config/config.ts";
import { columns, type Command } from "../command.ts";

export const configCommand: Command = {
  name: "config",
  summary: "Prints every variable with its value in force, secrets masked.",
  flags: {},
  run({ config, environment, output }) {
    config(); // Reports what is wrong before anything is printed.
    const variables = effectiveVariables(environment);
    if (output.isJson) {
      output.json(
        Object.fromEntries(variables.map(({ name, ...rest }) => [name, rest])),
      );
    } else {
      const rows = variables.map(({ name, value, origin, description }) => [
        `${name}=${value ?? ""}`,
        `${origin === "set" ? "set    " : "default"}  ${description}`,
      ]);
      for (const line of columns(rows)) output.line(line.trimStart());
    }
    return Promise.resolve(0);
  },
};
