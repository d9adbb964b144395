/**
 * Makes wrong tokens slow and visible.
 *
 * @module
 */
import { delay } from "@std/async/delay";
import type { Context } from "hono";
import type { Logger } from "@logtape/logtape";

/** Milliseconds that the first wrong token of an address waits. Each further one doubles it. */
const FIRST_DELAY = 100;

/** Maximum delay in milliseconds. */
const MAX_DELAY = 5000;

/** Milliseconds after which an address without further failures is forgotten. */
const FORGET_AFTER = 600_000;

/** Maximum number of addresses that are remembered. The oldest makes room. */
const MAX_ADDRESSES = 1000;

/** Milliseconds between two warnings. */
const WARN_AFTER = 10_000;

/**
 * Counts wrong tokens by address. Only answers to wrong tokens are delayed: a
 * caller with the right token behind the same proxy does not wait.
 */
export class FailedTokens {
  readonly #addresses = new Map<string, { count: number; at: number }>();
  readonly #log: Logger;
  readonly #now: () => number;
  #unreported = 0;
  #warnedAt = -Infinity;

  constructor(log: Logger, now: () => number = () => performance.now()) {
    this.#log = log;
    this.#now = now;
  }

  /** The number of addresses that are remembered. */
  get size(): number {
    return this.#addresses.size;
  }

  /** Records a wrong token and waits before it is answered. */
  async delay(c: Context): Promise<void> {
    const address = addressOf(c);
    const milliseconds = this.add(address);
    this.#warn(c, address);
    await delay(milliseconds, { signal: c.req.raw.signal }).catch(() => {});
  }

  /** Records a wrong token. Returns the milliseconds to wait before its answer. */
  add(address: string): number {
    const now = this.#now();
    const known = this.#addresses.get(address);
    const count = known && now - known.at < FORGET_AFTER ? known.count + 1 : 1;
    // Set again, so that the map's order is the order of the last failures.
    this.#addresses.delete(address);
    this.#addresses.set(address, { count, at: now });
    for (const oldest of this.#addresses.keys()) {
      if (this.#addresses.size <= MAX_ADDRESSES) break;
      this.#addresses.delete(oldest);
    }
    return Math.min(FIRST_DELAY * 2 ** (count - 1), MAX_DELAY);
  }

  #warn(c: Context, address: string): void {
    this.#unreported++;
    if (this.#now() - this.#warnedAt < WARN_AFTER) return;
    this.#log.warn(
      "A request from {address} has a wrong token ({count} since the last warning)",
      {
        address,
        count: this.#unreported,
        forwarded_for: printable(c.req.header("x-forwarded-for")),
        request_id: c.get("requestId"),
      },
    );
    this.#unreported = 0;
    this.#warnedAt = this.#now();
  }
}

/** Returns the address of the other end of the connection. */
function addressOf(c: Context): string {
  return c.env?.incoming?.socket?.remoteAddress ?? "unknown";
}

/** Returns a header without control and format characters, cut to 200 characters. */
function printable(header: string | undefined): string | undefined {
  return header?.replaceAll(/[\p{C}\p{Zl}\p{Zp}]/gu, "?").slice(0, 200);
}
