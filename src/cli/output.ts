/**
 * Standard output and standard error: masked, printable, and as JSON where that
 * is asked for.
 *
 * @module
 */
import { type Mask, maskStrings } from "../config/secrets.ts";
import { ServiceError } from "../errors.ts";
import { printable, printableJson } from "../format.ts";
import { hasNoColor, terminalWidth } from "./environment.ts";
import { printableLine, type Terminal } from "./terminal_table.ts";

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

const encoder = new TextEncoder();

/** Streams that nobody reads any more, or that take no more. */
export const broken = new Set<unknown>();

export const print = (text: string) => writeAll(Deno.stdout, text);
export const printError = (text: string) => writeAll(Deno.stderr, text);

/** Returns the output of a command with these flags. */
export function outputFor(
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
