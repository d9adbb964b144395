/** `health`: can both databases be reached. */
import { Pool } from "../db.ts";
import { ERRORS } from "../errors.ts";
import { checkHealth } from "../health.ts";
import type { Command } from "./command.ts";
import { mark } from "./terminal_table.ts";

export const healthCommand: Command = {
  name: "health",
  summary:
    "Checks that both databases answer; exits with 69 when one does not.",
  flags: {},
  async run({ config, output }) {
    const { olist, dwh, connectTimeoutSeconds } = config();
    const options = { max: 1, connectTimeoutSeconds };
    await using source = new Pool(olist, options);
    await using warehouse = new Pool(dwh, options);
    const health = await checkHealth(source, warehouse);
    if (output.isJson) output.json(health);
    else {
      for (const [name, check] of Object.entries(health.checks)) {
        const isWell = check.status === "healthy";
        const words = [
          name.padEnd(5),
          check.status.padEnd(9),
          `${check.latency_ms} ms`,
          ...(check.error ? [check.error] : []),
        ].join("  ");
        output.line(
          output.terminal
            ? `${mark(output.terminal, isWell ? "good" : "bad")} ${words}`
            : words,
        );
      }
    }
    return health.status === "healthy" ? 0 : ERRORS.connection_failed.exit;
  },
};
