/** `version`: prints the version. */
import { VERSION } from "../../identity.ts";
import type { Command } from "../command.ts";

export const versionCommand: Command = {
  name: "version",
  summary: "Prints the version.",
  flags: {},
  run({ output }) {
    if (output.isJson) {
      output.json({ version: VERSION, deno: Deno.version.deno });
    } else output.line(VERSION);
    return Promise.resolve(0);
  },
};
