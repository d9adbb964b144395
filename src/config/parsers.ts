/**
 * Parsers of variables: what each kind of value may be.
 *
 * @module
 */
import { parseCrontab } from "./crontab.ts";

/** How one variable is read. `parse` throws a plain `Error` that says what is allowed. */
export interface Variable<T = unknown> {
  /** Text that is parsed when the variable is unset or empty. */
  readonly default: string | undefined;
  readonly description: string;
  /** What is allowed, as it completes the sentence "… must be". */
  readonly allowed: string;
  readonly secret: boolean;
  /** Whether a value that is not allowed is left out of the message: it may hold a secret. */
  readonly isHidden?: boolean;
  /** What of a secret may be shown; without it, nothing. */
  readonly shown?: (text: string) => string;
  readonly parse: (text: string) => T;
}

export function variable<T>(
  fallback: string | undefined,
  allowed: string,
  description: string,
  parse: (text: string) => T | undefined,
): Variable<T> {
  return {
    default: fallback,
    description,
    allowed,
    secret: false,
    parse(text) {
      const value = parse(text);
      if (value === undefined) throw new Error(`must be ${allowed}`);
      return value;
    },
  };
}

export const text = (fallback: string, description: string) =>
  variable(fallback, "text", description, (value) => value);

/** A variable with no default: unset is a value of its own. */
export const optional = <T>(of: Variable<T>): Variable<T | undefined> => ({
  ...of,
  default: undefined,
});

export const path = (description: string) => optional(text("", description));

/** An IPv6 address, with its zone where it has one. */
const IPV6 = /^(?=.*:.*:)[0-9a-f:.]+(%[\w.-]+)?$/i;

/** A name as resolvers take it, or an IPv4 address. */
const HOST_NAME = /^[\p{L}\p{N}_]([\p{L}\p{N}_.-]{0,252})$/u;

/** A host is never echoed where it is wrong: it may be a connection URL. */
export const host = (
  fallback: string,
  description: string,
  allowed: string,
) => ({
  ...variable(fallback, allowed, description, (value) => {
    const isFolder = allowed.includes("folder") && /^\/[^\0,\n]*$/.test(value);
    return isFolder || IPV6.test(value) || HOST_NAME.test(value)
      ? value
      : undefined;
  }),
  isHidden: true,
});

/** A file that is written. The task hands it to Deno, which takes lists of paths and whose shell folds white space. */
export const writtenPath = (fallback: string, description: string) =>
  variable(
    fallback,
    "a path without commas, and with no white space but single spaces inside",
    description,
    (value) => /^[^\s,\0]+( [^\s,\0]+)*$/.test(value) ? value : undefined,
  );

export const secret = (description: string) => ({
  ...optional(text("", description)),
  secret: true,
});

/**
 * A token for `Authorization: Bearer`. RFC 6750 names fewer characters; more
 * than what RFC 9110 has a header's value take as it is, nobody could send.
 */
export const bearerToken = (description: string) => ({
  ...optional(variable(
    "",
    "at least 16 visible ASCII characters with no white space (openssl rand -hex 32)",
    description,
    (value) => /^[\x21-\x7e]{16,}$/.test(value) ? value : undefined,
  )),
  secret: true,
});

/** An address to post to. It may hold a secret, so that only its origin is ever shown. */
export const webhookUrl = (description: string) => ({
  ...optional(variable(
    "",
    "an http or https URL without user and password",
    description,
    (value) => {
      const url = URL.parse(value);
      const isAllowed = url && /^https?:$/.test(url.protocol) &&
        url.hostname !== "" && !url.username && !url.password;
      return isAllowed ? url.href.replace(/#.*$/, "") : undefined;
    },
  )),
  secret: true,
  shown: (value: string) => URL.parse(value)?.origin ?? "***",
});

/** Bytes that a Standard Webhooks secret may have. */
const SIGNING_KEY_BYTES = { minimum: 24, maximum: 64 } as const;

export const signingSecret = (description: string) => ({
  ...optional(variable(
    "",
    `whsec_ followed by the base64 of ${SIGNING_KEY_BYTES.minimum} to ${SIGNING_KEY_BYTES.maximum} bytes (echo "whsec_$(openssl rand -base64 32)")`,
    description,
    (value) => {
      const [, base64] =
        /^whsec_((?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?)$/
          .exec(value) ?? [];
      if (base64 === undefined) return undefined;
      const { length } = atob(base64);
      return length >= SIGNING_KEY_BYTES.minimum &&
          length <= SIGNING_KEY_BYTES.maximum
        ? value
        : undefined;
    },
  )),
  secret: true,
});

export const oneOf = <const T extends string>(
  values: readonly T[],
  fallback: T,
  description: string,
) =>
  variable(
    fallback,
    `one of ${values.join(", ")}`,
    description,
    (value) => values.find((v) => v.toLowerCase() === value.toLowerCase()),
  );

export const number = (
  fallback: string,
  minimum: number,
  maximum: number,
  description: string,
) =>
  variable(
    fallback,
    `a number from ${minimum} to ${maximum}`,
    description,
    (value) => {
      const parsed = /^\d+(\.\d+)?$/.test(value) ? Number(value) : NaN;
      return parsed >= minimum && parsed <= maximum ? parsed : undefined;
    },
  );

export const integer = (
  fallback: string,
  minimum: number,
  maximum: number,
  description: string,
) =>
  variable(
    fallback,
    `a whole number from ${minimum} to ${maximum}`,
    description,
    (value) => {
      const parsed = /^\d+$/.test(value) ? Number(value) : NaN;
      return parsed >= minimum && parsed <= maximum ? parsed : undefined;
    },
  );

const BOOLEANS: Readonly<Record<string, boolean>> = {
  true: true,
  yes: true,
  on: true,
  "1": true,
  false: false,
  no: false,
  off: false,
  "0": false,
};

export const boolean = (fallback: boolean, description: string) =>
  variable(
    String(fallback),
    "true or false",
    description,
    (value) => BOOLEANS[value.toLowerCase()],
  );

export const timezone = (fallback: string, description: string) =>
  variable(
    fallback,
    "a time zone name such as UTC or Europe/Berlin",
    description,
    (value) => {
      // Offsets are refused: PostgreSQL reads "+02:00" with the sign turned round.
      if (!/^[A-Za-z]/.test(value)) return undefined;
      try {
        new Intl.DateTimeFormat("en", { timeZone: value });
        return value;
      } catch {
        return undefined;
      }
    },
  );

/** A PostgreSQL identifier: at most 63 bytes, or the server would cut it silently. */
export const identifier = (fallback: string, description: string) =>
  variable(
    fallback,
    "at most 63 bytes with no NUL",
    description,
    (value) =>
      new TextEncoder().encode(value).length <= 63 && !value.includes("\0")
        ? value
        : undefined,
  );

export const cron = (description: string) =>
  optional(variable(
    "",
    "a crontab expression of five fields such as */15 * * * * or 0 6 * * MON-FRI",
    description,
    parseCrontab,
  ));

export const SSL_MODES = [
  "disable",
  "prefer",
  "require",
  "verify-full",
] as const;

/** Ways to log in that a server may ask for; `none` is a server that asks for nothing. */
export const AUTH_METHODS = [
  "password",
  "md5",
  "scram-sha-256",
  "none",
] as const;

export type AuthMethod = (typeof AUTH_METHODS)[number];

/** The ways to log in that are allowed unless a variable names others. Where TLS authenticates the server, all are. */
export function defaultAuthMethods(sslMode: string): ReadonlySet<AuthMethod> {
  return new Set(
    sslMode === "verify-full" ? AUTH_METHODS : ["scram-sha-256", "none"],
  );
}

/** A list of ways to log in, as libpq's `require_auth` without its negations. */
export const authMethods = (description: string) =>
  optional(variable(
    "",
    `a list of ${AUTH_METHODS.join(", ")}, separated by commas`,
    description,
    (value) => {
      const names = value.split(",").map((name) => name.trim().toLowerCase());
      const methods = names.map((name) =>
        AUTH_METHODS.find((method) => method === name)
      );
      return methods.every((method) => method !== undefined)
        ? new Set(methods) as ReadonlySet<AuthMethod>
        : undefined;
    },
  ));

export const LOG_LEVELS = [
  "TRACE",
  "DEBUG",
  "INFO",
  "WARNING",
  "ERROR",
] as const;
