/**
 * The command line. Wires the process (arguments, environment, signals, exit
 * code) to the commands in `src/cli/commands/`.
 *
 * @module
 */
import { parseArguments, usage } from "./src/cli/arguments.ts";
import type { Command, CommandContext } from "./src/cli/command.ts";
import { allCommands, COMMAND_NAMES, commandOf } from "./src/cli/commands.ts";
import {
  isTraced,
  readEnvironment,
  readSmallFile,
} from "./src/cli/environment.ts";
import { helpOf, helpOfAll } from "./src/cli/help.ts";
import { broken, outputFor, print, printError } from "./src/cli/output.ts";
import { parseConfig, readTables } from "./src/config/config.ts";
import { type Mask, maskOfConfig, maskStrings } from "./src/config/secrets.ts";
import { asServiceError, ServiceError } from "./src/errors.ts";
import { printable, printableJson } from "./src/format.ts";
import { suggest } from "./src/suggest.ts";

/** Exit codes of a process that a signal ends. */
const SIGNAL_EXITS = { SIGHUP: 129, SIGINT: 130, SIGTERM: 143 } as const;

/**
 * Milliseconds after the first signal in which more signals count as the same
 * request to stop. One Ctrl-C arrives twice: from the terminal and from `deno task`.
 */
const ONE_STOP_MILLISECONDS = 1000;

if (import.meta.main) Deno.exit(await main(Deno.args));

/** Runs the command that the arguments name. Returns the exit code. */
export async function main(args: readonly string[]): Promise<number> {
  let mask: Mask = (text) => text;
  const isJson = args.includes("--json");
  const controller = new AbortController();
  let signalExit: number | undefined;
  onStopSignal((name) => {
    signalExit = SIGNAL_EXITS[name];
    controller.abort(
      new ServiceError("terminated", `The process was ended by ${name}`),
    );
  });
  // Without a listener, the process ends when a file reaches its size limit. With one, the write fails.
  if (Deno.build.os !== "windows") {
    Deno.addSignalListener("SIGXFSZ", () => {});
  }
  await using released = new AsyncDisposableStack();
  try {
    const command = await findCommand(args);
    if (typeof command === "string") {
      print(`${command}\n`);
      return 0;
    }
    const parsed = parseArguments(command, args.slice(1));
    if (parsed.flags.has("help")) {
      print(`${helpOf(command)}\n`);
      return 0;
    }
    const environment = readEnvironment(
      parsed.values["env-file"]?.[0],
    );
    const declared = await readTables(environment, readSmallFile);
    const config = once(() => {
      const config = parseConfig(environment, readSmallFile, declared);
      mask = maskOfConfig(config);
      return config;
    });
    let writeLog = printError;
    const output = outputFor(
      parsed.flags,
      (text) => mask(text),
      (write) => writeLog = write ?? printError,
    );
    const context: CommandContext = {
      arguments: parsed,
      environment,
      config,
      app: once(async () => {
        // Commands without a warehouse start faster without its driver and the log.
        const { createAppContext, startLogging } = await import(
          "./src/cli/app_context.ts"
        );
        const log = startLogging(
          config(),
          output,
          (text) => mask(text),
          (text) => writeLog(text),
        );
        return createAppContext(
          config(),
          log,
          released,
          controller.signal,
          // A command runs one statement at a time. A service has several clients.
          command.name === "serve" ? 3 : 1,
        );
      }),
      async serve() {
        // Deno reads the files of an import with a literal name before the program starts.
        const { serve }: typeof import("./src/serve.ts") = await import(
          import.meta.resolve("./src/serve.ts")
        );
        return await serve({
          app: await context.app(),
          signal: controller.signal,
          isTraced: isTraced(),
        });
      },
      output,
      signal: controller.signal,
    };
    const exit = await command.run(context);
    return signalExit ?? exit;
  } catch (cause) {
    const error = asServiceError(cause);
    printError(`${printable(mask(error.line))}\n`);
    if (isJson && !broken.has(Deno.stdout)) {
      const { code, line, remedy, table } = error;
      try {
        const failure = { error: line, code, remedy, table };
        print(`${printableJson(JSON.stringify(maskStrings(failure, mask)))}\n`);
      } catch {
        // Standard error and the exit code report the failure.
      }
    }
    if (error.code === "internal" && error.cause instanceof Error) {
      printError(mask(`${error.cause.stack}\n`));
    }
    return signalExit ?? error.kind.exit;
  }
}

/** Calls `stop` at the first signal. A later signal ends the process at once. */
function onStopSignal(stop: (name: keyof typeof SIGNAL_EXITS) => void): void {
  let stoppedAt: number | undefined;
  for (const name of ["SIGHUP", "SIGINT", "SIGTERM"] as const) {
    Deno.addSignalListener(name, () => {
      if (stoppedAt === undefined) {
        stoppedAt = performance.now();
        stop(name);
      } else if (performance.now() - stoppedAt >= ONE_STOP_MILLISECONDS) {
        Deno.exit(SIGNAL_EXITS[name]);
      }
    });
  }
}

/** Returns the named command, or the help text to print instead. */
async function findCommand(
  [name, ...rest]: readonly string[],
): Promise<Command | string> {
  if (name === undefined || name === "--help" || name === "-h") {
    return helpOfAll(await allCommands());
  }
  if (name === "help") {
    return rest[0]
      ? helpOf(await findNamed(rest[0]))
      : helpOfAll(await allCommands());
  }
  return await findNamed(name === "--version" ? "version" : name);
}

async function findNamed(name: string): Promise<Command> {
  const command = await commandOf(name);
  if (command) return command;
  if (name.startsWith("-")) {
    throw usage(`the command must come before ${name}`, undefined);
  }
  const hint = suggest(name, COMMAND_NAMES);
  throw usage(`unknown command ${JSON.stringify(name)}${hint}`, undefined);
}

function once<T>(make: () => T): () => T {
  let made: { value: T } | undefined;
  return () => (made ??= { value: make() }).value;
}
