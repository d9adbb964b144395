/**
 * The HTTP server: limits on connections and timeouts in front of the app.
 *
 * @module
 */
import {
  createServer,
  type IncomingMessage,
  type Server,
  type ServerResponse,
} from "node:http";
import type { Socket } from "node:net";
import { getRequestListener } from "@hono/node-server";
import type { Logger } from "@logtape/logtape";
import { asServiceError, ServiceError } from "../errors.ts";
import { isHost } from "./middleware/host.ts";

/** Maximum number of open connections. The server closes any connection beyond it. */
export const MAX_CONNECTIONS = 1000;

/** Seconds for the header of a request to arrive, from the first byte or the opening. */
const HEADER_SECONDS = 10;

/** Seconds for a whole request to arrive. */
const REQUEST_SECONDS = 20;

/** Seconds that a connection may stay open between two requests. */
const KEEP_ALIVE_SECONDS = 5;

/** Milliseconds between two checks of the timeouts. */
const CHECK_MILLISECONDS = 1000;

/** Milliseconds between two warnings about connections. */
const WARN_MILLISECONDS = 60_000;

/** What the server listens on, and with what. */
interface ServerOptions {
  readonly hostname: string;
  readonly port: number;
  readonly app: {
    fetch(request: Request, env: unknown): Response | Promise<Response>;
  };
  readonly log: Logger;
}

/** A server that listens. */
export interface HttpServer {
  /** Stops listening and waits until open requests have ended. */
  shutdown(): Promise<void>;
}

/**
 * Listens until `shutdown`.
 *
 * @throws {ServiceError} `configuration` when the address cannot be used.
 */
export async function listen(options: ServerOptions): Promise<HttpServer> {
  const { hostname, port, app, log } = options;
  const answer = getRequestListener(app.fetch, {
    overrideGlobalObjects: false,
    errorHandler: () => new Response(null, { status: 400 }),
  });
  const server = createServer({
    headersTimeout: HEADER_SECONDS * 1000,
    requestTimeout: REQUEST_SECONDS * 1000,
    keepAliveTimeout: KEEP_ALIVE_SECONDS * 1000,
    connectionsCheckingInterval: CHECK_MILLISECONDS,
    // The app checks the header, and answers with a problem document.
    requireHostHeader: false,
  }, (incoming: IncomingMessage, outgoing: ServerResponse) => {
    // The URL of a request needs a host. The app sees the header as it was sent.
    incoming.headers.host = urlHost(incoming.headers.host);
    void answer(incoming, outgoing);
  });
  const maxConnections = connectionLimit(readLimits());
  const warn = limitRate((text: string, values: Record<string, unknown>) =>
    log.warn(text, values)
  );
  let connections = 0;
  // Deno stops accepting for a while when a server reaches its `maxConnections`.
  server.on("connection", (socket: Socket) => {
    connections++;
    socket.once("close", () => connections--);
    if (connections <= maxConnections) return;
    socket.destroy();
    warn("Closing new connections: {limit} connections are open", {
      limit: maxConnections,
    });
  });
  await bound(server, hostname, port);
  server.on("error", (error: Error) => {
    warn("Cannot accept a connection: {error}", {
      error: asServiceError(error).message,
    });
  });
  const address = server.address();
  if (address && typeof address === "object") {
    log.info("Listening on http://{address}", {
      address: address.family === "IPv6"
        ? `[${address.address}]:${address.port}`
        : `${address.address}:${address.port}`,
    });
  }
  return {
    shutdown() {
      const closed = new Promise<void>((done) => server.close(() => done()));
      server.closeIdleConnections();
      return closed;
    },
  };
}

/**
 * Returns the maximum number of connections for the limits of a process, as
 * Linux lists them. Half of the file descriptors stay free for loads.
 */
export function connectionLimit(limits: string): number {
  const [, files] = /^Max open files +(\d+)/m.exec(limits) ?? [];
  return files === undefined
    ? MAX_CONNECTIONS
    : Math.min(MAX_CONNECTIONS, Math.floor(Number(files) / 2));
}

/** Returns the limits of this process, or nothing where the system does not list them. */
function readLimits(): string {
  try {
    return Deno.readTextFileSync("/proc/self/limits");
  } catch {
    return "";
  }
}

/** Returns the host for the URL of a request with this header. */
function urlHost(header: string | undefined): string {
  const url = header !== undefined && isHost(header)
    ? URL.parse(`http://${header}/`)
    : null;
  return url?.host ?? "unknown.invalid";
}

/** Waits until the server listens. */
async function bound(
  server: Server,
  hostname: string,
  port: number,
): Promise<void> {
  try {
    await new Promise<void>((done, fail) => {
      server.once("error", fail);
      server.listen(port, hostname, () => {
        server.off("error", fail);
        done();
      });
    });
  } catch (error) {
    throw new ServiceError(
      "configuration",
      `Cannot listen on ${hostname}:${port}: ${(error as Error).message}`,
      { cause: error, remedy: "Set HOST and PORT to an address that is free." },
    );
  }
}

/** Returns `work` limited to one call in a minute; the calls between are dropped. */
function limitRate<A extends unknown[]>(
  work: (...args: A) => void,
): (...args: A) => void {
  let last = -Infinity;
  return (...args) => {
    if (performance.now() - last < WARN_MILLISECONDS) return;
    last = performance.now();
    work(...args);
  };
}
