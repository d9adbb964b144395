/** A command: its flags, and the context in which it runs. */
import type { Config, Environment } from "../config/config.ts";
import type { AppContext } from "../context.ts";
import type { Output } from "./output.ts";

interface Flag {
  readonly description: string;
  /** Name of the value in the help. A flag without a name takes no value. */
  readonly value?: string;
  readonly allowed?: readonly string[];
  /** Minimum and maximum of a whole number. */
  readonly range?: readonly [minimum: number, maximum: number];
  readonly isRepeatable?: boolean;
  /** Another flag that this one needs. */
  readonly needs?: string;
  /** Other flags of the command with which this one cannot be used. */
  readonly excludes?: readonly string[];
}

/** The maximum of a flag that limits a list. */
export const MAX_LISTED_ROWS = 10 ** 9;

export interface Command {
  readonly name: string;
  readonly summary: string;
  readonly flags: Readonly<Record<string, Flag>>;
  /** An optional word after the name of the command. */
  readonly action?: {
    readonly allowed: readonly string[];
    readonly default: string;
    /** The actions that need one more argument, with its name in the help. */
    readonly operands?: Readonly<Record<string, string>>;
  };
  /** Runs the command and returns its exit code. */
  readonly run: (context: CommandContext) => Promise<number>;
}

export interface CommandContext {
  readonly arguments: ParsedArguments;
  readonly environment: Environment;
  /** Parses on first use, so that `version` works with invalid variables. */
  readonly config: () => Config;
  /** Starts logging and connects to the warehouse on first use. The caller releases both. */
  readonly app: () => Promise<AppContext>;
  /** Serves until the signal. Returns the exit code. */
  readonly serve: () => Promise<number>;
  readonly output: Output;
  /** SIGHUP, SIGINT and SIGTERM abort it. */
  readonly signal: AbortSignal;
}

/** The parsed arguments of a command line. */
export interface ParsedArguments {
  readonly action: string;
  /** The argument after an action that needs one, and an empty text otherwise. */
  readonly operand: string;
  /** Flags without a value that are set. */
  readonly flags: ReadonlySet<string>;
  /** Values of the other flags, in order. */
  readonly values: Readonly<Record<string, readonly string[]>>;
}

/** Flags that every command has. */
export const COMMON_FLAGS: Readonly<Record<string, Flag>> = {
  "env-file": {
    value: "FILE",
    description: "Read variables from FILE. The environment overrides them",
  },
  json: { description: "Print data as JSON" },
  quiet: { description: "Print no progress and no log below warnings" },
  help: { description: "Print this help" },
};
