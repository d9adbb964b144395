/**
 * The driver's client: its options, its sockets, and how long it may take.
 *
 * @module
 */
import net from "node:net";
import postgres from "postgres";
import type { DatabaseConfig } from "../config/config.ts";
import type { Row } from "./sql.ts";

export type Client = ReturnType<typeof postgres>;

/**
 * A client with every option given, so that it reads nothing from PG*
 * variables, whose sockets `dial` makes.
 */
export function connect(
  config: DatabaseConfig,
  options: {
    applicationName: string;
    connectTimeoutSeconds: number;
    max: number;
    onNotify?: (channel: string, payload: string) => void;
  },
  dial: () => net.Socket,
): Client {
  const driverOptions = {
    host: config.host,
    port: config.port,
    user: config.user,
    database: config.database,
    // A function, because an empty password would be looked up in PGPASSWORD.
    password: () => config.password ?? "",
    ssl: tlsOptions(config),
    sslnegotiation: "postgres",
    max: options.max,
    connect_timeout: options.connectTimeoutSeconds,
    idle_timeout: options.max === 1 ? 0 : 30,
    max_lifetime: null,
    max_pipeline: 100,
    keep_alive: 30,
    backoff: () => 0,
    prepare: false,
    fetch_types: false,
    debug: false,
    publications: "none",
    connection: { application_name: options.applicationName },
    onnotice: () => {},
    ...(options.onNotify ? { onnotify: options.onNotify } : {}),
    socket: dial,
  };
  return postgres(
    driverOptions as unknown as postgres.Options<Record<string, never>>,
  );
}

function tlsOptions(config: DatabaseConfig) {
  switch (config.sslMode) {
    case "disable":
      return false;
    case "prefer":
    case "require":
      return config.sslMode;
    case "verify-full":
      return {
        rejectUnauthorized: true,
        host: config.host,
        ...(net.isIP(config.host) ? {} : { servername: config.host }),
        ...(config.sslRootCertificate ? { ca: config.sslRootCertificate } : {}),
      };
  }
}

/** Begins to connect a socket. Nagle's algorithm stays on: without it COPY takes twice the time. */
export function openSocket(config: DatabaseConfig): net.Socket {
  const socket = config.host.startsWith("/")
    ? net.connect(`${config.host}/.s.PGSQL.${config.port}`)
    : net.connect(config.port, config.host);
  // postgres.js takes the server name for TLS from here.
  return Object.assign(socket, { host: config.host, port: config.port });
}

/** A socket that fails at once: how a client is kept from dialling again. */
export function refusedSocket(message: string): net.Socket {
  const socket = new net.Socket();
  queueMicrotask(() =>
    socket.destroy(Object.assign(new Error(message), { code: "ECONNRESET" }))
  );
  return socket;
}

/** Rows of the last statement of a script, or of the only one. */
export function lastRows<T extends Row>(result: unknown): T[] {
  const sets = result as T[] | T[][];
  return ("command" in sets ? sets : sets.at(-1)) as T[];
}

/** A setting that the server reported when the connection began. */
export function parameterOf(client: Client, name: string): string {
  return (client.parameters as Record<string, string | undefined>)[name] ?? "";
}

/** Dials again only while the server says something: one that accepts and closes is given up. */
export function limitedDial(config: DatabaseConfig): () => net.Socket {
  let fruitless = 0;
  return () => {
    if (fruitless >= 3) {
      fruitless = 0;
      return refusedSocket("the server accepts connections and closes them");
    }
    fruitless++;
    const socket = openSocket(config);
    socket.once("data", () => fruitless = 0);
    return socket;
  };
}

export async function withTimeout<T>(
  work: PromiseLike<T>,
  seconds: number,
  error: () => Error,
): Promise<T> {
  const timeout = Promise.withResolvers<never>();
  const timer = setTimeout(() => timeout.reject(error()), seconds * 1000);
  try {
    return await Promise.race([work, timeout.promise]);
  } finally {
    clearTimeout(timer);
  }
}
