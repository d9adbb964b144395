/** Parsers of variables, one for each kind of value. */
import { parseCrontab } from "./crontab.ts";

/** A variable and its parser. `parse` throws a plain `Error` that names the allowed values. */
export interface Variable<T = unknown> {
  /** Text to parse when the variable is unset or empty. */
  readonly default: string | undefined;
  readonly description: string;
  /** The allowed values. Completes the sentence "… must be". */
  readonly allowed: string;
  readonly secret: boolean;
  /** Whether messages leave out an invalid value, because it may hold a secret. */
  readonly isHidden?: boolean;
  /** Returns the part of a secret that may be shown. Without it, the whole value is masked. */
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

/** Returns the variable without its default. Its value is `undefined` when it is unset. */
export const optional = <T>(of: Variable<T>): Variable<T | undefined> => ({
  ...of,
  default: undefined,
});

/** Returns a parser that accepts the texts that match the pattern. */
const matching = (pattern: RegExp) => (value: string) =>
  pattern.test(value) ? value : undefined;

export const path = (description: string) => optional(text("", description));

/** Matches an IPv6 address, with an optional zone. */
const IPV6 = /^(?=.*:.*:)[0-9a-f:.]+(%[\w.-]+)?$/i;

/** Matches a host name or an IPv4 address. */
const HOST_NAME = /^[\p{L}\p{N}_]([\p{L}\p{N}_.-]{0,252})$/u;

/** Matches the absolute path of a folder with the socket of a server. */
const SOCKET_FOLDER = /^\/[^\0,\n]*$/;

export const host = (fallback: string, description: string) => ({
  ...variable(
    fallback,
    "one host name or one address",
    description,
    (value) => isHost(value) ? value : undefined,
  ),
  isHidden: true,
});

/** The hosts of a database. Messages never show an invalid one, because it may be a connection URL. */
export const databaseHosts = (fallback: string, description: string) => ({
  ...variable(
    fallback,
    "one or more host names, addresses, or absolute paths of socket folders, separated by commas without spaces",
    description,
    (value) => {
      const hosts = value.split(",");
      const isValid = hosts.every((host) =>
        isHost(host) || SOCKET_FOLDER.test(host)
      );
      return isValid ? hosts : undefined;
    },
  ),
  isHidden: true,
});

function isHost(text: string): boolean {
  return IPV6.test(text) || HOST_NAME.test(text);
}

/**
 * A file that the program writes. Deno splits lists of permitted paths at commas,
 * and its shell folds white space.
 */
export const writtenPath = (fallback: string, description: string) =>
  variable(
    fallback,
    "a path without commas, and without white space other than single spaces inside",
    description,
    matching(/^[^\s,\0]+( [^\s,\0]+)*$/),
  );

export const secret = (description: string) => ({
  ...optional(text("", description)),
  secret: true,
});

/**
 * A token for `Authorization: Bearer`. RFC 6750 allows fewer characters. These
 * are all characters that a header value can carry unchanged (RFC 9110).
 */
export const bearerToken = (description: string) => ({
  ...optional(variable(
    "",
    "at least 16 visible ASCII characters without white space (openssl rand -hex 32)",
    description,
    matching(/^[\x21-\x7e]{16,}$/),
  )),
  secret: true,
});

/** Returns the URL, or `undefined` unless it is an http or https URL without user and password. */
function parseHttpUrl(text: string): URL | undefined {
  const url = URL.parse(text);
  return url && /^https?:$/.test(url.protocol) && !url.username && !url.password
    ? url
    : undefined;
}

/** A URL to post to. It may hold a secret, so only its origin is shown. */
export const webhookUrl = (description: string) => ({
  ...optional(variable(
    "",
    "an http or https URL without user and password",
    description,
    (value) => parseHttpUrl(value)?.href.replace(/#.*$/, ""),
  )),
  secret: true,
  shown: (value: string) => URL.parse(value)?.origin ?? "***",
});

/** The address at which browsers reach the service. Paths are appended to it. */
export const publicUrl = (description: string) =>
  optional(variable(
    "",
    "an http or https URL without user, password, query and fragment",
    description,
    (value) =>
      /[?#]/.test(value)
        ? undefined
        : parseHttpUrl(value)?.href.replace(/\/+$/, ""),
  ));

/** Length limits of a Standard Webhooks secret, in bytes. */
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

/** Returns a function that makes variables of a kind of number. */
const numeric = (noun: string, syntax: RegExp) =>
(
  fallback: string,
  minimum: number,
  maximum: number,
  description: string,
) =>
  variable(
    fallback,
    `${noun} from ${minimum} to ${maximum}`,
    description,
    (value) => {
      const parsed = syntax.test(value) ? Number(value) : NaN;
      return parsed >= minimum && parsed <= maximum ? parsed : undefined;
    },
  );

export const number = numeric("a number", /^\d+(\.\d+)?$/);

export const integer = numeric("a whole number", /^\d+$/);

/** The ports of the hosts of a database: one for all, or one for each. */
export const ports = (fallback: string, description: string) => {
  const port = integer(fallback, 1, 65535, description);
  return variable(
    fallback,
    `${port.allowed}, or one for each host, separated by commas`,
    description,
    (value) => {
      try {
        return value.split(",").map(port.parse);
      } catch {
        return undefined;
      }
    },
  );
};

export const boolean = (fallback: boolean, description: string) =>
  variable(
    String(fallback),
    "true or false",
    description,
    (value) =>
      /^(true|yes|on|1)$/i.test(value) ||
      (/^(false|no|off|0)$/i.test(value) ? false : undefined),
  );

export const timezone = (fallback: string, description: string) =>
  variable(
    fallback,
    "a time zone name such as UTC or Europe/Berlin",
    description,
    (value) => {
      // Refuses offsets: PostgreSQL reads "+02:00" with the opposite sign.
      if (!/^[A-Za-z]/.test(value)) return undefined;
      // Only the second one knows names such as AST. It takes 25 ms, a tenth of a load.
      const isKnown = [
        () => new Temporal.ZonedDateTime(0n, value),
        () => new Intl.DateTimeFormat("en", { timeZone: value }),
      ].some((find) => {
        try {
          return find();
        } catch {
          return false;
        }
      });
      return isKnown ? value : undefined;
    },
  );

/** A PostgreSQL identifier. The server silently truncates one of more than 63 bytes. */
export const identifier = (fallback: string, description: string) =>
  variable(
    fallback,
    "at most 63 bytes without NUL",
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
  "verify-ca",
  "verify-full",
] as const;

/** The servers that a connection may need, in the words of libpq. */
export const TARGET_SESSION_ATTRS = [
  "any",
  "read-write",
  "primary",
  "standby",
  "prefer-standby",
] as const;

export type TargetSessionAttrs = (typeof TARGET_SESSION_ATTRS)[number];

/** Authentication methods that a server may ask for. `none` stands for a server without authentication. */
const AUTH_METHODS = [
  "password",
  "md5",
  "scram-sha-256",
  "none",
] as const;

export type AuthMethod = (typeof AUTH_METHODS)[number];

/** Returns the authentication methods that are allowed by default: all where TLS authenticates the server. */
export function defaultAuthMethods(sslMode: string): ReadonlySet<AuthMethod> {
  return new Set(
    sslMode === "verify-full" ? AUTH_METHODS : ["scram-sha-256", "none"],
  );
}

/** A list of authentication methods, as in libpq's `require_auth` without its negations. */
export const authMethods = (description: string) =>
  optional(variable(
    "",
    `a list of ${AUTH_METHODS.join(", ")}, separated by commas`,
    description,
    (value) => {
      const methods = value.split(",").map((name) =>
        AUTH_METHODS.find((method) => method === name.trim().toLowerCase())
      );
      return methods.includes(undefined)
        ? undefined
        : new Set(methods) as ReadonlySet<AuthMethod>;
    },
  ));

export const LOG_LEVELS = [
  "TRACE",
  "DEBUG",
  "INFO",
  "WARNING",
  "ERROR",
] as const;
