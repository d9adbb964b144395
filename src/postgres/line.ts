/**
 * Connects to a server: a socket, TLS over it, the login, and the guard in front of
 * the driver.
 *
 * This module negotiates TLS and logs in instead of the driver. The driver treats
 * every unknown answer as a refusal of TLS, and trusts every request for the
 * password. It cannot try another server, or the same one without TLS.
 *
 * @module
 */
import { Buffer } from "node:buffer";
import { createPrivateKey, X509Certificate } from "node:crypto";
import net from "node:net";
import tls from "node:tls";
import type { DatabaseConfig } from "../config/config.ts";
import { ServiceError } from "../errors.ts";
import { startTimeout } from "../timeout.ts";
import { closedError, guardSocket } from "./driver.ts";
import { address, variable } from "./address.ts";
import { asConnectFailure, checkVersion, namingVariables } from "./errors.ts";
import { NOT_POSTGRES, ServerGuard } from "./guard.ts";
import type { Credentials } from "./login.ts";

/** The SSLRequest message: its length and its code. */
const SSL_REQUEST = Buffer.from([0, 0, 0, 8, 4, 210, 22, 47]);

const TERMINATE = Buffer.from("X\0\0\0\x04");

/** Options of a line. Durations are seconds. */
export interface LineOptions {
  readonly applicationName: string;
  /** The server must be ready for a statement within this time. */
  readonly connectTimeoutSeconds: number;
  /** Ends the attempt. */
  readonly signal?: AbortSignal;
}

/** One connection to a server, logged in. */
export class Line {
  /** The configuration, with this server alone. */
  readonly config: DatabaseConfig;
  /** The TCP or Unix socket. Nagle's algorithm stays on, because COPY takes twice as long without it. */
  readonly raw: net.Socket;
  readonly guard: ServerGuard;
  readonly #ready = Promise.withResolvers<void>();
  readonly #failed = Promise.withResolvers<never>();
  #secure: tls.TLSSocket | undefined;

  private constructor(config: DatabaseConfig, credentials: Credentials) {
    this.config = config;
    const { host, port } = config.servers[0]!;
    this.raw = host.startsWith("/")
      ? net.connect(`${host}/.s.PGSQL.${port}`)
      : net.connect(port, host);
    this.#watch(this.raw);
    this.#failed.promise.catch(() => {});
    this.guard = new ServerGuard(
      config,
      credentials,
      (bytes) => this.socket.write(bytes),
      this.#ready.resolve,
    );
  }

  /**
   * Connects to the only server of the configuration, and logs in.
   *
   * As libpq does, `prefer` continues without TLS where the handshake fails, or
   * where the server's pg_hba.conf refuses TLS.
   *
   * @throws {ServiceError} `connection_failed`, `authentication_failed`,
   * `tls_failed`, `database_missing`, `server_too_old`, or the reason of the signal.
   */
  static async open(
    config: DatabaseConfig,
    credentials: Credentials,
    options: LineOptions,
  ): Promise<Line> {
    const { connectTimeoutSeconds: seconds, signal } = options;
    signal?.throwIfAborted();
    // Its mistakes must not lead to a connection without TLS.
    const tlsOptions = config.sslMode === "disable"
      ? undefined
      : readTlsOptions(config);
    const ending = Promise.withResolvers<never>();
    ending.promise.catch(() => {});
    const onAbort = () => ending.reject(signal!.reason);
    signal?.addEventListener("abort", onAbort);
    using _ = startTimeout(seconds, () => {
      const reason = `Cannot connect to ${
        address(config)
      }: no answer within ${seconds} s`;
      ending.reject(new ServiceError("connection_failed", reason));
    });
    const attempt = async (tlsOptions?: tls.ConnectionOptions) => {
      const line = new Line(config, credentials);
      try {
        const started = line.#start(options.applicationName, tlsOptions);
        await Promise.race([started, ending.promise]);
        checkVersion(config, line.guard.parameter("server_version"));
        return line;
      } catch (error) {
        line.destroy();
        throw signal?.aborted ? signal.reason : asConnectFailure(error, config);
      }
    };
    try {
      return await attempt(tlsOptions);
    } catch (first) {
      if (config.sslMode !== "prefer" || !isTlsRefusal(first)) throw first;
      return await attempt().catch((second) => {
        throw isTlsRefusal(second) ? first : second;
      });
    } finally {
      signal?.removeEventListener("abort", onAbort);
    }
  }

  /** The socket that carries the protocol: `raw`, or TLS over it. */
  get socket(): net.Socket {
    return this.#secure ?? this.raw;
  }

  get isEncrypted(): boolean {
    return this.#secure !== undefined;
  }

  /** Ends a connection that no client uses. */
  close(): void {
    this.socket.end(TERMINATE, () => this.destroy());
  }

  /** Closes the connection at once. */
  destroy(): void {
    this.#secure?.destroy();
    this.raw.destroy();
  }

  /** Waits, and fails when a socket fails. */
  #unlessFailed<T>(work: Promise<T>): Promise<T> {
    return Promise.race([work, this.#failed.promise]);
  }

  /** Fails the start with the error of the socket. An error without a listener would end the process. */
  #watch(socket: net.Socket): void {
    socket.on("error", this.#failed.reject);
    socket.once("close", () => this.#failed.reject(closedError()));
  }

  async #start(
    applicationName: string,
    tlsOptions: tls.ConnectionOptions | undefined,
  ): Promise<void> {
    if (tlsOptions) await this.#negotiate(tlsOptions);
    const { socket } = this;
    guardSocket(socket, this.guard);
    socket.resume();
    socket.write(startupMessage(this.config, applicationName));
    await this.#unlessFailed(this.#ready.promise);
    // The guard reads a notice that follows. The driver must begin with a whole message.
    while (!this.guard.isBetweenMessages) {
      await this.#unlessFailed(nextData(socket));
    }
    socket.pause();
    if (socket.destroyed) throw socket.errored ?? closedError();
  }

  async #negotiate(tlsOptions: tls.ConnectionOptions): Promise<void> {
    const { raw, config } = this;
    const where = address(config);
    raw.write(SSL_REQUEST);
    const answer = await this.#unlessFailed(nextData(raw));
    if (answer.length !== 1 || answer[0] !== 0x53 && answer[0] !== 0x4e) {
      throw new ServiceError(
        "connection_failed",
        `Cannot connect to ${where}: the server's answer to the TLS request is not PostgreSQL's`,
        { remedy: NOT_POSTGRES },
      );
    }
    if (answer[0] === 0x4e) {
      if (config.sslMode === "prefer") return;
      const name = variable(config, "SSLMODE");
      throw new ServiceError(
        "tls_failed",
        `Cannot connect to ${where}: the server does not offer TLS, and ${name}=${config.sslMode} requires it`,
        { remedy: `Turn on TLS at the server, or lower ${name}.` },
      );
    }
    const secured = Promise.withResolvers<void>();
    const secure = this.#secure = tls.connect(
      { socket: raw, ...tlsOptions },
      secured.resolve,
    );
    this.#watch(secure);
    await this.#unlessFailed(secured.promise);
  }
}

function nextData(socket: net.Socket): Promise<Buffer> {
  return new Promise((resolve) => socket.once("data", resolve));
}

/** Returns whether a server may accept the same login without TLS. */
function isTlsRefusal(error: unknown): boolean {
  return error instanceof ServiceError &&
    (error.code === "tls_failed" || error.sqlstate === "28000");
}

/** Returns the message that starts a session. */
function startupMessage(
  { user, database }: DatabaseConfig,
  applicationName: string,
): Buffer {
  const settings = Object.entries({
    user,
    database,
    client_encoding: "UTF8",
    application_name: applicationName,
  });
  // The version of the protocol is 3.0.
  const message = Buffer.from(
    `\0\0\0\0\0\x03\0\0${settings.flat().join("\0")}\0\0`,
  );
  message.writeUInt32BE(message.length);
  return message;
}

/**
 * Returns the options of TLS. Reads the files again, because they may be replaced.
 *
 * @throws {ServiceError} `tls_failed`.
 */
function readTlsOptions(config: DatabaseConfig): tls.ConnectionOptions {
  const { sslMode, sslRootCertificate } = config;
  const { host } = config.servers[0]!;
  try {
    return {
      ...(net.isIP(host) ? {} : { servername: host }),
      ...clientOptions(config),
      // As in libpq, an authority turns `require` into `verify-ca`.
      rejectUnauthorized: sslMode.startsWith("verify") ||
        sslMode === "require" && sslRootCertificate !== undefined,
      ...(sslMode === "verify-full"
        ? { host }
        : { checkServerIdentity: () => undefined }),
      ...(sslRootCertificate ? { ca: sslRootCertificate() } : {}),
    };
  } catch (error) {
    const failure = new ServiceError(
      "tls_failed",
      `Cannot connect to ${address(config)}: ${(error as Error).message}`,
      { cause: error },
    );
    throw namingVariables(failure, config);
  }
}

/** Returns the client's certificate and its key. The library sends none where the key does not fit. */
function clientOptions(config: DatabaseConfig): tls.ConnectionOptions {
  const { sslClient } = config;
  if (!sslClient) return {};
  const [certName, keyName] = ["SSLCERT", "SSLKEY"]
    .map((name) => variable(config, name));
  const cert = sslClient.certificate();
  const key = sslClient.key();
  const certificate = parsed(
    () => new X509Certificate(cert),
    `${certName} holds no certificate in PEM format`,
  );
  const privateKey = parsed(
    () => createPrivateKey(key),
    /ENCRYPTED/.test(key)
      ? `the key in ${keyName} is encrypted: decrypt it with openssl pkey`
      : `${keyName} holds no private key in PEM format`,
  );
  if (!certificate.checkPrivateKey(privateKey)) {
    throw new Error(
      `the key in ${keyName} does not belong to the certificate in ${certName}`,
    );
  }
  return { cert, key };
}

/** Returns the result, or fails with `problem`. The library's own errors may show parts of a key. */
function parsed<T>(parse: () => T, problem: string): T {
  try {
    return parse();
  } catch {
    throw new Error(problem);
  }
}
