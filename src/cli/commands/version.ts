/** `version`: prints the version. */
import { VERSION } from "../../identity.ts";
import type { Command } from "../command.ts";

export const versionCommand: Command = {
  name: "version",
  summary: "Prints the version.",
  flags: {
    licenses: {
      description:
        "Print the licenses of the packages that the program contains",
    },
  },
  run({ arguments: { flags }, output }) {
    if (flags.has("licenses")) {
      const file = new URL("../licenses.txt", import.meta.url);
      const licenses = Deno.readTextFileSync(file);
      output.show({ licenses }, ...licenses.split("\n"));
    } else {
      output.show({ version: VERSION, deno: Deno.version.deno }, VERSION);
    }
    return Promise.resolve(0);
  },
};
