/**
 * A server on loopback that violates PostgreSQL's protocol as a test requires. It
 * uses real TCP connections.
 *
 * @module
 */

/** Returns a message of the server: type, length, body. */
export function message(
  type: string,
  body: Uint8Array | string = "",
  length?: number,
): Uint8Array {
  const bytes = typeof body === "string" ? encode(body) : body;
  const all = new Uint8Array(5 + bytes.length);
  all[0] = type.charCodeAt(0);
  new DataView(all.buffer).setUint32(1, length ?? bytes.length + 4);
  all.set(bytes, 5);
  return all;
}

/** A message that asks for authentication. */
export function authentication(
  request: number,
  body: Uint8Array | string = "",
): Uint8Array {
  const bytes = typeof body === "string" ? encode(body) : body;
  const all = new Uint8Array(4 + bytes.length);
  new DataView(all.buffer).setUint32(0, request);
  all.set(bytes, 4);
  return message("R", all);
}

export const READY = message("Z", "I");
export const SASL = authentication(10, "SCRAM-SHA-256\0\0");

/** The bytes that a server with `trust` sends before the first statement. */
export const GREETING = join(
  authentication(0),
  message("S", "server_version\x0018.0\0"),
  message("S", "server_encoding\0UTF8\0"),
  message("K", new Uint8Array(8)),
  READY,
);

/** The description of one text column. */
export const COLUMNS = message(
  "T",
  join(
    new Uint8Array([0, 1]),
    encode("a\0"),
    new Uint8Array([0, 0, 0, 0, 0, 0, 0, 0, 0, 25, 255, 255, 0, 0, 0, 0, 0, 0]),
  ),
);

export function join(...parts: Uint8Array[]): Uint8Array {
  const all = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}

export function encode(text: string): Uint8Array {
  return new TextEncoder().encode(text);
}

/** A connection to the hostile server. */
export interface HostileConnection {
  /** Waits for the next bytes of the client. Throws when the client has closed the connection. */
  read(): Promise<Uint8Array>;
  write(bytes: Uint8Array): Promise<void>;
}

/** Answers one connection. Its return or an error closes the connection. */
export type Misbehavior = (connection: HostileConnection) => Promise<void>;

/** Refuses a request for TLS. Returns the start-up packet. */
export async function refuseTls(
  connection: HostileConnection,
): Promise<Uint8Array> {
  const first = await connection.read();
  if (first.length !== 8) return first;
  await connection.write(encode("N"));
  return await connection.read();
}

/** Writes all the bytes. */
export async function writeAll(
  connection: Deno.Conn,
  bytes: Uint8Array,
): Promise<void> {
  for (let sent = 0; sent < bytes.length;) {
    sent += await connection.write(bytes.subarray(sent));
  }
}

/** A listening server. */
export class HostileServer implements AsyncDisposable {
  readonly #listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  readonly #open = new Set<Deno.Conn>();
  readonly #misbehavior: Misbehavior;
  /** All bytes from clients. */
  received = "";

  constructor(misbehavior: Misbehavior) {
    this.#misbehavior = misbehavior;
    void this.#accept();
  }

  get port(): number {
    return (this.#listener.addr as Deno.NetAddr).port;
  }

  async #accept(): Promise<void> {
    for await (const connection of this.#listener) {
      this.#open.add(connection);
      void this.#serve(connection);
    }
  }

  async #serve(connection: Deno.Conn): Promise<void> {
    const buffer = new Uint8Array(64 * 1024);
    try {
      await this.#misbehavior({
        read: async () => {
          const count = await connection.read(buffer);
          if (count === null) throw new Error("the client is gone");
          const bytes = buffer.slice(0, count);
          this.received += new TextDecoder("latin1").decode(bytes);
          return bytes;
        },
        write: (bytes) => writeAll(connection, bytes),
      });
    } catch {
      // The client has closed the connection.
    }
    if (this.#open.delete(connection)) connection.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    this.#listener.close();
    for (const connection of this.#open) connection.close();
    this.#open.clear();
    return Promise.resolve();
  }
}
