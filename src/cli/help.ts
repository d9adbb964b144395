/**
 * The help of the program and of each command.
 *
 * @module
 */
import { type Command, COMMON_FLAGS } from "./command.ts";

/** Returns the help of the program. */
export function helpOfAll(commands: readonly Command[]): string {
  const flags = Object.entries(COMMON_FLAGS).map(([name, flag]) => [
    `--${name}${flag.value ? ` ${flag.value}` : ""}`,
    flag.description,
  ]);
  return [
    "Usage: marketing-data-service COMMAND [flags]",
    "",
    "Keeps warehouse tables equal to source tables, and announces each load by an event.",
    "",
    "Commands:",
    ...columns(commands.map(({ name, summary }) => [name, summary])),
    "",
    "Flags of every command:",
    ...columns(flags),
  ].join("\n");
}

/** Returns the help of one command. */
export function helpOf(command: Command): string {
  const { allowed = [], operands = {} } = command.action ?? {};
  const actions = allowed.map((name) =>
    operands[name] ? `${name} ${operands[name]}` : name
  );
  const action = actions.length > 0 ? ` [${actions.join("|")}]` : "";
  const rows = Object.entries({ ...command.flags, ...COMMON_FLAGS }).map(
    ([name, flag]) => {
      const allowed = flag.allowed ? ` (${flag.allowed.join(", ")})` : "";
      return [
        `--${name}${flag.value ? ` ${flag.value}` : ""}`,
        `${flag.description}${allowed}`,
      ];
    },
  );
  return [
    `Usage: marketing-data-service ${command.name}${action} [flags]`,
    "",
    command.summary,
    "",
    "Flags:",
    ...columns(rows),
  ].join("\n");
}

/** Returns a line for each row, with the first cells padded to the same width. */
function columns(rows: readonly (readonly string[])[]): string[] {
  const width = Math.max(...rows.map(([first]) => first!.length));
  return rows.map(([first, ...rest]) =>
    `  ${first!.padEnd(width)}  ${rest.join("  ")}`.trimEnd()
  );
}
