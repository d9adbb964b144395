/**
 * What a command is: its flags, and what it is given to run with.
 *
 * @module
 */
import type { Logger } from "@logtape/logtape";
import type { Config, Environment } from "../config/config.ts";
import type { Service } from "../context.ts";
import type { Output } from "./output.ts";

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
