/** Standard output and standard error: masked, printable, and as JSON on request. */
import { type Mask, maskStrings } from "../config/secrets.ts";
import { ServiceError } from "../errors.ts";
import { printable, printableJson } from "../format.ts";
import { hasNoColor, terminalWidth } from "./environment.ts";
import { type Part, textLines } from "./terminal_table.ts";

/** The output of a command. Standard output is data, and standard error is for people. */
export type Output = Readonly<ReturnType<typeof outputFor>>;

const encoder = new TextEncoder();

/** Streams that have no reader or failed. */
export const broken = new Set<unknown>();

export const print = (text: string) => writeAll(Deno.stdout, text);
export const printError = (text: string) => writeAll(Deno.stderr, text);

/** Returns the output of a command with these flags. */
export function outputFor(
  flags: ReadonlySet<string>,
  mask: Mask,
  divertLog: (write: ((text: string) => void) | undefined) => void,
) {
  const isInteractive = Deno.stderr.isTerminal();
  const isTerminal = Deno.stdout.isTerminal();
  const terminal = {
    width: isTerminal ? terminalWidth() : Infinity,
    hasColors: isTerminal && !hasNoColor(),
  };
  const isJson = flags.has("json");
  const json = (value: unknown) =>
    print(`${printableJson(JSON.stringify(maskStrings(value, mask)))}\n`);
  return {
    /** Prints the data as JSON with `--json`, and the parts as text otherwise. */
    show: (data: unknown, ...parts: readonly Part[]) =>
      isJson ? json(data) : print(
        textLines(parts, terminal, mask).map((line) => `${line}\n`).join(""),
      ),
    /** Prints a value as JSON, on one line. */
    json,
    /** Prints one line to standard error. */
    progress: (line: string) => printError(`${printable(mask(line))}\n`),
    /** Writes the log by `write` while bars are shown, because it would break them. `undefined` ends that. */
    divertLog,
    /** Returns whether standard output has no reader or failed. */
    isUnread: () => broken.has(Deno.stdout),
    isJson,
    isQuiet: flags.has("quiet"),
    /** Whether standard error is a terminal. */
    isInteractive,
    /** Whether standard error is a terminal with colors. */
    hasColors: isInteractive && !hasNoColor(),
    /** Whether standard output is a terminal. */
    isTerminal,
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
    // A reader such as `head` has ended, or the disk of the log is full. The command
    // continues.
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
