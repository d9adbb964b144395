/** The arguments of a command line. */
import { parseArgs } from "@std/cli/parse-args";
import { ServiceError } from "../errors.ts";
import { formatQuantity } from "../format.ts";
import { suggest } from "../suggest.ts";
import { type Command, COMMON_FLAGS, type ParsedArguments } from "./command.ts";

/**
 * Parses the arguments after the name of the command.
 *
 * @throws {ServiceError} `usage`, with a suggestion for a mistyped flag.
 */
export function parseArguments(
  command: Command,
  args: readonly string[],
): ParsedArguments {
  const known = { ...COMMON_FLAGS, ...command.flags };
  const names = Object.keys(known);
  const hasValue = (name: string) => known[name]?.value !== undefined;
  const fail = (message: string) => usage(message, command.name);
  for (const [index, argument] of args.entries()) {
    if (argument === "--") break;
    const [, name, value] = /^--([^=]+)(=?)/.exec(argument) ?? [];
    if (name === undefined || !Object.hasOwn(known, name) || hasValue(name)) {
      continue;
    }
    // The parser takes every other text than "false" for true.
    if (value || /^(true|false)$/.test(args[index + 1] ?? "")) {
      throw fail(`--${name} takes no value: leave the flag out, or the value`);
    }
  }
  const parsed = parseArgs([...args], {
    boolean: names.filter((name) => !hasValue(name)),
    string: names.filter(hasValue),
    collect: names.filter(hasValue),
    alias: { h: "help" },
    unknown(argument, key) {
      if (key !== undefined) {
        throw fail(
          `unknown flag ${argument.split("=")[0]}${
            suggest(`--${key}`, names.map((n) => `--${n}`))
          }`,
        );
      }
      return true;
    },
  });
  const values: Record<string, readonly string[]> = {};
  for (const name of names.filter(hasValue)) {
    const given = (parsed[name] as string[]).flatMap((v) =>
      known[name]!.isRepeatable ? v.split(",") : [v]
    );
    for (const value of given) {
      const { allowed, range } = known[name]!;
      if (value === "") {
        throw fail(`--${name} needs a value: ${known[name]!.value}`);
      }
      if (allowed && !allowed.includes(value)) {
        throw notAllowed(name, value, allowed, command.name);
      }
      if (range && !isWithin(value, range)) {
        throw fail(
          `--${name} must be a whole number from ${range.join(" to ")}, not ${
            JSON.stringify(value)
          }`,
        );
      }
    }
    if (given.length > 1 && !known[name]!.isRepeatable) {
      throw fail(`--${name} is given more than once`);
    }
    values[name] = given;
  }
  const flags = new Set(
    names.filter((name) => !hasValue(name) && parsed[name]),
  );
  const isGiven = (name: string) => flags.has(name) || values[name]?.length;
  for (const name of names.filter(isGiven)) {
    const { needs, excludes = [] } = known[name]!;
    if (needs && !isGiven(needs)) throw fail(`--${name} needs --${needs}`);
    const other = excludes.find(isGiven);
    if (other) throw fail(`--${name} cannot be used with --${other}`);
  }
  const [action, ...rest] = parsed._.map(String);
  const operandName = command.action?.operands?.[action ?? ""];
  const operand = operandName ? rest.shift() : "";
  if (operand === undefined) throw fail(`${action} needs a ${operandName}`);
  const stray = command.action ? rest[0] : action;
  if (stray !== undefined) {
    throw fail(`unexpected argument ${JSON.stringify(stray)}`);
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
    operand,
    flags,
    values,
  };
}

function isWithin(
  text: string,
  [minimum, maximum]: readonly [number, number],
): boolean {
  return /^\d+$/.test(text) && Number(text) >= minimum &&
    Number(text) <= maximum;
}

/** Returns a usage error whose remedy names the help of the command, or of the program. */
export function usage(
  message: string,
  command: string | undefined,
): ServiceError {
  return new ServiceError("usage", `Cannot run: ${message}`, {
    remedy: command ? `See ${command} --help.` : "See --help.",
  });
}

/** Maximum number of allowed values that a message lists. */
const MAX_LISTED = 20;

/** Returns the usage error for a value that a flag does not allow. */
export function notAllowed(
  flag: string,
  value: string,
  allowed: readonly string[],
  command: string,
): ServiceError {
  const listed = allowed.length > MAX_LISTED
    ? `${allowed.slice(0, MAX_LISTED).join(", ")} or ${
      formatQuantity(allowed.length - MAX_LISTED, "other")
    }`
    : allowed.join(", ");
  return usage(
    `--${flag} must be one of ${listed}, not ${JSON.stringify(value)}${
      suggest(value, allowed)
    }`,
    command,
  );
}
