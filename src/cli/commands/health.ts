/** `health`: can both databases be reached. */
import type { Config } from "../../config/config.ts";
import { Pool } from "../../postgres/pool.ts";
import { ERRORS, ServiceError } from "../../errors.ts";
import { checkHealth, type Health } from "../../service/health.ts";
import type { Command } from "../command.ts";
import { mark } from "../terminal_table.ts";

/** Seconds in which a running service must answer; its own checks take up to 2. */
const SERVICE_TIMEOUT_SECONDS = 4;

export const healthCommand: Command = {
  name: "health",
  summary:
    "Checks that both databases answer; exits with 69 when one does not.",
  flags: {
    service: {
      description: "Ask the service that listens on PORT of this host instead",
    },
  },
  async run({ arguments: { switches }, config, output, signal }) {
    const health = switches.has("service")
      ? await askService(config(), signal)
      : await checkDatabases(config());
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

async function checkDatabases(config: Config): Promise<Health> {
  const { olist, dwh, connectTimeoutSeconds, stallTimeoutSeconds } = config;
  const options = { max: 1, connectTimeoutSeconds, stallTimeoutSeconds };
  await using source = new Pool(olist, options);
  await using warehouse = new Pool(dwh, options);
  return await checkHealth(source, warehouse);
}

/** @throws {ServiceError} `connection_failed` when no service answers. */
async function askService(
  { host, port }: Config,
  signal: AbortSignal,
): Promise<Health> {
  const address = host === "0.0.0.0" || host === "::" ? "localhost" : host;
  const url = `http://${
    address.includes(":") ? `[${address}]` : address
  }:${port}/health`;
  try {
    const response = await fetch(url, {
      signal: AbortSignal.any([
        signal,
        AbortSignal.timeout(SERVICE_TIMEOUT_SECONDS * 1000),
      ]),
    });
    const health = await response.json();
    if (!health.checks) throw new Error("something else listens there");
    return health;
  } catch (error) {
    throw new ServiceError(
      "connection_failed",
      `No service answers on ${url}: ${(error as Error).message}`,
      {
        cause: error,
        remedy: "Start it with `serve`, or set HOST and PORT to where it is.",
      },
    );
  }
}
