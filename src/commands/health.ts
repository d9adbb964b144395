/** `health`: can both databases be reached. */
import { Pool } from "../db.ts";
import { ERRORS } from "../errors.ts";
import { checkHealth } from "../health.ts";
import type { Command } from "./command.ts";

export const healthCommand: Command = {
  name: "health",
  summary:
    "Checks that both databases answer; exits with 69 when one does not.",
  flags: {},
  async run({ config, output }) {
    const { olist, dwh, ...rest } = config();
    const { connectTimeoutSeconds, stallTimeoutSeconds } = rest;
    const options = { max: 1, connectTimeoutSeconds, stallTimeoutSeconds };
    await using source = new Pool(olist, options);
    await using warehouse = new Pool(dwh, options);
    const health = await checkHealth(source, warehouse);
    if (output.isJson) output.json(health);
    else {
      for (const [name, check] of Object.entries(health.checks)) {
        output.line(
          `${name.padEnd(5)}  ${
            check.status.padEnd(9)
          }  ${check.latency_ms} ms${check.error ? `  ${check.error}` : ""}`,
        );
      }
    }
    return health.status === "healthy" ? 0 : ERRORS.connection_failed.exit;
  },
};
