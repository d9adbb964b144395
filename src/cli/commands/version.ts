/** `version`: prints the version. */
import { VERSION } from "../../identity.ts";
import type { Command } from "../command.ts";

export const versionCommand: Command = {
  name: "version",
  summary: "Prints the version.",
  flags: {},
  run({ output }) {
    output.show({ version: VERSION, deno: Deno.version.deno }, VERSION);
    return Promise.resolve(0);
  },
};
