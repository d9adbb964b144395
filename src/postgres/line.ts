/**
 * Connects to a server: a socket, TLS over it, and the guard in front of the driver.
 *
 * This module negotiates TLS instead of the driver. The driver treats every unknown
 * answer as a refusal of TLS. It reads the bytes after the answer, and removes the
 * listeners of the socket.
 *
 * @module
 */
import { Buffer } from "node:buffer";
import net from "node:net";
import tls from "node:tls";
import type { DatabaseConfig } from "../config/config.ts";
import { ServiceError } from "../errors.ts";
import { guardSocket } from "./driver.ts";
import { address } from "./errors.ts";
import { NOT_POSTGRES, ServerGuard } from "./guard.ts";

/** The SSLRequest message: its length and its code. */
const SSL_REQUEST = Buffer.from([0, 0, 0, 8, 4, 210, 22, 47]);

/** One connection to a server, from its first packet to its last. */
export class Line {
  /** The TCP or Unix socket. Nagle's algorithm stays on, because COPY takes twice as long without it. */
  readonly raw: net.Socket;
  readonly guard: ServerGuard;
  /** The socket that carries the protocol: `raw`, or TLS over it. */
  readonly socket: Promise<net.Socket>;
  readonly #config: DatabaseConfig;
  readonly #timer: ReturnType<typeof setTimeout>;
  #secure: tls.TLSSocket | undefined;

  /** Begins to connect. The server must be ready for a statement within `timeoutSeconds`. */
  constructor(
    config: DatabaseConfig,
    timeoutSeconds: number,
    onReady: () => void = () => {},
  ) {
    this.#config = config;
    this.raw = config.host.startsWith("/")
      ? net.connect(`${config.host}/.s.PGSQL.${config.port}`)
      : net.connect(config.port, config.host);
    // The waiting code handles every error. An error without a listener would end the process.
    this.raw.on("error", () => {});
    this.#timer = setTimeout(
      () =>
        this.destroy(
          new ServiceError(
            "connection_failed",
            `Cannot connect to ${
              address(config)
            }: no answer within ${timeoutSeconds} s`,
          ),
        ),
      timeoutSeconds * 1000,
    );
    this.raw.once("close", () => clearTimeout(this.#timer));
    this.guard = new ServerGuard(config, () => {
      clearTimeout(this.#timer);
      onReady();
    });
    this.socket = this.#open();
    this.socket.catch(() => this.destroy());
  }

  /** Whether the connection uses TLS, or is about to. */
  get isEncrypted(): boolean {
    return this.#secure !== undefined;
  }

  /** Closes the connection at once. Pending work fails with `error`. */
  destroy(error?: Error): void {
    clearTimeout(this.#timer);
    this.#secure?.destroy(error);
    this.raw.destroy(error);
  }

  async #open(): Promise<net.Socket> {
    const socket = this.#config.sslMode === "disable"
      ? this.raw
      : await this.#negotiate();
    guardSocket(socket, this.guard);
    return socket;
  }

  async #negotiate(): Promise<net.Socket> {
    const { raw } = this;
    const config = this.#config;
    const where = address(config);
    raw.write(SSL_REQUEST);
    const answer = await firstData(raw);
    if (answer.length !== 1 || answer[0] !== 0x53 && answer[0] !== 0x4e) {
      throw new ServiceError(
        "connection_failed",
        `Cannot connect to ${where}: the server's answer to the TLS request is not PostgreSQL's`,
        { remedy: NOT_POSTGRES },
      );
    }
    if (answer[0] === 0x4e) {
      if (config.sslMode === "prefer") return raw;
      const variable = `${config.label.toUpperCase()}_DB_SSLMODE`;
      throw new ServiceError(
        "tls_failed",
        `Cannot connect to ${where}: the server does not offer TLS, and ${variable}=${config.sslMode} requires it`,
        { remedy: `Turn on TLS at the server, or lower ${variable}.` },
      );
    }
    const secure = this.#secure = tls.connect({
      socket: raw,
      ...tlsOptions(config),
    });
    const { promise, resolve, reject } = Promise.withResolvers<net.Socket>();
    secure.once("secureConnect", () => resolve(secure));
    secure.once("close", () => reject(closed()));
    secure.on("error", reject);
    return await promise;
  }
}

function tlsOptions(config: DatabaseConfig): tls.ConnectionOptions {
  const servername = net.isIP(config.host) ? {} : { servername: config.host };
  if (config.sslMode !== "verify-full") {
    return { ...servername, rejectUnauthorized: false };
  }
  return {
    ...servername,
    rejectUnauthorized: true,
    host: config.host,
    ...(config.sslRootCertificate ? { ca: config.sslRootCertificate } : {}),
  };
}

/** Waits for the first bytes, and removes its listeners. */
async function firstData(socket: net.Socket): Promise<Buffer> {
  const { promise, resolve, reject } = Promise.withResolvers<Buffer>();
  const onClose = () => reject(closed());
  socket.once("data", resolve);
  socket.once("error", reject);
  socket.once("close", onClose);
  try {
    return await promise;
  } finally {
    socket.off("data", resolve);
    socket.off("error", reject);
    socket.off("close", onClose);
  }
}

function closed(): Error {
  return Object.assign(new Error("the server closed the connection"), {
    code: "ECONNRESET",
  });
}
