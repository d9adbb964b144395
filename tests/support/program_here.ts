/**
 * Runs the program's `main` in the test's own process, which saves the start of
 * a process. For tests that are not about the process: its permissions,
 * signals, files, or streams. Has the names of `program.ts`.
 *
 * Each call has its own variables and outputs, also when calls overlap.
 *
 * @module
 */
import { AsyncLocalStorage } from "node:async_hooks";
import { main } from "../../cli.ts";
import * as program from "./program.ts";
import type { Finished } from "./program.ts";

/** What one call reads and writes in place of the process. */
interface Call {
  readonly environment: Readonly<Record<string, string>>;
  stdout: string;
  stderr: string;
  hasEnded: boolean;
}

const calls = new AsyncLocalStorage<Call>();

/** Returns the call that the caller belongs to. Deno can start a test in the context of an earlier one. */
function currentCall(): Call | undefined {
  const call = calls.getStore();
  return call?.hasEnded ? undefined : call;
}

const CONSOLE = { ...globalThis.console };
let running = 0;

for (const name of ["stdout", "stderr"] as const) {
  const stream = Deno[name];
  const write = stream.writeSync.bind(stream);
  const isTerminal = stream.isTerminal.bind(stream);
  const decoder = new TextDecoder();
  stream.writeSync = (bytes) => {
    const call = currentCall();
    if (!call) return write(bytes);
    call[name] += decoder.decode(bytes);
    return bytes.length;
  };
  stream.isTerminal = () => !currentCall() && isTerminal();
}

const readVariable = Deno.env.get.bind(Deno.env);
Deno.env.get = (name) => {
  const call = currentCall();
  return call ? call.environment[name] : readVariable(name);
};

const addSignalListener = Deno.addSignalListener;
Deno.addSignalListener = (...args) => {
  // The signals of this process are not those of the program.
  if (!currentCall()) addSignalListener(...args);
};

/**
 * Runs a command to its end. A compiled program that is named runs as a process.
 *
 * @throws {Error} for `serve`, which only a signal to its process ends.
 */
export async function runProgram(
  words: readonly string[],
  environment: Readonly<Record<string, string>> = {},
): Promise<Finished> {
  if (words.includes("serve")) throw new Error("serve needs a process");
  if (program.BINARY) return await program.runProgram(words, environment);
  const call: Call = { environment, stdout: "", stderr: "", hasEnded: false };
  running++;
  try {
    const code = await calls.run(call, () => main(words));
    return { code, stdout: call.stdout, stderr: call.stderr };
  } finally {
    call.hasEnded = true;
    // The program writes the console to its log until its process ends.
    if (--running === 0) Object.assign(globalThis.console, CONSOLE);
  }
}

/** Runs a command of the program with `--json` and parses what it prints. */
export const runJson: typeof program.runJson = (words, environment) =>
  program.parseJson(runProgram([...words, "--json"], environment));
