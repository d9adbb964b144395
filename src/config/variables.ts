/** All variables, with their defaults, descriptions and allowed values. */
import {
  authMethods,
  bearerToken,
  boolean,
  cron,
  databaseHosts,
  host,
  identifier,
  integer,
  LOG_LEVELS,
  number,
  oneOf,
  optional,
  path,
  ports,
  publicUrl,
  secret,
  signingSecret,
  SSL_MODES,
  TARGET_SESSION_ATTRS,
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
    HOST: databaseHosts(
      "localhost",
      `Host of the ${what}. A connection tries several hosts in order`,
    ),
    PORT: ports("5432", `Port of the ${what}, or one port for each host`),
    TARGET_SESSION_ATTRS: optional(oneOf(
      TARGET_SESSION_ATTRS,
      "any",
      `The server that a connection to the ${what} needs. Unset, ${
        what === "warehouse" ? "several hosts need read-write" : "any server"
      }`,
    )),
    USER: identifier("root", `Role in the ${what}`),
    NAME: identifier(name, `Database of the ${what}`),
    PASSWORD: secret(`Password of the role in the ${what}`),
    PASSWORD_FILE: path(
      `File that contains the password of the role in the ${what}`,
    ),
    SSLMODE: oneOf(
      SSL_MODES,
      "prefer",
      `TLS mode for the ${what}. Only verify-full authenticates the server`,
    ),
    SSLROOTCERT: path(
      `PEM file of the certificate authority that require, verify-ca and verify-full trust for the ${what}`,
    ),
    SSLCERT: path(`PEM file of the client certificate for the ${what}`),
    SSLKEY: path(
      `PEM file of the unencrypted key of the client certificate for the ${what}`,
    ),
    REQUIRE_AUTH: authMethods(
      `Authentication methods that the ${what} may ask for: password, md5, scram-sha-256, none`,
    ),
  };
  return Object.fromEntries(
    Object.entries(variables).map((
      [key, value],
    ) => [`${prefix}_${key}`, value]),
  ) as { [K in keyof typeof variables as `${P}_${K}`]: (typeof variables)[K] };
};

/** All variables, in the order in which `config` prints them. */
export const VARIABLES = {
  ...databaseVariables("OLIST_DB", "source", "olist_ecommerce"),
  ...databaseVariables("DWH_DB", "warehouse", "example_project_1_dwh"),
  TABLES_FILE: path(
    "YAML or JSON file that declares the tables. Unset loads the two marketing tables",
  ),
  MAX_PARALLEL_TASKS: integer("5", 1, 64, "Tables loaded at the same time"),
  RETRY_ATTEMPTS: integer(
    "3",
    1,
    100,
    "Maximum attempts of a load that fails for a transient cause",
  ),
  RETRY_DELAY: number(
    "1.0",
    0,
    3600,
    "Delay before the second attempt, in seconds. It doubles for each further attempt",
  ),
  LOAD_MODE: oneOf(
    ["auto", "full"],
    "auto",
    "auto copies the rows that differ, full copies all rows",
  ),
  LOAD_ATOMIC: boolean(
    false,
    "All tables become visible together or not at all",
  ),
  SHOW_ROWS: boolean(
    false,
    "Store the first changed rows of tables with a `key`, and show them on the page of the run",
  ),
  LOAD_TIMEZONE: timezone(
    "UTC",
    "Time zone of a source DATE or TIMESTAMP. A DATE becomes midnight",
  ),
  VERIFY: oneOf(
    ["content", "count"],
    "content",
    "Verification before a load becomes visible: content compares the rows, count only their number",
  ),
  MAX_SHRINK: number(
    "0.9",
    0,
    1,
    "Maximum share of a target's rows that one load may remove. 1 disables the check",
  ),
  CHECK_TIMEOUT: number(
    "300",
    0.1,
    86400,
    "Maximum duration of one check of a table, in seconds",
  ),
  LOCK_TIMEOUT: number(
    "60",
    0.1,
    86400,
    "Maximum wait for another load, and for a lock on a table, in seconds",
  ),
  CONNECT_TIMEOUT: number("10", 0.1, 600, "Connection timeout, in seconds"),
  STALL_TIMEOUT: number(
    "60",
    0.5,
    86400,
    "Maximum time without data on a busy connection, in seconds",
  ),
  EVENT_PUBLISHER_TYPE: oneOf(
    ["database", "file"],
    "database",
    "Destination of events: the event table, or the event table and EVENT_FILE",
  ),
  EVENT_FILE: writtenPath(
    "events.jsonl",
    "File that events are appended to, one event per line",
  ),
  EVENT_SPOOL_FILE: writtenPath(
    "events.spool.jsonl",
    "File that keeps failure events while the warehouse is unreachable",
  ),
  EVENT_WEBHOOK_URL: webhookUrl(
    "URL that receives each event in a signed POST. Use https outside of tests",
  ),
  EVENT_WEBHOOK_SECRET: signingSecret(
    "Signing key in the format of Standard Webhooks: whsec_…",
  ),
  EVENT_WEBHOOK_SECRET_FILE: path("File that contains the signing key"),
  ALERT_SLACK_URL: webhookUrl(
    "Incoming webhook of Slack that receives failures and recoveries",
  ),
  ALERT_SLACK_URL_FILE: path("File that contains the URL of Slack"),
  ALERT_TEAMS_URL: webhookUrl(
    "Workflow of Microsoft Teams that receives failures and recoveries",
  ),
  ALERT_TEAMS_URL_FILE: path("File that contains the URL of Teams"),
  PUBLIC_URL: publicUrl(
    "URL at which browsers reach the service, such as that of a proxy. Events and alerts link to it",
  ),
  HOST: host("127.0.0.1", "Address that the service listens on"),
  PORT: integer("8000", 0, 65535, "Port that the service listens on"),
  API_TOKEN: bearerToken(
    "Bearer token of the HTTP API. Only /health*, /schemas/*, /assets/* and the sign-in form need none",
  ),
  API_TOKEN_FILE: path("File that contains the bearer token"),
  ALLOW_UNAUTHENTICATED: boolean(
    false,
    "Whether the service may listen beyond loopback without a token",
  ),
  LOAD_SCHEDULE: cron("Schedule of loads, in UTC. Unset disables it"),
  LISTEN_CHANNEL: optional(
    identifier("", "Channel of the warehouse whose notifications start loads"),
  ),
  SHUTDOWN_GRACE: number(
    "30",
    0,
    86400,
    "Maximum wait for a running load when the service stops, in seconds",
  ),
  RUN_RETENTION_DAYS: number(
    "90",
    0.001,
    36500,
    "Retention of finished runs and their events, in days",
  ),
  LOG_LEVEL: oneOf(LOG_LEVELS, "INFO", "Minimum log level"),
  LOG_FORMAT: oneOf(
    ["auto", "text", "json"],
    "auto",
    "auto writes text to a terminal and JSON elsewhere",
  ),
} satisfies Record<string, Variable>;

export type VariableName = keyof typeof VARIABLES;

export type SecretVariable =
  | "OLIST_DB_PASSWORD"
  | "DWH_DB_PASSWORD"
  | "API_TOKEN"
  | "EVENT_WEBHOOK_SECRET"
  | "ALERT_SLACK_URL"
  | "ALERT_TEAMS_URL";
export type FileVariable =
  | `${SecretVariable}_FILE`
  | `${"OLIST" | "DWH"}_DB_${"SSLROOTCERT" | "SSLCERT" | "SSLKEY"}`;
export type Values = {
  readonly [K in VariableName]: ReturnType<(typeof VARIABLES)[K]["parse"]>;
};
