/**
 * A TCP proxy on loopback that does to a connection what networks do: cut it,
 * let it hang in one direction, delay it, narrow it.
 *
 * @module
 */
import { delay } from "@std/async/delay";

/** `up` is from the program to the server. */
export type Direction = "up" | "down";

/** What is wrong with the network; may be changed while connections stand. */
export interface Faults {
  /** Cuts every connection once this many bytes have gone through in all; later ones are left alone. */
  cutAfterBytes?: number | undefined;
  /** Cuts the connection on which this text is sent: before it reaches the server, or after. */
  cutAt?: { text: string; when: "before" | "after" } | undefined;
  /** Directions in which nothing moves any more. */
  stalled?: readonly Direction[];
  /** Stalls both directions once this many bytes have gone through. */
  stallAfterBytes?: number | undefined;
  latencyMilliseconds?: number;
  bytesPerSecond?: number | undefined;
  /** A cut is not seen by the server: it keeps its end of the connection. */
  isHalfOpen?: boolean;
  /** What becomes of new connections: closed as soon as they stand, or kept without an answer. */
  accept?: "close" | "silence" | undefined;
}

/** A proxy to one server. */
export class Proxy implements AsyncDisposable {
  faults: Faults;
  /** Connections that were asked for. */
  dialled = 0;
  /** Bytes that went through, in both directions. */
  moved = 0;
  /** Cuts that were made by a fault. */
  cuts = 0;
  /** Pieces that were sent and have not gone through, since nothing moves. */
  held = 0;
  readonly #listener: Deno.TcpListener;
  /** Where new connections lead; those that stand stay where they are. */
  server: { hostname: string; port: number };
  #isClosed = false;
  readonly #open = new Set<Deno.Conn>();
  /** Directions that no longer move, by the connections that stood when they froze. */
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

  /** Closes every connection that stands; on the program's end only where it is half open. */
  cut(): void {
    for (const connection of [...this.#open]) {
      const isServer = connection.remoteAddr.transport === "tcp" &&
        connection.remoteAddr.port === this.server.port;
      if (!isServer || !this.faults.isHalfOpen) this.#close(connection);
    }
  }

  /** Lets nothing move any more on the connections that stand; later ones are left alone. */
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
    // Small enough that a cut comes close to where it is wanted.
    const buffer = new Uint8Array(4096);
    try {
      for (let count; (count = await from.read(buffer)) !== null;) {
        const { latencyMilliseconds, bytesPerSecond } = this.faults;
        if (latencyMilliseconds) await delay(latencyMilliseconds);
        if (bytesPerSecond) await delay(1000 * count / bytesPerSecond);
        await this.#waitWhileStalled(direction, from);
        const { cutAt, cutAfterBytes } = this.faults;
        const data = buffer.slice(0, count);
        const isAt = cutAt && direction === "up" &&
          new TextDecoder("latin1").decode(data).includes(cutAt.text);
        if (isAt && cutAt.when === "before") {
          this.#cutByFault();
          break;
        }
        if (isAt) {
          // The program hears nothing of it any more, and says nothing more.
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
          // Let the server take it in before the line goes dead.
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
      // Either end is gone, so the other one goes as well.
    }
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
