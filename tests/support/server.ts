/** A server process of the program, and how a test talks to it. */
import { type Finished, startProgram } from "./program.ts";

/** A server that answers. */
export interface ServerProcess extends AsyncDisposable {
  readonly url: string;
  kill(signal: "SIGTERM" | "SIGKILL"): void;
  readonly finished: Promise<Finished>;
}

/** Starts a server on a free port and waits until it takes loads. */
export async function startServer(
  environment: Readonly<Record<string, string>>,
): Promise<ServerProcess> {
  const port = freePort();
  const { process, finished } = startProgram(["serve"], {
    ...environment,
    PORT: String(port),
  });
  const url = `http://127.0.0.1:${port}`;
  let ended = false;
  finished.then(() => ended = true);
  await until(async () => {
    if (ended) throw new Error((await finished).stderr);
    const answer = await fetch(`${url}/health/ready`);
    await answer.body?.cancel();
    return answer.ok;
  });
  return {
    url,
    finished,
    kill: (signal) => process.kill(signal),
    async [Symbol.asyncDispose]() {
      if (!ended) process.kill("SIGKILL");
      await finished;
    },
  };
}

/** Polls until the condition holds; a network failure counts as not yet. */
export async function until(
  condition: () => Promise<boolean>,
  seconds = 20,
): Promise<void> {
  const end = performance.now() + seconds * 1000;
  while (performance.now() < end) {
    try {
      if (await condition()) return;
    } catch (error) {
      if (!(error instanceof TypeError)) throw error;
    }
    await new Promise((done) => setTimeout(done, 30));
  }
  throw new Error(`not so within ${seconds} s`);
}

function freePort(): number {
  using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  return listener.addr.port;
}
