/**
 * Configuration: every variable with its default, its meaning and what is
 * allowed; parsed once, before any connection is made, with all mistakes
 * reported together.
 *
 * @module
 */
import { ServiceError } from "../errors.ts";
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

function variable<T>(
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

const text = (fallback: string, description: string) =>
  variable(fallback, "text", description, (value) => value);

/** A variable with no default: unset is a value of its own. */
const optional = <T>(of: Variable<T>): Variable<T | undefined> => ({
  ...of,
  default: undefined,
});

const path = (description: string) => optional(text("", description));

/** An IPv6 address, with its zone where it has one. */
const IPV6 = /^(?=.*:.*:)[0-9a-f:.]+(%[\w.-]+)?$/i;

/** A name as resolvers take it, or an IPv4 address. */
const HOST_NAME = /^[\p{L}\p{N}_]([\p{L}\p{N}_.-]{0,252})$/u;

/** A host is never echoed where it is wrong: it may be a connection URL. */
const host = (fallback: string, description: string, allowed: string) => ({
  ...variable(fallback, allowed, description, (value) => {
    const isFolder = allowed.includes("folder") && /^\/[^\0,\n]*$/.test(value);
    return isFolder || IPV6.test(value) || HOST_NAME.test(value)
      ? value
      : undefined;
  }),
  isHidden: true,
});

/** A file that is written. The task hands it to Deno, which takes lists of paths and whose shell folds white space. */
const writtenPath = (fallback: string, description: string) =>
  variable(
    fallback,
    "a path without commas, and with no white space but single spaces inside",
    description,
    (value) => /^[^\s,\0]+( [^\s,\0]+)*$/.test(value) ? value : undefined,
  );

const secret = (description: string) => ({
  ...optional(text("", description)),
  secret: true,
});

/**
 * A token for `Authorization: Bearer`. RFC 6750 names fewer characters; more
 * than what RFC 9110 has a header's value take as it is, nobody could send.
 */
const bearerToken = (description: string) => ({
  ...optional(variable(
    "",
    "at least 16 visible ASCII characters with no white space (openssl rand -hex 32)",
    description,
    (value) => /^[\x21-\x7e]{16,}$/.test(value) ? value : undefined,
  )),
  secret: true,
});

/** An address to post to. It may hold a secret, so that only its origin is ever shown. */
const webhookUrl = (description: string) => ({
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

const signingSecret = (description: string) => ({
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

const oneOf = <const T extends string>(
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

const number = (
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

const integer = (
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

const boolean = (fallback: boolean, description: string) =>
  variable(
    String(fallback),
    "true or false",
    description,
    (value) => BOOLEANS[value.toLowerCase()],
  );

const timezone = (fallback: string, description: string) =>
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
const identifier = (fallback: string, description: string) =>
  variable(
    fallback,
    "at most 63 bytes with no NUL",
    description,
    (value) =>
      new TextEncoder().encode(value).length <= 63 && !value.includes("\0")
        ? value
        : undefined,
  );

const cron = (description: string) =>
  optional(variable(
    "",
    "a crontab expression of five fields such as */15 * * * * or 0 6 * * MON-FRI",
    description,
    parseCrontab,
  ));

const SSL_MODES = ["disable", "prefer", "require", "verify-full"] as const;

/** Ways to log in that a server may ask for; `none` is a server that asks for nothing. */
const AUTH_METHODS = ["password", "md5", "scram-sha-256", "none"] as const;

export type AuthMethod = (typeof AUTH_METHODS)[number];

/** The ways to log in that are allowed unless a variable names others. Where TLS authenticates the server, all are. */
function defaultAuthMethods(sslMode: string): ReadonlySet<AuthMethod> {
  return new Set(
    sslMode === "verify-full" ? AUTH_METHODS : ["scram-sha-256", "none"],
  );
}

/** A list of ways to log in, as libpq's `require_auth` without its negations. */
const authMethods = (description: string) =>
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

const LOG_LEVELS = ["TRACE", "DEBUG", "INFO", "WARNING", "ERROR"] as const;

const databaseVariables = <P extends string>(
  prefix: P,
  what: string,
  name: string,
) => {
  const variables = {
    HOST: host(
      "localhost",
      `Host of the ${what}`,
      "one host name, one address, or the absolute path of a socket folder",
    ),
    PORT: integer("5432", 1, 65535, `Port of the ${what}`),
    USER: identifier("root", `Role in the ${what}`),
    NAME: identifier(name, `Database of the ${what}`),
    PASSWORD: secret(`Password in the ${what}`),
    PASSWORD_FILE: path(`File that holds the password in the ${what}`),
    SSLMODE: oneOf(
      SSL_MODES,
      "prefer",
      `TLS to the ${what}; only verify-full checks who answers`,
    ),
    SSLROOTCERT: path(
      `PEM file of the authority that verify-full trusts for the ${what}`,
    ),
    REQUIRE_AUTH: authMethods(
      `Logins that the ${what} may ask for: password, md5, scram-sha-256, none`,
    ),
  };
  return Object.fromEntries(
    Object.entries(variables).map((
      [key, value],
    ) => [`${prefix}_${key}`, value]),
  ) as { [K in keyof typeof variables as `${P}_${K}`]: (typeof variables)[K] };
};

/** Every variable, in the order in which `config` prints them. */
export const VARIABLES = {
  ...databaseVariables("OLIST_DB", "source", "olist_ecommerce"),
  ...databaseVariables("DWH_DB", "warehouse", "example_project_1_dwh"),
  MAX_PARALLEL_TASKS: integer("5", 1, 64, "Tables loaded at the same time"),
  RETRY_ATTEMPTS: integer("3", 1, 100, "Attempts in all, for transient causes"),
  RETRY_DELAY: number(
    "1.0",
    0,
    3600,
    "Seconds before the second attempt, doubled for each one after it",
  ),
  LOAD_MODE: oneOf(
    ["auto", "full"],
    "auto",
    "auto copies what differs, full copies everything",
  ),
  LOAD_ATOMIC: boolean(
    false,
    "All tables become visible together or not at all",
  ),
  LOAD_TIMEZONE: timezone(
    "UTC",
    "Time zone whose midnight a source DATE becomes",
  ),
  VERIFY: oneOf(
    ["content", "count"],
    "content",
    "What is compared before a load becomes visible",
  ),
  LOCK_TIMEOUT: number(
    "60",
    0.1,
    86400,
    "Seconds to wait for another load, and for a lock on a table",
  ),
  CONNECT_TIMEOUT: number("10", 0.1, 600, "Seconds for a connection to stand"),
  STALL_TIMEOUT: number(
    "60",
    0.5,
    86400,
    "Seconds without a byte after which a connection is given up",
  ),
  EVENT_PUBLISHER_TYPE: oneOf(
    ["database", "file"],
    "database",
    "Where events go: the event table, or the table and EVENT_FILE",
  ),
  EVENT_FILE: writtenPath(
    "events.jsonl",
    "File of the file publisher, one event a line",
  ),
  EVENT_SPOOL_FILE: writtenPath(
    "events.spool.jsonl",
    "Where a failure event waits while the warehouse is out of reach",
  ),
  EVENT_WEBHOOK_URL: webhookUrl(
    "Where each event is posted, signed; https but for tests",
  ),
  EVENT_WEBHOOK_SECRET: signingSecret(
    "Key of the signatures, as Standard Webhooks write it: whsec_…",
  ),
  EVENT_WEBHOOK_SECRET_FILE: path("File that holds the key of the signatures"),
  HOST: host(
    "127.0.0.1",
    "Address that the service listens on",
    "one host name or one address",
  ),
  PORT: integer("8000", 0, 65535, "Port that the service listens on"),
  API_TOKEN: bearerToken("Bearer token that every request but /health* needs"),
  API_TOKEN_FILE: path("File that holds the bearer token"),
  ALLOW_UNAUTHENTICATED: boolean(
    false,
    "Listen beyond loopback without a token",
  ),
  LOAD_SCHEDULE: cron("When the service loads by itself, in UTC; unset is off"),
  LISTEN_CHANNEL: optional(
    identifier("", "A NOTIFY on this channel of the warehouse triggers a load"),
  ),
  SHUTDOWN_GRACE: number(
    "30",
    0,
    86400,
    "Seconds that a running load gets to end when the service is stopped",
  ),
  RUN_RETENTION_DAYS: number(
    "90",
    0.001,
    36500,
    "Days for which finished runs and their events are kept",
  ),
  LOG_LEVEL: oneOf(LOG_LEVELS, "INFO", "Least level that is logged"),
  LOG_FORMAT: oneOf(
    ["auto", "text", "json"],
    "auto",
    "auto is text on a terminal and json elsewhere",
  ),
} satisfies Record<string, Variable>;

/** Name of a variable. */
export type VariableName = keyof typeof VARIABLES;

type SecretVariable =
  | "OLIST_DB_PASSWORD"
  | "DWH_DB_PASSWORD"
  | "API_TOKEN"
  | "EVENT_WEBHOOK_SECRET";
type FileVariable =
  | `${SecretVariable}_FILE`
  | "OLIST_DB_SSLROOTCERT"
  | "DWH_DB_SSLROOTCERT";
type Values = {
  readonly [K in VariableName]: ReturnType<(typeof VARIABLES)[K]["parse"]>;
};
/** Where a database is and how to get in. */
export interface DatabaseConfig {
  /** The name that users know the connection by. */
  readonly label: "olist" | "dwh";
  readonly host: string;
  readonly port: number;
  readonly user: string;
  readonly database: string;
  readonly password: string | undefined;
  readonly sslMode: (typeof SSL_MODES)[number];
  /** PEM text of the trusted authority, or `undefined` for the system's. */
  readonly sslRootCertificate: string | undefined;
  /** Ways to log in that the server may ask for. */
  readonly requireAuth: ReadonlySet<AuthMethod>;
}

/** The configuration, typed. Durations are seconds. */
export interface Config {
  readonly olist: DatabaseConfig;
  readonly dwh: DatabaseConfig;
  readonly maxParallelTasks: number;
  readonly retryAttempts: number;
  readonly retryDelaySeconds: number;
  readonly loadMode: "auto" | "full";
  readonly loadAtomic: boolean;
  readonly loadTimezone: string;
  readonly verify: "content" | "count";
  readonly lockTimeoutSeconds: number;
  readonly connectTimeoutSeconds: number;
  readonly stallTimeoutSeconds: number;
  readonly eventPublisherType: "database" | "file";
  readonly eventFile: string;
  readonly eventSpoolFile: string;
  /** Never to be printed beyond its origin: its path can be a secret. */
  readonly eventWebhookUrl: string | undefined;
  readonly eventWebhookSecret: string | undefined;
  readonly host: string;
  /** 0 takes any port that is free. */
  readonly port: number;
  readonly apiToken: string | undefined;
  readonly allowUnauthenticated: boolean;
  /** A crontab expression in UTC. */
  readonly loadSchedule: string | undefined;
  readonly listenChannel: string | undefined;
  readonly shutdownGraceSeconds: number;
  readonly runRetentionDays: number;
  readonly logLevel: (typeof LOG_LEVELS)[number];
  readonly logFormat: "auto" | "text" | "json";
}

/** Parts of a connection string, a URL with a password, and a PEM file. */
const SECRET_LOOKING =
  /:\/\/[^/]*@|^\w+:\/\/.*[?&]\w*(password|token|secret|key)=|\bpass(word|wd)?\s*=|-----BEGIN /i;

/** Whether a value that should hold no secret looks as if it held one, such as a connection string. */
export function looksSecret(value: string): boolean {
  return SECRET_LOOKING.test(value);
}

/** A source of variables, such as the environment. */
export type Environment = Readonly<Record<string, string | undefined>>;

/**
 * Reads the configuration.
 *
 * `readFile` returns the text of a file that a variable names (a password, a
 * certificate).
 *
 * @throws {ServiceError} `configuration`, naming every mistake: variable,
 * value (masked when secret) and what is allowed.
 */
export function parseConfig(
  environment: Environment,
  readFile: (path: string) => string,
): Config {
  const problems: string[] = [];

  function read<K extends VariableName>(name: K): Values[K] {
    const { default: fallback, parse, secret, isHidden, allowed } =
      VARIABLES[name] as Variable<Values[K]>;
    const value = environment[name] || fallback;
    // What is invalid or unset without a default is never used: the problems are thrown below.
    const nothing = undefined as Values[K];
    if (value === undefined) return nothing;
    if (!secret && looksSecret(value)) {
      problems.push(
        `${name} must be ${allowed}: its value looks like a connection string or a key, and is not shown`,
      );
      return nothing;
    }
    try {
      return parse(value);
    } catch (error) {
      problems.push(
        isHidden
          ? `${name} ${(error as Error).message}; its value is not shown`
          : `${name}=${secret ? "***" : JSON.stringify(value)} ${
            (error as Error).message
          }`,
      );
      return nothing;
    }
  }

  function fileOf(name: FileVariable): string | undefined {
    const path = read(name);
    if (path === undefined) return undefined;
    const shown = `${name}=${JSON.stringify(path)}`;
    try {
      const text = readFile(path);
      if (text.trim() !== "") return text;
      // Taken for unset, it would open what it was to close.
      problems.push(
        `${shown} is an empty file: write into it what it is to hold, or unset ${name}`,
      );
    } catch (error) {
      problems.push(`${shown} cannot be read: ${(error as Error).message}`);
    }
    return undefined;
  }

  function secretOf(name: SecretVariable): string | undefined {
    const fileName = `${name}_FILE` as const;
    if (environment[name] && environment[fileName]) {
      problems.push(`${name} and ${fileName} are both set: keep one of them`);
    }
    // Editors end a file with a newline that is not part of the secret.
    const text = fileOf(fileName)?.replace(/\r?\n$/, "");
    if (text === undefined) return read(name);
    try {
      return VARIABLES[name].parse(text);
    } catch (error) {
      problems.push(`what ${fileName} names ${(error as Error).message}`);
      return undefined;
    }
  }

  function database(
    label: DatabaseConfig["label"],
    prefix: "OLIST_DB" | "DWH_DB",
  ): DatabaseConfig {
    const sslMode = read(`${prefix}_SSLMODE`);
    return {
      label,
      host: read(`${prefix}_HOST`),
      port: read(`${prefix}_PORT`),
      user: read(`${prefix}_USER`),
      database: read(`${prefix}_NAME`),
      password: secretOf(`${prefix}_PASSWORD`),
      sslMode,
      requireAuth: read(`${prefix}_REQUIRE_AUTH`) ??
        defaultAuthMethods(sslMode),
      sslRootCertificate: fileOf(`${prefix}_SSLROOTCERT`),
    };
  }

  const config: Config = {
    olist: database("olist", "OLIST_DB"),
    dwh: database("dwh", "DWH_DB"),
    maxParallelTasks: read("MAX_PARALLEL_TASKS"),
    retryAttempts: read("RETRY_ATTEMPTS"),
    retryDelaySeconds: read("RETRY_DELAY"),
    loadMode: read("LOAD_MODE"),
    loadAtomic: read("LOAD_ATOMIC"),
    loadTimezone: read("LOAD_TIMEZONE"),
    verify: read("VERIFY"),
    lockTimeoutSeconds: read("LOCK_TIMEOUT"),
    connectTimeoutSeconds: read("CONNECT_TIMEOUT"),
    stallTimeoutSeconds: read("STALL_TIMEOUT"),
    eventPublisherType: read("EVENT_PUBLISHER_TYPE"),
    eventFile: read("EVENT_FILE"),
    eventSpoolFile: read("EVENT_SPOOL_FILE"),
    eventWebhookUrl: read("EVENT_WEBHOOK_URL"),
    eventWebhookSecret: secretOf("EVENT_WEBHOOK_SECRET"),
    host: read("HOST"),
    port: read("PORT"),
    apiToken: secretOf("API_TOKEN"),
    allowUnauthenticated: read("ALLOW_UNAUTHENTICATED"),
    loadSchedule: read("LOAD_SCHEDULE"),
    listenChannel: read("LISTEN_CHANNEL"),
    shutdownGraceSeconds: read("SHUTDOWN_GRACE"),
    runRetentionDays: read("RUN_RETENTION_DAYS"),
    logLevel: read("LOG_LEVEL"),
    logFormat: read("LOG_FORMAT"),
  };

  const hasSecret = environment.EVENT_WEBHOOK_SECRET ||
    environment.EVENT_WEBHOOK_SECRET_FILE;
  if (config.eventWebhookUrl && !hasSecret) {
    problems.push(
      "EVENT_WEBHOOK_URL is set without EVENT_WEBHOOK_SECRET or EVENT_WEBHOOK_SECRET_FILE: nobody could tell its posts from forged ones",
    );
  }

  if (problems.length > 0) {
    throw new ServiceError(
      "configuration",
      `Cannot start: ${problems.length} configuration ${
        problems.length === 1 ? "mistake" : "mistakes"
      }: ${problems.join("; ")}`,
    );
  }
  return config;
}

/** One variable as `config` shows it. */
export interface EffectiveVariable {
  readonly name: string;
  readonly value: string | null;
  readonly origin: "set" | "default";
  readonly description: string;
}

/** The variables in force, secrets masked. */
export function effectiveVariables(
  environment: Environment,
): readonly EffectiveVariable[] {
  return Object.entries<Variable>(VARIABLES).map(([name, variable]) => {
    const given = environment[name];
    const value = given || (variable.default ?? null);
    return {
      name,
      value: value !== null && (variable.secret || looksSecret(value))
        ? variable.shown?.(value) ?? "***"
        : value,
      origin: given ? "set" : "default",
      description: variable.description,
    };
  });
}
