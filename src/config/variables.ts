/**
 * Every variable, with its default, its meaning and what is allowed.
 *
 * @module
 */
import {
  authMethods,
  bearerToken,
  boolean,
  cron,
  host,
  identifier,
  integer,
  LOG_LEVELS,
  number,
  oneOf,
  optional,
  path,
  secret,
  signingSecret,
  SSL_MODES,
  timezone,
  type Variable,
  webhookUrl,
  writtenPath,
} from "./parsers.ts";

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

export type SecretVariable =
  | "OLIST_DB_PASSWORD"
  | "DWH_DB_PASSWORD"
  | "API_TOKEN"
  | "EVENT_WEBHOOK_SECRET";
export type FileVariable =
  | `${SecretVariable}_FILE`
  | "OLIST_DB_SSLROOTCERT"
  | "DWH_DB_SSLROOTCERT";
export type Values = {
  readonly [K in VariableName]: ReturnType<(typeof VARIABLES)[K]["parse"]>;
};
