/**
 * The HTTP benchmark: `wrk` with 64 connections on `/health/live`, on `GET /`, and
 * on a bare Hono app.
 *
 * Usage: `deno task bench:http [SECONDS]`. Needs `wrk` on the PATH.
 *
 * @module
 */
import { findFreePort, startServer } from "../tests/support/server.ts";
import { startPostgres } from "../demo/postgres.ts";
import { hasProgram, printAbsent, printUsage } from "./main.ts";

if (import.meta.main) Deno.exit(await main());

async function main(): Promise<number> {
  const [given = "5", ...others] = Deno.args;
  const seconds = Number(given);
  if (!Number.isInteger(seconds) || seconds < 1 || others.length > 0) {
    return printUsage("deno task bench:http [SECONDS]");
  }
  if (!hasProgram("wrk")) return printAbsent("wrk", "wrk");
  await using postgres = await startPostgres();
  const address = {
    HOST: postgres.host,
    PORT: String(postgres.port),
    USER: "postgres",
  };
  const environment: Record<string, string> = { LOG_LEVEL: "ERROR" };
  for (
    const [name, value] of Object.entries({ ...address, NAME: "postgres" })
  ) {
    environment[`OLIST_DB_${name}`] = environment[`DWH_DB_${name}`] = value;
  }
  await using server = await startServer({ environment });
  const port = findFreePort();
  const baseline = new Deno.Command(Deno.execPath(), {
    args: [
      "run",
      "--allow-net",
      new URL("hono_baseline.ts", import.meta.url).pathname,
      String(port),
    ],
    stdout: "null",
    stderr: "null",
  }).spawn();
  try {
    await reachable(`http://127.0.0.1:${port}/`);
    for (
      const [name, url] of [
        ["bare Hono", `http://127.0.0.1:${port}/`],
        ["GET /health/live", `${server.url}/health/live`],
        ["GET /", `${server.url}/`],
      ] as const
    ) {
      const { rate, p99, errors } = await wrk(url, seconds);
      print(
        `${name.padEnd(18)} ${rate.padStart(10)} requests/s   p99 ${
          p99.padStart(9)
        }   ${errors}`,
      );
    }
  } finally {
    baseline.kill();
    await baseline.status;
  }
  return 0;
}

async function wrk(url: string, seconds: number) {
  const { stdout } = await new Deno.Command("wrk", {
    args: ["-t1", "-c64", `-d${seconds}s`, "--latency", url],
  }).output();
  const text = new TextDecoder().decode(stdout);
  const of = (pattern: RegExp) => pattern.exec(text)?.[1] ?? "?";
  const failed = /Non-2xx.*|Socket errors.*/.exec(text)?.[0];
  return {
    rate: of(/Requests\/sec:\s+(\S+)/),
    p99: of(/99%\s+(\S+)/),
    errors: failed ?? "no errors",
  };
}

async function reachable(url: string): Promise<void> {
  for (let tries = 0; tries < 200; tries++) {
    try {
      await (await fetch(url)).body?.cancel();
      return;
    } catch {
      await new Promise((done) => setTimeout(done, 25));
    }
  }
  throw new Error(`${url} does not answer`);
}

function print(text: string): void {
  Deno.stdout.writeSync(new TextEncoder().encode(`${text}\n`));
}
