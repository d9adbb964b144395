/**
 * Runs the program in a separate process, with the permissions of its task.
 *
 * @module
 */

const ROOT = new URL("../../", import.meta.url);

/** The output of a process and its exit code. */
export interface Finished {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** A started process of the program. */
export interface Started {
  readonly process: Deno.ChildProcess;
  readonly finished: Promise<Finished>;
}

/** A compiled program to test instead of the sources. */
export const BINARY = Deno.env.get("MARKETING_DATA_SERVICE_BIN");

/** Working folder of a compiled program, outside of the project. */
const EMPTY_FOLDER = BINARY ? Deno.makeTempDirSync() : undefined;
if (EMPTY_FOLDER) {
  addEventListener("unload", () => {
    Deno.removeSync(EMPTY_FOLDER, { recursive: true });
  });
}

/** Returns the command that starts the program: the compiled binary or that of the task. */
function programCommand(): string[] {
  return BINARY ? [BINARY] : [Deno.execPath(), ...taskArguments()];
}

/** The arguments of the task `cli` after `deno`. */
function taskArguments(): string[] {
  const { tasks } = JSON.parse(
    Deno.readTextFileSync(new URL("deno.json", ROOT)),
  );
  // Deno looks for the permission set from the working folder, which is that of the test.
  const config = new URL("deno.json", ROOT).pathname;
  const [, run, ...others] = (tasks.cli.command as string).split(" ");
  return [
    run!,
    `--config=${config}`,
    ...others.map((word) =>
      word === "cli.ts" ? new URL("cli.ts", ROOT).pathname : word
    ),
  ];
}

/** Starts the program with only the given variables. */
export function startProgram(
  words: readonly string[],
  environment: Readonly<Record<string, string>> = {},
  cwd?: string,
): Started {
  const process = spawnProgram(words, environment, cwd);
  return { process, finished: finish(process) };
}

/** Returns a `startProgram` for processes with a limited number of file descriptors. */
export function withDescriptorLimit(limit: number): typeof startProgram {
  return (words, environment = {}, cwd) => {
    const process = spawnPiped(
      [
        ...["sh", "-c", `ulimit -n ${limit} && exec "$@"`, "sh"],
        ...programCommand(),
        ...words,
      ],
      environment,
      cwd ?? EMPTY_FOLDER,
    );
    return { process, finished: finish(process) };
  };
}

/** Starts the program like `startProgram`. The caller reads the output. */
export function spawnProgram(
  words: readonly string[],
  environment: Readonly<Record<string, string>>,
  cwd?: string,
): Deno.ChildProcess {
  return spawnPiped(
    [...programCommand(), ...words],
    environment,
    cwd ?? EMPTY_FOLDER,
  );
}

/** The variables that Deno needs to find its cache. A compiled program gets none. */
function inheritedVariables(): Record<string, string> {
  return Object.fromEntries(
    (BINARY ? [] : ["HOME", "PATH", "DENO_DIR", "TMPDIR"]).flatMap((name) => {
      const value = Deno.env.get(name);
      return value === undefined ? [] : [[name, value]];
    }),
  );
}

/** Runs the task `cli` as a user does. */
export async function runTask(
  words: readonly string[],
  environment: Readonly<Record<string, string>>,
): Promise<Finished> {
  const line = [Deno.execPath(), "task", "--quiet", "cli", ...words];
  return await finish(spawnPiped(line, environment));
}

/** Starts a command with only these variables and those that any program needs. */
function spawnPiped(
  [command, ...args]: readonly string[],
  environment: Readonly<Record<string, string>>,
  cwd = ROOT.pathname,
): Deno.ChildProcess {
  return new Deno.Command(command!, {
    args,
    clearEnv: true,
    env: { ...inheritedVariables(), ...environment },
    cwd,
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
}

/** Runs the program to its end. A shell redirects its output. */
export async function runRedirected(
  words: readonly string[],
  redirection: string,
  environment: Readonly<Record<string, string>> = {},
): Promise<Finished> {
  const line = ["sh", "-c", `exec "$@" ${redirection}`, "sh"];
  return await finish(
    spawnPiped(
      [...line, ...programCommand(), ...words],
      environment,
    ),
  );
}

/** Returns the program on a terminal with this number of columns. Both outputs go to the screen. */
export function terminalCommand(
  words: string,
  width: number,
  environment: Readonly<Record<string, string>>,
): Deno.Command {
  const program = programCommand()
    .map((word) => `'${word.replaceAll("'", "'\\''")}'`).join(" ");
  return new Deno.Command("script", {
    args: ["-qec", `stty cols ${width}; ${program} ${words}`, "/dev/null"],
    clearEnv: true,
    env: { ...inheritedVariables(), ...environment },
    cwd: ROOT.pathname,
    stdin: "null",
  });
}

/** Starts a task on a terminal. The keyboard is the standard input of the process. */
export function startTaskOnTerminal(
  task: string,
  environment: Readonly<Record<string, string>>,
): Deno.ChildProcess {
  return new Deno.Command("script", {
    args: ["-qec", `'${Deno.execPath()}' task ${task}`, "/dev/null"],
    clearEnv: true,
    env: { ...inheritedVariables(), ...environment },
    cwd: ROOT.pathname,
    stdin: "piped",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
}

/** Sends a signal, unless the process has ended. Its output may still be read then. */
export function killUnlessEnded(
  kill: (signal: Deno.Signal) => void,
  signal: Deno.Signal,
): void {
  try {
    kill(signal);
  } catch (error) {
    if (!(error instanceof TypeError)) throw error;
  }
}

/** Waits for the end of a process. Returns what it printed. */
export async function finish(process: Deno.ChildProcess): Promise<Finished> {
  const { code, stdout, stderr } = await process.output();
  const decoder = new TextDecoder();
  return {
    code,
    stdout: decoder.decode(stdout),
    stderr: decoder.decode(stderr),
  };
}

/** Runs the program to its end. */
export function runProgram(
  words: readonly string[],
  environment: Readonly<Record<string, string>> = {},
): Promise<Finished> {
  return startProgram(words, environment).finished;
}

/** Runs the program with a limit of the file size. Its log goes to the file if one is named. */
export async function runWithFileLimit(
  bytes: number,
  words: readonly string[],
  environment: Readonly<Record<string, string>>,
  logFile = "/dev/stderr",
): Promise<Finished> {
  const process = new Deno.Command("/bin/sh", {
    args: [
      "-c",
      'ulimit -f "$1"; log=$2; shift 2; exec "$@" 2>>"$log"',
      "sh",
      // POSIX counts the limit in blocks.
      String(bytes / 512),
      logFile,
      ...programCommand(),
      ...words,
    ],
    clearEnv: true,
    env: { ...inheritedVariables(), ...environment },
    cwd: EMPTY_FOLDER ?? ROOT.pathname,
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  return await finish(process);
}

/** Runs a command of the program with `--json` and parses what it prints. */
export function runJson(
  words: readonly string[],
  environment: Readonly<Record<string, string>> = {},
): Promise<Printed> {
  return parseJson(runProgram([...words, "--json"], environment));
}

/** What a command with `--json` printed. */
interface Printed extends Finished {
  // deno-lint-ignore no-explicit-any -- the tests assert on what they use
  readonly json: any;
}

/** Parses the first line that a command printed. */
export async function parseJson(
  running: Promise<Finished>,
): Promise<Printed> {
  const finished = await running;
  const [first] = finished.stdout.split("\n");
  return { ...finished, json: first ? JSON.parse(first) : undefined };
}
