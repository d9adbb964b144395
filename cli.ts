/**
 * The command line. Wires the process (arguments, environment, signals, exit
 * code) to the commands in `src/cli/commands/`.
 *
 * @module
 */
import type { Logger } from "@logtape/logtape";
import {
  columns,
  type Command,
  type CommandContext,
  COMMON_FLAGS,
  helpOf,
  type Output,
  parseArguments,
  suggest,
  usage,
} from "./src/cli/command.ts";
import { configCommand } from "./src/cli/commands/config.ts";
import { eventsCommand } from "./src/cli/commands/events.ts";
import { healthCommand } from "./src/cli/commands/health.ts";
import { loadCommand } from "./src/cli/commands/load.ts";
import { runsCommand } from "./src/cli/commands/runs.ts";
import { schemaCommand } from "./src/cli/commands/schema.ts";
import { serveCommand } from "./src/cli/commands/serve.ts";
import { verifyCommand } from "./src/cli/commands/verify.ts";
import { versionCommand } from "./src/cli/commands/version.ts";
import { type Config, parseConfig } from "./src/config/config.ts";
import { printable, printableJson } from "./src/format.ts";
import { printableLine } from "./src/cli/terminal_table.ts";
import { APPLICATION_NAME } from "./src/identity.ts";
import { Pool } from "./src/postgres/pool.ts";
import { asServiceError, ServiceError } from "./src/errors.ts";
import type { Service } from "./src/context.ts";
import { pruneHistory } from "./src/runs/history.ts";
import {
  hasNoColor,
  isTraced,
  readEnvironment,
  readSmallFile,
  terminalWidth,
} from "./src/cli/environment.ts";
import { type Mask, maskOfConfig, maskStrings } from "./src/config/secrets.ts";
import { setUpLogging } from "./src/log.ts";
import { Deliverer, publisherNames } from "./src/delivery/deliverer.ts";

const COMMANDS: readonly Command[] = [
  loadCommand,
  healthCommand,
  verifyCommand,
  runsCommand,
  eventsCommand,
  serveCommand,
  schemaCommand,
  configCommand,
  versionCommand,
];

/** The exit code of a process that a signal ends. */
const SIGNAL_EXITS = { SIGHUP: 129, SIGINT: 130, SIGTERM: 143 } as const;

/**
 * Milliseconds after the first signal in which further ones are the same request
 * to stop: one Ctrl-C comes twice, from the terminal and from `deno task`.
 */
const ONE_STOP_MILLISECONDS = 1000;

/** Seconds after a load during which attempts to deliver events may begin; the rest is left to the next process. */
const DELIVERY_SECONDS = 5;

/** The same after a signal, the attempts included. */
const STOPPED_DELIVERY_SECONDS = 2;

const encoder = new TextEncoder();

/** Streams that nobody reads any more, or that take no more. */
const broken = new Set<unknown>();

const print = (text: string) => writeAll(Deno.stdout, text);
const printError = (text: string) => writeAll(Deno.stderr, text);

if (import.meta.main) Deno.exit(await main(Deno.args));

/** Runs the command that the words name and returns the exit code. */
export async function main(words: readonly string[]): Promise<number> {
  let mask: Mask = (text) => text;
  const isJson = words.includes("--json");
  const controller = new AbortController();
  let signalExit: number | undefined;
  onStopSignal((name) => {
    signalExit = SIGNAL_EXITS[name];
    controller.abort(
      new ServiceError("terminated", `The load was ended by ${name}`),
    );
  });
  // Without a listener the process would end where a file reaches its limit; with one the write fails.
  if (Deno.build.os !== "windows") {
    Deno.addSignalListener("SIGXFSZ", () => {});
  }
  await using released = new AsyncDisposableStack();
  try {
    const command = findCommand(words);
    if (typeof command === "string") {
      print(`${command}\n`);
      return 0;
    }
    const parsed = parseArguments(command, words.slice(1));
    if (parsed.switches.has("help")) {
      print(`${helpOf(command)}\n`);
      return 0;
    }
    const environment = await readEnvironment(
      parsed.values["env-file"]?.[0],
    );
    const config = once(() => {
      const config = parseConfig(environment, readSmallFile);
      mask = maskOfConfig(config);
      return config;
    });
    let writeLog = printError;
    const output = outputFor(
      parsed.switches,
      (text) => mask(text),
      (write) => writeLog = write ?? printError,
    );
    const log = once(() =>
      startLogging(
        config(),
        output,
        (text) => mask(text),
        (text) => writeLog(text),
      )
    );
    const context: CommandContext = {
      arguments: parsed,
      environment,
      config,
      log,
      service: once(() =>
        startService(config(), log(), released, controller.signal)
      ),
      async serve() {
        // The server's libraries are only loaded for it: every other command starts fast.
        const { serve } = await import("./main.ts");
        return await serve({
          service: context.service(),
          prune: () => prune(context.service()),
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
        // The failure is told, and it is what the exit code is about.
      }
    }
    if (error.code === "internal" && error.cause instanceof Error) {
      printError(mask(`${error.cause.stack}\n`));
    }
    return signalExit ?? error.kind.exit;
  }
}

/** Calls `stop` at the first signal that asks for it. A later one ends the process at once. */
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

/** The command that is named, or the text that answers instead. */
function findCommand([name, ...rest]: readonly string[]): Command | string {
  if (name === undefined || name === "--help" || name === "-h") {
    return helpOfAll();
  }
  if (name === "help") {
    return rest[0] ? helpOf(findNamed(rest[0])) : helpOfAll();
  }
  if (name === "--version") return findCommand(["version"]);
  return findNamed(name);
}

function findNamed(name: string): Command {
  const command = COMMANDS.find((command) => command.name === name);
  if (command) return command;
  const hint = suggest(name, COMMANDS.map((command) => command.name));
  throw usage(`unknown command ${JSON.stringify(name)}${hint}`);
}

function helpOfAll(): string {
  const flags = Object.entries(COMMON_FLAGS).map(([name, flag]) => [
    `--${name}${flag.value ? ` ${flag.value}` : ""}`,
    flag.description,
  ]);
  return [
    "Usage: marketing-data-service COMMAND [flags]",
    "",
    "Keeps two warehouse tables equal to two source tables and announces each load by an event.",
    "",
    "Commands:",
    ...columns(COMMANDS.map(({ name, summary }) => [name, summary])),
    "",
    "Flags of every command:",
    ...columns(flags),
  ].join("\n");
}

function outputFor(
  switches: ReadonlySet<string>,
  mask: Mask,
  divertLog: Output["divertLog"],
): Output {
  const isTerminal = Deno.stderr.isTerminal();
  return {
    line: (text = "") => print(`${printableLine(mask(text))}\n`),
    json: (value) =>
      print(`${printableJson(JSON.stringify(maskStrings(value, mask)))}\n`),
    progress: (line) => printError(`${printable(mask(line))}\n`),
    divertLog,
    isUnread: () => broken.has(Deno.stdout),
    isJson: switches.has("json"),
    isQuiet: switches.has("quiet"),
    isInteractive: isTerminal,
    hasColors: isTerminal && !hasNoColor(),
    terminal: Deno.stdout.isTerminal()
      ? {
        width: terminalWidth(),
        hasColors: !hasNoColor(),
      }
      : undefined,
  };
}

function startLogging(
  config: Config,
  output: Output,
  mask: Mask,
  write: (text: string) => void,
): Logger {
  const isText = config.logFormat === "text" ||
    (config.logFormat === "auto" && output.isInteractive);
  return setUpLogging({
    level:
      output.isQuiet && ["TRACE", "DEBUG", "INFO"].includes(config.logLevel)
        ? "WARNING"
        : config.logLevel,
    format: isText ? "text" : "json",
    colors: output.hasColors,
    mask,
    write,
  });
}

function startService(
  config: Config,
  log: Logger,
  released: AsyncDisposableStack,
  signal: AbortSignal,
): Service {
  const warehouse = released.use(
    new Pool(config.dwh, {
      max: 4,
      connectTimeoutSeconds: config.connectTimeoutSeconds,
      stallTimeoutSeconds: config.stallTimeoutSeconds,
    }),
  );
  let delivered = Promise.resolve();
  // After the command has answered, and before its connections are closed.
  released.defer(() => delivered);
  return {
    config,
    warehouse,
    log,
    // Processes in containers share their ids, so the name needs more than that.
    runner: `${APPLICATION_NAME} ${Deno.pid} ${crypto.randomUUID()}`,
    deliver() {
      delivered = (async () => {
        // A load that a signal ended has an event too, and a moment to say so.
        const limit = signal.aborted
          ? AbortSignal.timeout(STOPPED_DELIVERY_SECONDS * 1000)
          : signal;
        await new Deliverer({ config, warehouse, log })
          .deliver(DELIVERY_SECONDS, limit);
        await prune({ config, warehouse, log });
      })();
    },
  };
}

/** Removes what is older than RUN_RETENTION_DAYS. Never throws: the next run tries again. */
async function prune(
  { config, warehouse, log }: Pick<Service, "config" | "warehouse" | "log">,
): Promise<void> {
  const names = publisherNames(config);
  try {
    await pruneHistory(warehouse, config.runRetentionDays, names);
  } catch (error) {
    log.warn("Old runs are not removed yet: {error}", {
      error: asServiceError(error).line,
    });
  }
}

function once<T>(make: () => T): () => T {
  let made: { value: T } | undefined;
  return () => (made ??= { value: make() }).value;
}

function writeAll(
  stream: { writeSync(bytes: Uint8Array): number },
  text: string,
): void {
  const bytes = encoder.encode(text);
  try {
    for (let written = 0; written < bytes.length;) {
      written += stream.writeSync(bytes.subarray(written));
    }
  } catch (error) {
    broken.add(stream);
    // Whoever read it has gone, as `head` does, or the log's disk is full: what the
    // command does stays as it is.
    const isLost = error instanceof Deno.errors.BrokenPipe ||
      stream === Deno.stderr;
    if (isLost) return;
    throw new ServiceError(
      "output_unwritable",
      `Cannot write to standard output: ${(error as Error).message}`,
      { cause: error },
    );
  }
}
