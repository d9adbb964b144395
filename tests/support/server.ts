/**
 * A process of the service, on a real socket.
 *
 * @module
 */
import { findFreePort } from "../../demo/postgres.ts";
import type { Databases } from "./databases.ts";
import { type Finished, killUnlessEnded, startProgram } from "./program.ts";

/** A status and a parsed body. */
export interface Answer {
  readonly status: number;
  // deno-lint-ignore no-explicit-any -- the tests assert on what they use
  readonly body: any;
}

/** A running service. */
export interface Server extends AsyncDisposable {
  readonly url: string;
  readonly pid: number;
  readonly finished: Promise<Finished>;
  kill(signal: Deno.Signal): void;
  /** Sends a request to a path: POST with a body, otherwise GET. */
  fetch(path: string, init?: RequestInit): Promise<Response>;
  /** Sends a request to a path and parses the answer. */
  json(path: string, init?: RequestInit): Promise<Answer>;
}

/** Starts a service on a free port and waits until it is ready for loads, or until another path answers 200. */
export async function startServer(
  databases: Pick<Databases, "environment">,
  changes: Readonly<Record<string, string>> = {},
  start = startProgram,
  path = "/health/ready",
): Promise<Server> {
  const port = findFreePort();
  const { process, finished } = start(["serve"], {
    ...databases.environment,
    PORT: String(port),
    ...changes,
  });
  let isOver = false;
  finished.then(() => isOver = true);
  const url = `http://127.0.0.1:${port}`;
  const get = (path: string, init?: RequestInit) =>
    fetch(`${url}${path}`, init);
  await until("the service is ready", async () => {
    if (isOver) throw new Error((await finished).stderr);
    try {
      const response = await get(path);
      await response.body?.cancel();
      return response.status === 200;
    } catch {
      return false;
    }
  });
  return {
    url,
    pid: process.pid,
    finished,
    kill: (signal) => process.kill(signal),
    fetch: get,
    async json(path, init) {
      const response = await get(path, init);
      return { status: response.status, body: await response.json() };
    },
    async [Symbol.asyncDispose]() {
      killUnlessEnded((signal) => process.kill(signal), "SIGKILL");
      await finished;
    },
  };
}

export { findFreePort };

/** Polls a condition every few milliseconds until it is true. */
export async function until(
  what: string,
  condition: () => Promise<boolean>,
  seconds = 30,
): Promise<void> {
  const deadline = performance.now() + seconds * 1000;
  while (!await condition()) {
    if (performance.now() > deadline) {
      throw new Error(`Not within ${seconds} s: ${what}`);
    }
    await new Promise((done) => setTimeout(done, 20));
  }
}
