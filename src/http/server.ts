/** The HTTP server: limits on connections and timeouts in front of the app. */
import { once } from "node:events";
import {
  createServer,
  type IncomingMessage,
  type ServerResponse,
} from "node:http";
import type { Socket } from "node:net";
import { getRequestListener } from "@hono/node-server";
import type { Logger } from "@logtape/logtape";
import { asServiceError, ServiceError } from "../errors.ts";
import { isHost } from "./middleware/host.ts";

/** Maximum number of open connections. The server closes any connection beyond it. */
export const MAX_CONNECTIONS = 1000;

/** Minimum number of connections that the server accepts, also with few file descriptors. */
const MIN_CONNECTIONS = 16;

/** Maximum number of connections that Deno accepts before the server can close the first of them. */
export const ACCEPT_BATCH = 128;

/** File descriptors that remain for connections to databases, event files and deliveries. */
const RESERVED_DESCRIPTORS = 40;

/** Maximum number of unanswered requests on a connection. The server closes a connection with more. */
const MAX_PIPELINED_REQUESTS = 8;

/** Seconds within which the header of a request must arrive. */
const HEADER_SECONDS = 10;

/** Seconds within which a whole request must arrive. */
const REQUEST_SECONDS = 20;

/** Seconds that a connection may stay open between two requests. */
const KEEP_ALIVE_SECONDS = 5;

/** Milliseconds between two checks of the timeouts. */
const CHECK_MILLISECONDS = 1000;

/** Milliseconds between two warnings about connections. */
const WARN_MILLISECONDS = 60_000;

/**
 * Listens. Returns a function that stops listening, and waits until open requests
 * have ended.
 *
 * @throws {ServiceError} `configuration` when the address cannot be used.
 */
export async function listen({ hostname, port, app, log }: {
  readonly hostname: string;
  readonly port: number;
  readonly app: {
    fetch(request: Request, env: unknown): Response | Promise<Response>;
  };
  readonly log: Logger;
}): Promise<() => Promise<void>> {
  const answer = getRequestListener(app.fetch, {
    overrideGlobalObjects: false,
    errorHandler: () => new Response(null, { status: 400 }),
  });
  const unanswered = new WeakMap<Socket, number>();
  const server = createServer({
    headersTimeout: HEADER_SECONDS * 1000,
    requestTimeout: REQUEST_SECONDS * 1000,
    keepAliveTimeout: KEEP_ALIVE_SECONDS * 1000,
    connectionsCheckingInterval: CHECK_MILLISECONDS,
    // The app checks the header, and answers with a problem document.
    requireHostHeader: false,
  }, (incoming: IncomingMessage, outgoing: ServerResponse) => {
    const { socket } = incoming;
    const requests = (unanswered.get(socket) ?? 0) + 1;
    // Deno parses pipelined requests without waiting until responses are read.
    if (requests > MAX_PIPELINED_REQUESTS) return void socket.destroy();
    unanswered.set(socket, requests);
    outgoing.once("close", () => {
      unanswered.set(socket, unanswered.get(socket)! - 1);
    });
    // The URL of a request needs a valid host. The app still gets the original header.
    incoming.headers.host = urlHost(incoming.headers.host);
    void answer(incoming, outgoing);
  });
  const maxConnections = connectionLimit(countFreeDescriptors());
  let warnedAt = -Infinity;
  /** Warns at most once a minute. */
  const warn = (text: string, values: Record<string, unknown>) => {
    if (performance.now() - warnedAt < WARN_MILLISECONDS) return;
    warnedAt = performance.now();
    log.warn(text, values);
  };
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
  try {
    server.listen(port, hostname);
    await once(server, "listening");
  } catch (error) {
    throw new ServiceError(
      "configuration",
      `Cannot listen on ${hostname}:${port}: ${(error as Error).message}`,
      { cause: error, remedy: "Set HOST and PORT to an address that is free." },
    );
  }
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
  return () => {
    const closed = new Promise<void>((done) => server.close(() => done()));
    server.closeIdleConnections();
    return closed;
  };
}

/** Returns the maximum number of connections for a process that can open so many files. */
export function connectionLimit(freeDescriptors: number): number {
  const free = freeDescriptors - ACCEPT_BATCH - RESERVED_DESCRIPTORS;
  return Math.min(MAX_CONNECTIONS, Math.max(MIN_CONNECTIONS, free));
}

/**
 * Returns how many files the process can still open, counted up to the number
 * that `MAX_CONNECTIONS` needs. The permissions of the program do not include
 * `/proc/self/limits`.
 */
function countFreeDescriptors(): number {
  const files: Deno.FsFile[] = [];
  const wanted = MAX_CONNECTIONS + ACCEPT_BATCH + RESERVED_DESCRIPTORS;
  try {
    while (files.length < wanted) files.push(Deno.openSync("/dev/null"));
    return wanted;
  } catch {
    // Windows has neither this file nor the limit.
    return files.length === 0 ? wanted : files.length;
  } finally {
    for (const file of files) file.close();
  }
}

/** Returns the host for the URL of a request with this header. */
function urlHost(header: string | undefined): string {
  const url = header !== undefined && isHost(header)
    ? URL.parse(`http://${header}/`)
    : null;
  return url?.host ?? "unknown.invalid";
}
