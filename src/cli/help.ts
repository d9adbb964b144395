/** The help of the program and of each command. */
import { type Command, COMMON_FLAGS } from "./command.ts";

/** Returns the help of the program. */
export function helpOfAll(commands: readonly Command[]): string {
  return [
    "Usage: marketing-data-service COMMAND [flags]",
    "",
    "Keeps warehouse tables equal to source tables, and publishes an event for each load.",
    "",
    "Commands:",
    ...columns(commands.map(({ name, summary }) => [name, summary])),
    "",
    "Flags of every command:",
    ...flagLines(COMMON_FLAGS),
  ].join("\n");
}

/** Returns the help of one command. */
export function helpOf(command: Command): string {
  const { allowed = [], operands = {} } = command.action ?? {};
  const actions = allowed.map((name) =>
    operands[name] ? `${name} ${operands[name]}` : name
  );
  const action = actions.length > 0 ? ` [${actions.join("|")}]` : "";
  return [
    `Usage: marketing-data-service ${command.name}${action} [flags]`,
    "",
    command.summary,
    "",
    "Flags:",
    ...flagLines({ ...command.flags, ...COMMON_FLAGS }),
  ].join("\n");
}

function flagLines(flags: Command["flags"]): string[] {
  return columns(
    Object.entries(flags).map(([name, { value, description, allowed }]) => [
      `--${name}${value ? ` ${value}` : ""}`,
      `${description}${allowed ? ` (${allowed.join(", ")})` : ""}`,
    ]),
  );
}

/** Returns a line for each row, with the first cells padded to the same width. */
function columns(rows: readonly (readonly [string, string])[]): string[] {
  const width = Math.max(...rows.map(([first]) => first.length));
  return rows.map(([first, second]) => `  ${first.padEnd(width)}  ${second}`);
}
