/** The commands of the program. */
import type { Command } from "./command.ts";

/** All commands, in the order of the help. Each loads only the code that it needs. */
const COMMANDS: Readonly<Record<string, () => Promise<Command>>> = {
  load: async () => (await import("./commands/load.ts")).loadCommand,
  health: async () => (await import("./commands/health.ts")).healthCommand,
  verify: async () => (await import("./commands/verify.ts")).verifyCommand,
  runs: async () => (await import("./commands/runs.ts")).runsCommand,
  events: async () => (await import("./commands/events.ts")).eventsCommand,
  serve: async () => (await import("./commands/serve.ts")).serveCommand,
  schema: async () => (await import("./commands/schema.ts")).schemaCommand,
  config: async () => (await import("./commands/config.ts")).configCommand,
  version: async () => (await import("./commands/version.ts")).versionCommand,
};

export const COMMAND_NAMES: readonly string[] = Object.keys(COMMANDS);

/** Returns the named command, or `undefined` for an unknown name. */
export async function commandOf(name: string): Promise<Command | undefined> {
  return await (Object.hasOwn(COMMANDS, name) ? COMMANDS[name]!() : undefined);
}

/** Returns all commands. */
export async function allCommands(): Promise<readonly Command[]> {
  return await Promise.all(Object.values(COMMANDS).map((load) => load()));
}
