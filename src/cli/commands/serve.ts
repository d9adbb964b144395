/** `serve`: the HTTP service, with its schedule. */
import type { Command } from "../command.ts";

export const serveCommand: Command = {
  name: "serve",
  summary:
    "Serves the HTTP API and the dashboard, and loads on a schedule, until a signal stops it.",
  flags: {},
  run: (context) => context.serve(),
};
