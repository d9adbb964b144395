/**
 * A process of the program whose phases a test can observe. It connects through
 * proxies whose latency prolongs every phase, and logs each phase.
 *
 * @module
 */
import type { Databases } from "./databases.ts";
import { type Finished, killUnlessEnded, spawnProgram } from "./program.ts";
import { type Faults, Proxy } from "./proxy.ts";
import { until } from "./soundness.ts";

/** Both servers, behind proxies. */
export interface Proxies extends AsyncDisposable {
  readonly source: Proxy;
  readonly warehouse: Proxy;
  /** The variables of the databases, with the ports of the proxies. */
  readonly environment: Readonly<Record<string, string>>;
}

/** Puts a proxy before each server. */
export function proxied(
  db: Databases,
  faults: { source?: Faults; warehouse?: Faults } = {},
): Proxies {
  const proxy = (prefix: string, of: Faults = {}) =>
    new Proxy({
      hostname: db.environment[`${prefix}_HOST`]!,
      port: Number(db.environment[`${prefix}_PORT`]),
    }, of);
  const source = proxy("OLIST_DB", faults.source);
  const warehouse = proxy("DWH_DB", faults.warehouse);
  return {
    source,
    warehouse,
    environment: {
      ...db.environment,
      OLIST_DB_HOST: "127.0.0.1",
      OLIST_DB_PORT: String(source.port),
      DWH_DB_HOST: "127.0.0.1",
      DWH_DB_PORT: String(warehouse.port),
    },
    async [Symbol.asyncDispose]() {
      await source[Symbol.asyncDispose]();
      await warehouse[Symbol.asyncDispose]();
    },
  };
}

/** A process of the program whose output can be read while it runs. */
interface Watched {
  readonly finished: Promise<Finished>;
  /** The output so far. */
  stdout(): string;
  stderr(): string;
  /** Waits for this text on stderr. */
  reaches(text: string): Promise<void>;
  kill(signal: Deno.Signal): void;
}

/** Starts the program and watches it. */
export function watchProgram(
  words: readonly string[],
  environment: Readonly<Record<string, string>>,
): Watched {
  const process = spawnProgram(words, environment);
  const output = { stdout: "", stderr: "" };
  const read = async (name: "stdout" | "stderr") => {
    const decoder = new TextDecoder();
    for await (const bytes of process[name]) {
      output[name] += decoder.decode(bytes, { stream: true });
    }
  };
  let hasEnded = false;
  const finished = Promise.all([
    process.status,
    read("stdout"),
    read("stderr"),
  ]).then(([{ code }]) => {
    hasEnded = true;
    return { code, ...output };
  });
  return {
    finished,
    stdout: () => output.stdout,
    stderr: () => output.stderr,
    reaches: (text) =>
      until(
        () => {
          if (output.stderr.includes(text)) return true;
          if (hasEnded) {
            throw new Error(
              `ended before "${text}": ${output.stderr}`,
            );
          }
          return false;
        },
        () => `never reached "${text}": ${output.stderr}`,
      ),
    kill: (signal) => process.kill(signal),
  };
}

/** Repeats the signal until the program has ended. */
export async function killUntilEnded(
  { finished, kill }: Pick<Watched, "finished" | "kill">,
  signal: Deno.Signal,
): Promise<Finished> {
  let hasEnded = false;
  finished.then(() => hasEnded = true);
  await until(() => {
    if (!hasEnded) killUnlessEnded(kill, signal);
    return hasEnded;
  });
  return await finished;
}
