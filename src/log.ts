/**
 * Logs one line per record to standard error. Lines are text on a terminal and
 * JSON elsewhere. Every secret is masked.
 *
 * @module
 */
import {
  configureSync,
  getLogger,
  type Logger,
  type LogLevel,
  type LogRecord,
} from "@logtape/logtape";
import type { Config } from "./config/config.ts";
import { type Mask, maskStrings } from "./config/secrets.ts";
import { printable, printableJson } from "./format.ts";
import { APPLICATION_NAME } from "./identity.ts";

/** The format and destination of the log. */
interface LogOptions {
  readonly level: Config["logLevel"];
  readonly format: "text" | "json";
  readonly colors: boolean;
  readonly mask: Mask;
  readonly write: (line: string) => void;
  /** Gets each line once more, without its line break. */
  readonly exportLine?: ((line: string, level: LogLevel) => void) | undefined;
}

/** Sets up logging for the process. Returns the logger from which all others derive. */
export function setUpLogging(options: LogOptions): Logger {
  const format = options.format === "json"
    ? jsonLine(options.mask)
    : textLine(options.mask, options.colors);
  configureSync({
    reset: true,
    sinks: {
      stderr: (record) => {
        const line = format(record);
        options.write(`${line}\n`);
        options.exportLine?.(line, record.level);
      },
    },
    loggers: [
      { category: ["logtape", "meta"], sinks: [] },
      {
        category: [APPLICATION_NAME],
        lowestLevel: options.level.toLowerCase() as LogLevel,
        sinks: ["stderr"],
      },
    ],
  });
  return getLogger([APPLICATION_NAME]);
}

/**
 * Returns the export of lines through the console, as Deno exports logs. Must be
 * called before {@linkcode captureConsole}.
 */
export function consoleExport(): (line: string, level: LogLevel) => void {
  const { debug, info, warn, error } = globalThis.console;
  const methods = {
    trace: debug,
    debug,
    info,
    warning: warn,
    error,
    fatal: error,
  };
  return (line, level) => methods[level](line);
}

/** The log level of each method of the console. */
const CONSOLE_LEVELS = {
  debug: "debug",
  log: "debug",
  info: "debug",
  warn: "warn",
  error: "warn",
} as const;

/** Logs what libraries print on the console, so that it is masked and printable. */
export function captureConsole(log: Logger): void {
  for (const [method, level] of Object.entries(CONSOLE_LEVELS)) {
    Object.assign(globalThis.console, {
      [method]: (...values: unknown[]) =>
        log[level]("A library reports: {text}", {
          text: values.map((value) =>
            typeof value === "string" ? value : Deno.inspect(value)
          ).join(" "),
        }),
    });
  }
}

/** Returns a format of one JSON object: time, level, message, and the properties of the record. */
function jsonLine(mask: Mask): (record: LogRecord) => string {
  return (record) => {
    const own = {
      timestamp: new Date(record.timestamp).toISOString(),
      level: record.level.toUpperCase(),
      message: mask(messageOf(record)),
    };
    const properties = maskStrings(record.properties, mask) as object;
    // These fields come first and win over properties of the same name.
    return printableJson(JSON.stringify({ ...own, ...properties, ...own }));
  };
}

function textLine(mask: Mask, colors: boolean): (record: LogRecord) => string {
  return (record) => {
    const time = new Date(record.timestamp).toISOString().slice(11, 19);
    const line = `${time} ${record.level.toUpperCase().padEnd(7)} ${
      printable(mask(messageOf(record)))
    }`;
    const color = record.level === "error"
      ? 31
      : record.level === "warning"
      ? 33
      : undefined;
    return colors && color ? `\x1b[${color}m${line}\x1b[0m` : line;
  };
}

/** Returns the message with its values. Strings have no quotes. */
function messageOf(record: LogRecord): string {
  return record.message
    .map((part) => typeof part === "string" ? part : Deno.inspect(part))
    .join("");
}
