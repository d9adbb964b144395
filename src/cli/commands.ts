/** The commands of the program. */
import type { Command } from "./command.ts";
import { configCommand } from "./commands/config.ts";
import { eventsCommand } from "./commands/events.ts";
import { healthCommand } from "./commands/health.ts";
import { loadCommand } from "./commands/load.ts";
import { runsCommand } from "./commands/runs.ts";
import { schemaCommand } from "./commands/schema.ts";
import { serveCommand } from "./commands/serve.ts";
import { verifyCommand } from "./commands/verify.ts";
import { versionCommand } from "./commands/version.ts";

/** All commands, in the order of the help. */
export const COMMANDS: readonly Command[] = [
  loadCommand,
  healthCommand,
  verifyCommand,
  runsCommand,
  eventsCommand,
  serveCommand,
  schemaCommand,
  configCommand,
  versionCommand,
];
