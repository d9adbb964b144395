/** `health`: checks both databases, or asks the running service. */
import type { Config } from "../../config/config.ts";
import { Pool } from "../../postgres/pool.ts";
import { ERRORS, ServiceError } from "../../errors.ts";
import { formatSeconds } from "../../format.ts";
import { checkHealth, type Health } from "../../service/health.ts";
import type { Command } from "../command.ts";

/** Seconds within which a running service must answer. Its checks take up to 2. */
const SERVICE_TIMEOUT_SECONDS = 4;

/** Maximum length of the answer of a service, in characters. Another program may send more. */
const MAX_ANSWER_LENGTH = 100_000;

/** The answer of a service. Without the token, and without databases, it has no checks. */
interface ServiceHealth extends Partial<Pick<Health, "checks">> {
  readonly status: Health["status"] | "live";
}

export const healthCommand: Command = {
  name: "health",
  summary:
    "Checks that both databases answer and that the warehouse accepts writes. Exits with 69 otherwise.",
  flags: {
    service: {
      description: "Ask the service that listens on HOST and PORT instead",
    },
    live: {
      excludes: ["service"],
      description:
        "Ask that service only whether it runs, without the databases",
    },
  },
  async run({ arguments: { flags }, config, output, signal }) {
    const path = flags.has("live")
      ? "/health/live"
      : flags.has("service")
      ? "/health"
      : undefined;
    const health: ServiceHealth = path
      ? await askService(path, config(), signal)
      : await checkDatabases(config());
    output.show(health, {
      columns: [{ width: 7 }, { width: 9 }, { isNumber: true }, {}],
      rows: health.checks
        ? Object.entries(health.checks).map(([name, check]) => [
          {
            text: name,
            tone: check.status === "healthy" ? "good" : "bad",
            isMarked: true,
          },
          check.status,
          formatSeconds(check.latency_ms / 1000),
          check.error ?? check.server ?? "",
        ])
        : [[health.status]],
    });
    return health.status === "unhealthy" ? ERRORS.connection_failed.exit : 0;
  },
};

async function checkDatabases(config: Config): Promise<Health> {
  await using source = new Pool(config.olist, { ...config, max: 1 });
  await using warehouse = new Pool(config.dwh, { ...config, max: 1 });
  return await checkHealth(source, warehouse);
}

/**
 * Asks the service on this host.
 *
 * @throws {ServiceError} `connection_failed` when no service answers.
 */
async function askService(
  path: string,
  { host, port, apiToken }: Config,
  signal: AbortSignal,
): Promise<ServiceHealth> {
  const address = host === "0.0.0.0" || host === "::" ? "localhost" : host;
  const url = `http://${
    address.includes(":") ? `[${address}]` : address
  }:${port}${path}`;
  try {
    return parseHealth(
      await getDirectly(
        url,
        apiToken ? { authorization: `Bearer ${apiToken}` } : {},
        AbortSignal.any([
          signal,
          AbortSignal.timeout(SERVICE_TIMEOUT_SECONDS * 1000),
        ]),
      ),
    );
  } catch (error) {
    throw new ServiceError(
      "connection_failed",
      `Cannot reach the service on ${url}: ${(error as Error).message}`,
      {
        cause: error,
        remedy:
          "Start the service with `serve`, or set HOST and PORT to its address.",
      },
    );
  }
}

/** @throws {Error} when the text is not an answer of the service. */
function parseHealth(text: string): ServiceHealth {
  try {
    const health = JSON.parse(text);
    if (["healthy", "unhealthy", "live"].includes(health.status)) return health;
  } catch {
    // Other programs answer without JSON.
  }
  throw otherProgram();
}

function otherProgram(): Error {
  return new Error("another program answered");
}

/** Returns the body at a URL. Unlike `fetch`, it never uses a proxy, which would see the token. */
async function getDirectly(
  url: string,
  headers: Record<string, string>,
  signal: AbortSignal,
): Promise<string> {
  const { Agent, get } = await import("node:http");
  // Without `proxyEnv`, NODE_USE_ENV_PROXY sends the request to HTTP_PROXY.
  const options = { keepAlive: false, proxyEnv: {} };
  const agent = new Agent(options);
  return await new Promise((done, fail) => {
    get(url, { headers, signal, agent }, (response) => {
      let text = "";
      response.setEncoding("utf8");
      response.on("data", (part: string) => {
        text += part;
        if (text.length > MAX_ANSWER_LENGTH) response.destroy(otherProgram());
      });
      response.on("end", () => done(text));
      response.on("error", fail);
    }).on("error", fail);
  });
}
