/**
 * Logging: one line per record on standard error, as text on a terminal and as
 * JSON elsewhere, with every secret masked.
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
import { APPLICATION_NAME } from "./identity.ts";

/** Replaces every secret in a text. */
export type Mask = (text: string) => string;

/**
 * A mask for the given secrets, as they are and as they stand in JSON or a URL.
 */
export function maskOf(secrets: readonly string[]): Mask {
  const forms = new Set(
    secrets.flatMap((
      s,
    ) => [s, JSON.stringify(s).slice(1, -1), encodeURIComponent(s)]),
  );
  // The longest first, so that no secret survives as the rest of a shorter one.
  const sorted = [...forms].filter((form) => form !== "").sort((a, b) =>
    b.length - a.length
  );
  return (text) =>
    sorted.reduce((masked, form) => masked.replaceAll(form, "***"), text);
}

/** How and where to log. */
export interface LogOptions {
  readonly level: Config["logLevel"];
  readonly format: "text" | "json";
  readonly colors: boolean;
  readonly mask: Mask;
  readonly write: (line: string) => void;
}

/** Sets up logging for the process and returns the logger that all others derive from. */
export function setUpLogging(options: LogOptions): Logger {
  const format = options.format === "json"
    ? jsonLine
    : textLine(options.colors);
  configureSync({
    reset: true,
    sinks: {
      stderr: (record) => options.write(`${options.mask(format(record))}\n`),
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

/** One JSON object: time, level, message, and the record's properties. */
function jsonLine(record: LogRecord): string {
  const own = {
    timestamp: new Date(record.timestamp).toISOString(),
    level: record.level.toUpperCase(),
    message: messageOf(record),
  };
  // First in the line, whatever properties of those names there are.
  return JSON.stringify({ ...own, ...record.properties, ...own });
}

function textLine(colors: boolean): (record: LogRecord) => string {
  return (record) => {
    const time = new Date(record.timestamp).toISOString().slice(11, 19);
    const line = `${time} ${record.level.toUpperCase().padEnd(7)} ${
      messageOf(record)
    }`;
    const color = record.level === "error"
      ? 31
      : record.level === "warning"
      ? 33
      : undefined;
    return colors && color ? `\x1b[${color}m${line}\x1b[0m` : line;
  };
}

/** The message with its values in place, strings without quotes. */
function messageOf(record: LogRecord): string {
  return record.message
    .map((part) => typeof part === "string" ? part : Deno.inspect(part))
    .join("");
}
