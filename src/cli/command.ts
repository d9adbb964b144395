/**
 * What a command is: its flags, its help, and what it is given to run with.
 *
 * @module
 */
import { parseArgs } from "@std/cli/parse-args";
import { closestString } from "@std/text/closest-string";
import type { Logger } from "@logtape/logtape";
import type { Config, Environment } from "../config/config.ts";
import { ServiceError } from "../errors.ts";
import type { Service } from "../context.ts";

/** A flag of a command. */
export interface Flag {
  readonly description: string;
  /** Name of the value in the help; a flag without one is a switch. */
  readonly value?: string;
  /** The values that are allowed. */
  readonly allowed?: readonly string[];
  readonly isRepeatable?: boolean;
}

/** A command of the program. */
export interface Command {
  readonly name: string;
  readonly summary: string;
  readonly flags: Readonly<Record<string, Flag>>;
  /** A word that may follow the command's name. */
  readonly action?: {
    readonly allowed: readonly string[];
    readonly default: string;
  };
  /** Runs the command and returns its exit code. */
  readonly run: (context: CommandContext) => Promise<number>;
}

/** What a command is given. */
export interface CommandContext {
  readonly arguments: ParsedArguments;
  readonly environment: Environment;
  /** Parsed on first use, so that `version` works with a broken environment. */
  readonly config: () => Config;
  /** Logging and the warehouse, on first use; released by the caller. */
  readonly service: () => Service;
  readonly log: () => Logger;
  /** Serves until the signal; returns the exit code. */
  readonly serve: () => Promise<number>;
  readonly output: Output;
  /** Aborted by SIGHUP, SIGINT and SIGTERM. */
  readonly signal: AbortSignal;
}

/** Where a command prints. Standard output is data; the rest is for people. */
export interface Output {
  /** Prints a line of data. */
  readonly line: (text?: string) => void;
  /** Prints a value as JSON, on one line. */
  readonly json: (value: unknown) => void;
  /** Prints one line to standard error. */
  readonly progress: (line: string) => void;
  /** Has the log written by `write` while bars are shown, which it would tear; back by `undefined`. */
  readonly divertLog: (write: ((text: string) => void) | undefined) => void;
  /** Whether the reader of standard output has gone, or it takes no more. */
  readonly isUnread: () => boolean;
  readonly isJson: boolean;
  readonly isQuiet: boolean;
  /** Standard error is a terminal. */
  readonly isInteractive: boolean;
  /** Whether standard error is one that takes colours. */
  readonly hasColors: boolean;
  /** Standard output, where it is a terminal: tables for people, plain lines otherwise. */
  readonly terminal: Terminal | undefined;
}

/** A terminal that is printed to. */
export interface Terminal {
  /** Characters in a line. */
  readonly width: number;
  readonly hasColors: boolean;
}

/** The words of a command line, sorted out. */
export interface ParsedArguments {
  readonly action: string;
  readonly switches: ReadonlySet<string>;
  readonly values: Readonly<Record<string, readonly string[]>>;
}

/** Flags that every command has. */
export const COMMON_FLAGS: Readonly<Record<string, Flag>> = {
  "env-file": {
    value: "FILE",
    description: "Read variables from FILE; the environment wins",
  },
  json: { description: "Print data as JSON" },
  quiet: { description: "No progress and no log below warnings" },
  help: { description: "Print this help" },
};

/**
 * Sorts out the words after the command's name.
 *
 * @throws {ServiceError} `usage`, with a suggestion for a mistyped flag.
 */
export function parseArguments(
  command: Command,
  words: readonly string[],
): ParsedArguments {
  const flags = { ...COMMON_FLAGS, ...command.flags };
  const names = Object.keys(flags);
  const isSwitch = (name: string) => flags[name]?.value === undefined;
  const fail = (message: string) => usage(message, command.name);
  const parsed = parseArgs([...words], {
    boolean: names.filter(isSwitch),
    string: names.filter((name) => !isSwitch(name)),
    collect: names.filter((name) => !isSwitch(name)),
    alias: { h: "help" },
    unknown(word, key) {
      if (key !== undefined) {
        throw fail(
          `unknown flag ${word.split("=")[0]}${
            suggest(`--${key}`, names.map((n) => `--${n}`))
          }`,
        );
      }
      return true;
    },
  });
  const values: Record<string, readonly string[]> = {};
  for (const name of names.filter((name) => !isSwitch(name))) {
    const given = (parsed[name] as string[]).flatMap((v) =>
      flags[name]!.isRepeatable ? v.split(",") : [v]
    );
    for (const value of given) {
      const { allowed } = flags[name]!;
      if (value === "") {
        throw fail(`--${name} needs a value: ${flags[name]!.value}`);
      }
      if (allowed && !allowed.includes(value)) {
        throw fail(
          `--${name} must be one of ${allowed.join(", ")}, not ${
            JSON.stringify(value)
          }${suggest(value, allowed)}`,
        );
      }
    }
    if (given.length > 1 && !flags[name]!.isRepeatable) {
      throw fail(`--${name} is given more than once`);
    }
    values[name] = given;
  }
  const [action, ...rest] = parsed._.map(String);
  const stray = command.action ? rest[0] : action;
  if (stray !== undefined) {
    throw fail(`unexpected word ${JSON.stringify(stray)}`);
  }
  if (
    command.action && action !== undefined &&
    !command.action.allowed.includes(action)
  ) {
    throw fail(
      `${command.name} takes one of ${command.action.allowed.join(", ")}, not ${
        JSON.stringify(action)
      }${suggest(action, command.action.allowed)}`,
    );
  }
  return {
    action: action ?? command.action?.default ?? "",
    switches: new Set(names.filter((name) => isSwitch(name) && parsed[name])),
    values,
  };
}

/** A usage error that points at the help of the command. */
export function usage(message: string, command = ""): ServiceError {
  return new ServiceError("usage", `Cannot run: ${message}`, {
    remedy: `See ${["--help", command].filter(Boolean).reverse().join(" ")}.`,
  });
}

/** A suggestion for a mistyped word, or nothing where no word is near. */
export function suggest(word: string, known: readonly string[]): string {
  if (known.length === 0) return "";
  const closest = closestString(word, [...known]);
  return isNear(word, closest) ? `; did you mean ${closest}?` : "";
}

function isNear(a: string, b: string): boolean {
  const shared = [...a].filter((letter) => b.includes(letter)).length;
  return Math.abs(a.length - b.length) <= 3 &&
    shared >= Math.max(a.length, b.length) / 2;
}

/** The help of one command. */
export function helpOf(command: Command): string {
  const action = command.action ? ` [${command.action.allowed.join("|")}]` : "";
  const rows = Object.entries({ ...command.flags, ...COMMON_FLAGS }).map(
    ([name, flag]) => {
      const allowed = flag.allowed ? ` (${flag.allowed.join(", ")})` : "";
      return [
        `--${name}${flag.value ? ` ${flag.value}` : ""}`,
        `${flag.description}${allowed}`,
      ];
    },
  );
  return [
    `Usage: marketing-data-service ${command.name}${action} [flags]`,
    "",
    command.summary,
    "",
    "Flags:",
    ...columns(rows),
  ].join("\n");
}

/** Lines with the first cells padded to one width. */
export function columns(rows: readonly (readonly string[])[]): string[] {
  const width = Math.max(...rows.map(([first]) => first!.length));
  return rows.map(([first, ...rest]) =>
    `  ${first!.padEnd(width)}  ${rest.join("  ")}`.trimEnd()
  );
}
