/**
 * The environment of the process, and the small files that it names.
 *
 * Deno's error about a value with invalid UTF-8 contains the value. So no error
 * of Deno may leave this module.
 */
import type { Environment } from "../config/config.ts";
import { VARIABLES } from "../config/variables.ts";
import { ServiceError } from "../errors.ts";
import { parseEnvFile } from "./env_file.ts";

/** Maximum size in bytes of a file that holds a secret, a certificate or variables. */
const MAX_SMALL_FILE_BYTES = 1_048_576;

/**
 * Returns the variables of the service. The file sets the variables that the
 * environment does not set.
 *
 * @throws {ServiceError} `configuration`, which names the variable and never contains its value.
 */
export function readEnvironment(file: string | undefined): Environment {
  const environment: Record<string, string | undefined> = {};
  if (file !== undefined) {
    try {
      const variables = parseEnvFile(readSmallFile(file));
      for (const name of Object.keys(VARIABLES)) {
        environment[name] = variables.get(name);
      }
    } catch (error) {
      throw new ServiceError(
        "configuration",
        `Cannot read --env-file ${file}: ${(error as Error).message}`,
        { cause: error, remedy: "Correct the file, or name another one." },
      );
    }
  }
  const invalid: string[] = [];
  for (const name of Object.keys(VARIABLES)) {
    const value = readVariable(name, () => void invalid.push(name));
    environment[name] = value || environment[name];
  }
  if (invalid.length > 0) {
    throw new ServiceError(
      "configuration",
      `Cannot start: the value of ${
        invalid.join(" and of ")
      } is not valid UTF-8`,
      {
        remedy:
          "Set it to UTF-8 text, or write it to a file and name the file in the variable with _FILE.",
      },
    );
  }
  return environment;
}

/** Returns the value of a variable, or the result of `replace` for a value that is not valid UTF-8. */
function readVariable(
  name: string,
  replace: () => string | undefined,
): string | undefined {
  try {
    return Deno.env.get(name);
  } catch {
    return replace();
  }
}

/** Returns whether NO_COLOR disables colors. */
export function hasNoColor(): boolean {
  return Boolean(readVariable("NO_COLOR", () => "1"));
}

/** Returns whether OpenTelemetry is enabled. */
export function isTraced(): boolean {
  return readVariable("OTEL_DENO", () => "false") === "true";
}

/**
 * Returns what Deno does with the console while OpenTelemetry is enabled: `replace`
 * exports and does not print, `capture` does both, and `ignore` only prints.
 */
export function consoleMode(): string {
  return isTraced()
    ? readVariable("OTEL_DENO_CONSOLE", () => "ignore") || "capture"
    : "ignore";
}

/** Texts of pipes, which can be read only once, by path. */
const pipes = new Map<string, string>();

/**
 * Returns the text of a file.
 *
 * @throws {Error} when it is too large or not valid UTF-8.
 */
export function readSmallFile(path: string): string {
  const known = pipes.get(path);
  if (known !== undefined) return known;
  using file = Deno.openSync(path);
  const isPipe = file.statSync().isFifo;
  const bytes = new Uint8Array(MAX_SMALL_FILE_BYTES + 1);
  let length = 0;
  for (let read; (read = file.readSync(bytes.subarray(length)));) {
    length += read;
  }
  if (length > MAX_SMALL_FILE_BYTES) {
    throw new Error(`it holds more than ${MAX_SMALL_FILE_BYTES} bytes`);
  }
  try {
    const text = new TextDecoder("utf-8", { fatal: true })
      .decode(bytes.subarray(0, length));
    if (isPipe) pipes.set(path, text);
    return text;
  } catch {
    throw new Error("it is not valid UTF-8");
  }
}

/** Columns of a terminal that does not report its width. */
const DEFAULT_WIDTH = 80;

/** Returns the width of the terminal in columns. */
export function terminalWidth(): number {
  try {
    return Deno.consoleSize().columns || DEFAULT_WIDTH;
  } catch {
    return DEFAULT_WIDTH;
  }
}
