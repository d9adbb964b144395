/**
 * A TCP proxy on loopback that cuts, stalls, delays or slows down connections, like
 * a network.
 *
 * @module
 */
import { delay } from "@std/async/delay";

/** `up` is from the program to the server. */
type Direction = "up" | "down";

/** The faults of the network. They can change while connections are open. */
export interface Faults {
  /**
   * Cuts every connection after this number of bytes in all. Later connections are
   * not affected.
   */
  cutAfterBytes?: number | undefined;
  /** Cuts the connection on which this text is sent, before or after it reaches the server. */
  cutAt?: { text: string; when: "before" | "after" } | undefined;
  /** Runs before this text reaches the server, once. */
  callAt?: { text: string; call: () => Promise<unknown> } | undefined;
  /** Directions without any traffic. */
  stalled?: readonly Direction[];
  /** Stalls both directions after this number of bytes. */
  stallAfterBytes?: number | undefined;
  latencyMilliseconds?: number;
  bytesPerSecond?: number | undefined;
  /** Whether the server keeps its end of a cut connection. */
  isHalfOpen?: boolean;
  /** The treatment of new connections: closed at once, or kept without an answer. */
  accept?: "close" | "silence" | undefined;
}

/** A proxy to one server. */
export class Proxy implements AsyncDisposable {
  faults: Faults;
  /** Number of attempted connections. */
  dialled = 0;
  /** Bytes in both directions. */
  moved = 0;
  /** Number of cuts by a fault. */
  cuts = 0;
  /** Pieces that a stall holds back. */
  held = 0;
  readonly #listener: Deno.TcpListener;
  /** The target of new connections. Open connections keep theirs. */
  server: { hostname: string; port: number };
  #isClosed = false;
  readonly #open = new Set<Deno.Conn>();
  /** Stalled directions of the connections that were open at that time. */
  readonly #frozen = new Map<Deno.Conn, readonly Direction[]>();

  constructor(server: { hostname: string; port: number }, faults: Faults = {}) {
    this.server = server;
    this.faults = faults;
    this.#listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
    void this.#accept();
  }

  get port(): number {
    return this.#listener.addr.port;
  }

  /** Closes every open connection. A half-open one is closed only at the end of the program. */
  cut(): void {
    for (const connection of [...this.#open]) {
      const isServer = connection.remoteAddr.transport === "tcp" &&
        connection.remoteAddr.port === this.server.port;
      if (!isServer || !this.faults.isHalfOpen) this.#close(connection);
    }
  }

  /** Stalls the open connections. Later connections are not affected. */
  freeze(directions: readonly Direction[]): void {
    for (const connection of this.#open) {
      this.#frozen.set(connection, directions);
    }
  }

  [Symbol.asyncDispose](): Promise<void> {
    if (!this.#isClosed) this.#listener.close();
    this.#isClosed = true;
    this.faults = {};
    this.cut();
    return Promise.resolve();
  }

  #close(connection: Deno.Conn): void {
    if (this.#open.delete(connection)) connection.close();
  }

  async #accept(): Promise<void> {
    for await (const client of this.#listener) {
      this.dialled++;
      this.#open.add(client);
      if (this.faults.accept === "close") this.#close(client);
      else if (this.faults.accept !== "silence") void this.#serve(client);
    }
  }

  async #serve(client: Deno.TcpConn): Promise<void> {
    let server: Deno.TcpConn;
    try {
      server = await Deno.connect(this.server);
    } catch {
      await this.#waitWhileStalled("down", client);
      return this.#close(client);
    }
    this.#open.add(server);
    const end = () => {
      this.#close(client);
      if (!this.faults.isHalfOpen) this.#close(server);
    };
    void this.#pump("up", client, server, end);
    void this.#pump("down", server, client, end);
  }

  async #pump(
    direction: Direction,
    from: Deno.Conn,
    to: Deno.Conn,
    end: () => void,
  ): Promise<void> {
    // Small enough that a cut is close to the intended byte.
    const buffer = new Uint8Array(4096);
    try {
      for (let count; (count = await from.read(buffer)) !== null;) {
        const { latencyMilliseconds, bytesPerSecond } = this.faults;
        if (latencyMilliseconds) await delay(latencyMilliseconds);
        if (bytesPerSecond) await delay(1000 * count / bytesPerSecond);
        await this.#waitWhileStalled(direction, from);
        const { callAt, cutAt, cutAfterBytes } = this.faults;
        const data = buffer.slice(0, count);
        const has = (text: string) =>
          direction === "up" &&
          // The driver pads short statements with spaces.
          new TextDecoder("latin1").decode(data).replaceAll(/ +\0/g, "\0")
            .includes(text);
        if (callAt && has(callAt.text)) {
          this.faults = { ...this.faults, callAt: undefined };
          await callAt.call();
        }
        const isAt = cutAt && has(cutAt.text);
        if (isAt && cutAt.when === "before") {
          this.#cutByFault();
          break;
        }
        if (isAt) {
          // No more data moves between the program and this connection.
          this.faults = { ...this.faults, cutAt: undefined };
          this.freeze(["up", "down"]);
        }
        const allowed = Math.min(
          count,
          (cutAfterBytes ?? Infinity) - this.moved,
        );
        this.moved += Math.max(0, allowed);
        for (let sent = 0; sent < allowed;) {
          sent += await to.write(data.subarray(sent, allowed));
        }
        if (isAt) {
          // The server must receive the data before the cut.
          await delay(20);
          this.#cutByFault();
          break;
        }
        if (allowed < count) {
          this.#cutByFault();
          break;
        }
      }
    } catch {
      // One end is closed, so the other one is closed, too.
    }
    // A network that stands still does not report the end of the server, either.
    if (direction === "down") await this.#waitWhileStalled(direction, from);
    end();
  }

  #cutByFault(): void {
    this.cuts++;
    this.faults = {
      ...this.faults,
      cutAt: undefined,
      cutAfterBytes: undefined,
    };
    this.cut();
  }

  async #waitWhileStalled(
    direction: Direction,
    from: Deno.Conn,
  ): Promise<void> {
    const isStalled = () =>
      this.faults.stalled?.includes(direction) ||
      this.#frozen.get(from)?.includes(direction) ||
      this.moved >= (this.faults.stallAfterBytes ?? Infinity);
    if (!isStalled()) return;
    this.held++;
    while (isStalled() && this.#open.has(from)) await delay(20);
    this.held--;
  }
}
