/**
 * Parses the configuration once, before any connection is made, and reports all
 * mistakes together.
 */
import { ServiceError } from "../errors.ts";
import { formatQuantity } from "../format.ts";
import { MARKETING_TABLES } from "../tables/marketing.ts";
import type { DeclaredTables } from "../tables/tables_file.ts";
import {
  type AuthMethod,
  defaultAuthMethods,
  type SSL_MODES,
  type TargetSessionAttrs,
  type Variable,
} from "./parsers.ts";
import {
  type FileVariable,
  type SecretVariable,
  type Values,
  type VariableName,
  VARIABLES,
} from "./variables.ts";

export interface ServerAddress {
  /** A name, an address, or the absolute path of a socket folder. */
  readonly host: string;
  readonly port: number;
}

/** A file whose content may change. Each call reads it. Throws an `Error` that names the variable. */
type ReadFile = () => string;

/** A password that may change. */
interface Password {
  /** Reads it. Throws an `Error` that names the variable of its file. */
  readonly read: () => string | undefined;
  /** The newest values that were read. No output may contain them. */
  readonly known: ReadonlySet<string>;
}

/** The address of a database, and how to log in. */
export interface DatabaseConfig {
  /** The name of the connection in messages. */
  readonly label: "olist" | "dwh";
  /** The servers, in the order in which a connection tries them. */
  readonly servers: readonly ServerAddress[];
  /** The server that a connection needs. */
  readonly targetSessionAttrs: TargetSessionAttrs;
  readonly user: string;
  readonly database: string;
  readonly password: Password;
  readonly sslMode: (typeof SSL_MODES)[number];
  /** Reads the PEM text of the trusted authority. `undefined` for the authorities of the system. */
  readonly sslRootCertificate: ReadFile | undefined;
  /** Read the PEM texts of the client's certificate and of its key. */
  readonly sslClient:
    | { readonly certificate: ReadFile; readonly key: ReadFile }
    | undefined;
  /** The authentication methods that the server may ask for. */
  readonly requireAuth: ReadonlySet<AuthMethod>;
}

/** The configuration. Durations are seconds. */
export type Config = Readonly<ReturnType<typeof parseConfig>>;

/** Number of values of a changing password that are masked. Older ones are no longer valid. */
const MAX_KNOWN = 16;

/** Matches parts of a connection string, a URL with a password, and a PEM file. */
const SECRET_LOOKING =
  /:\/\/[^/]*@|^\w+:\/\/.*[?&]\w*(password|token|secret|key)=|\bpass(word|wd)?\s*=|-----BEGIN /i;

/** Variables by name, such as the environment. */
export type Environment = Readonly<Record<string, string | undefined>>;

/**
 * Parses the configuration.
 *
 * `readFile` returns the text of a file that a variable names, such as a
 * password or a certificate. `declared` is the result of {@linkcode readTables}.
 *
 * @throws {ServiceError} `configuration`, with every mistake: the variable, its
 * value (masked when it is secret) and the allowed values.
 */
export function parseConfig(
  environment: Environment,
  readFile: (path: string) => string,
  declared: DeclaredTables = { tables: MARKETING_TABLES, problems: [] },
) {
  const problems = [...declared.problems];

  function read<K extends VariableName>(name: K): Values[K] {
    const { default: fallback, parse, secret, isHidden, allowed } =
      VARIABLES[name] as Variable<Values[K]>;
    const value = environment[name] || fallback;
    // Stands for an invalid value, which is never used: the problems are thrown below.
    const nothing = undefined as Values[K];
    if (value === undefined) return nothing;
    if (!secret && SECRET_LOOKING.test(value)) {
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

  /** Returns the reader, and reports its failure. */
  function checked<R extends () => unknown>(reader: R): R {
    try {
      reader();
    } catch (error) {
      problems.push((error as Error).message);
    }
    return reader;
  }

  function readerOf(name: FileVariable): ReadFile | undefined {
    const path = read(name);
    if (path === undefined) return undefined;
    const shown = `${name}=${JSON.stringify(path)}`;
    return () => {
      let text: string;
      try {
        text = readFile(path);
      } catch (error) {
        throw new Error(`${shown} cannot be read: ${(error as Error).message}`);
      }
      if (text.trim() !== "") return text;
      // Treating an empty secret file as unset would silently disable authentication.
      throw new Error(
        `${shown} is an empty file: write the value into it, or unset ${name}`,
      );
    };
  }

  function fileOf(name: FileVariable): ReadFile | undefined {
    const reader = readerOf(name);
    return reader && checked(reader);
  }

  function secretOf(name: SecretVariable): Password {
    const fileName = `${name}_FILE` as const;
    if (environment[name] && environment[fileName]) {
      problems.push(`${name} and ${fileName} are both set: keep one of them`);
    }
    const known = new Set<string>();
    const file = readerOf(fileName);
    const value = file ? undefined : read(name);
    return {
      known,
      read: checked(() => {
        // Editors add a newline at the end that is not part of the secret.
        const text = file ? file().replace(/\r?\n$/, "") : value;
        if (!text) return text;
        known.delete(text);
        known.add(text);
        if (known.size > MAX_KNOWN) known.delete([...known][0]!);
        try {
          return VARIABLES[name].parse(text);
        } catch (error) {
          throw new Error(
            `the content of ${fileName} ${(error as Error).message}`,
          );
        }
      }),
    };
  }

  /** Returns a secret that is read once. */
  function constantOf(name: SecretVariable): string | undefined {
    const [value] = secretOf(name).known;
    return value;
  }

  function database(
    label: DatabaseConfig["label"],
    prefix: "OLIST_DB" | "DWH_DB",
  ): DatabaseConfig {
    const sslMode = read(`${prefix}_SSLMODE`);
    const hosts = read(`${prefix}_HOST`) ?? [];
    const ports = read(`${prefix}_PORT`) ?? [];
    if (ports.length > 1 && hosts.length > 0 && ports.length !== hosts.length) {
      problems.push(
        `${prefix}_PORT lists ${
          formatQuantity(ports.length, "port")
        }, and ${prefix}_HOST ${
          formatQuantity(hosts.length, "host")
        }: set one port, or one for each host`,
      );
    }
    const certificate = fileOf(`${prefix}_SSLCERT`);
    const key = fileOf(`${prefix}_SSLKEY`);
    if (!certificate !== !key) {
      problems.push(
        `${prefix}_SSLCERT and ${prefix}_SSLKEY belong together: set both or none`,
      );
    }
    const needsWrites = label === "dwh" && hosts.length > 1;
    return {
      label,
      servers: hosts.map((host, i) => ({ host, port: ports[i] ?? ports[0]! })),
      targetSessionAttrs: read(`${prefix}_TARGET_SESSION_ATTRS`) ??
        (needsWrites ? "read-write" : "any"),
      user: read(`${prefix}_USER`),
      database: read(`${prefix}_NAME`),
      password: secretOf(`${prefix}_PASSWORD`),
      sslMode,
      requireAuth: read(`${prefix}_REQUIRE_AUTH`) ??
        defaultAuthMethods(sslMode),
      sslRootCertificate: fileOf(`${prefix}_SSLROOTCERT`),
      sslClient: certificate && key && { certificate, key },
    };
  }

  // The caller has read the file. This reports a value that looks like a secret.
  read("TABLES_FILE");
  const config = {
    olist: database("olist", "OLIST_DB"),
    dwh: database("dwh", "DWH_DB"),
    /** The declared tables, in the order in which results are reported. */
    tables: declared.tables,
    maxParallelTasks: read("MAX_PARALLEL_TASKS"),
    retryAttempts: read("RETRY_ATTEMPTS"),
    retryDelaySeconds: read("RETRY_DELAY"),
    loadMode: read("LOAD_MODE"),
    loadAtomic: read("LOAD_ATOMIC"),
    showRows: read("SHOW_ROWS"),
    loadTimezone: read("LOAD_TIMEZONE"),
    verify: read("VERIFY"),
    /** Share of a target's rows. */
    maxShrink: read("MAX_SHRINK"),
    checkTimeoutSeconds: read("CHECK_TIMEOUT"),
    lockTimeoutSeconds: read("LOCK_TIMEOUT"),
    connectTimeoutSeconds: read("CONNECT_TIMEOUT"),
    stallTimeoutSeconds: read("STALL_TIMEOUT"),
    eventPublisherType: read("EVENT_PUBLISHER_TYPE"),
    eventFile: read("EVENT_FILE"),
    eventSpoolFile: read("EVENT_SPOOL_FILE"),
    /** Its path can be a secret, so only its origin is printed. */
    eventWebhookUrl: read("EVENT_WEBHOOK_URL"),
    eventWebhookSecret: constantOf("EVENT_WEBHOOK_SECRET"),
    /** Secret like a password, as is that of Teams. */
    alertSlackUrl: constantOf("ALERT_SLACK_URL"),
    alertTeamsUrl: constantOf("ALERT_TEAMS_URL"),
    /** Without a slash at its end. */
    publicUrl: read("PUBLIC_URL"),
    host: read("HOST"),
    /** 0 takes any free port. */
    port: read("PORT"),
    apiToken: constantOf("API_TOKEN"),
    allowUnauthenticated: read("ALLOW_UNAUTHENTICATED"),
    /** A crontab expression in UTC. */
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
      "EVENT_WEBHOOK_URL is set without EVENT_WEBHOOK_SECRET or EVENT_WEBHOOK_SECRET_FILE: receivers could not detect forged events",
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

/**
 * Returns the tables that TABLES_FILE declares, or the default. Never throws: the
 * mistakes of the file are reported with those of the variables.
 */
export async function readTables(
  environment: Environment,
  readFile: (path: string) => string,
): Promise<DeclaredTables> {
  const path = environment.TABLES_FILE;
  // A value that looks like a secret is reported without showing it.
  if (!path || SECRET_LOOKING.test(path)) {
    return { tables: MARKETING_TABLES, problems: [] };
  }
  let text: string;
  try {
    text = readFile(path);
  } catch (error) {
    const shown = `TABLES_FILE=${JSON.stringify(path)}`;
    const reason = (error as Error).message;
    return { tables: [], problems: [`${shown} cannot be read: ${reason}`] };
  }
  const { parseTablesFile } = await import("../tables/tables_file.ts");
  return parseTablesFile(path, text);
}

/** Returns the effective variables, with secrets masked. */
export function effectiveVariables(environment: Environment) {
  return Object.entries<Variable>(VARIABLES).map(([name, variable]) => {
    const given = environment[name];
    const value = given || (variable.default ?? null);
    return {
      name,
      value: value !== null && (variable.secret || SECRET_LOOKING.test(value))
        ? variable.shown?.(value) ?? "***"
        : value,
      origin: given ? "set" : "default",
      description: variable.description,
    };
  });
}
