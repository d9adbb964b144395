/** Delays the responses to wrong tokens, and logs them. */
import { printable } from "../../format.ts";
import { delay } from "@std/async/delay";
import type { Context } from "hono";
import { expandIPv6 } from "hono/utils/ipaddr";
import type { Logger } from "@logtape/logtape";

/** Milliseconds before the response to the first wrong token of an address. Each further token doubles them. */
const FIRST_DELAY = 100;

/** Maximum milliseconds between two responses to wrong tokens of an address. */
const MAX_DELAY = 5000;

/** Maximum milliseconds before one response. */
const MAX_WAIT = 30_000;

/** Milliseconds after which an address without further failures is forgotten. */
const FORGET_AFTER = 600_000;

/** Maximum number of addresses that are remembered. The oldest makes room. */
const MAX_ADDRESSES = 1000;

/** Milliseconds between two warnings. */
const WARN_AFTER = 10_000;

/** The wrong tokens of an address. */
interface Failures {
  readonly count: number;
  readonly at: number;
  /** The time of the last response. */
  readonly answeredAt: number;
}

/**
 * Counts wrong tokens by address and delays the responses. Each address gets one
 * response after another, so parallel requests are not faster. A caller with the
 * right token behind the same proxy does not wait.
 */
export class FailedTokens {
  readonly #addresses = new Map<string, Failures>();
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

  /** Records a wrong token and waits until its response is due. */
  async delay(c: Context): Promise<void> {
    const address = addressOf(c);
    const milliseconds = this.add(address);
    this.#warn(c, address);
    await delay(milliseconds, { signal: c.req.raw.signal }).catch(() => {});
  }

  /** Records a wrong token. Returns the milliseconds to wait before the response. */
  add(address: string): number {
    const now = this.#now();
    const key = networkOf(address);
    const known = this.#addresses.get(key);
    const isRecent = known !== undefined && now - known.at < FORGET_AFTER;
    const count = isRecent ? known.count + 1 : 1;
    const delay = Math.min(FIRST_DELAY * 2 ** (count - 1), MAX_DELAY);
    const previous = isRecent ? Math.max(now, known.answeredAt) : now;
    const answeredAt = Math.min(previous + delay, now + MAX_WAIT);
    // The map keeps the order of the last failures.
    this.#addresses.delete(key);
    this.#addresses.set(key, { count, at: now, answeredAt });
    for (const oldest of this.#addresses.keys()) {
      if (this.#addresses.size <= MAX_ADDRESSES) break;
      this.#addresses.delete(oldest);
    }
    return answeredAt - now;
  }

  #warn(c: Context, address: string): void {
    this.#unreported++;
    if (this.#now() - this.#warnedAt < WARN_AFTER) return;
    this.#log.warn(
      "A request from {address} has a wrong token ({count} since the last warning)",
      {
        address,
        count: this.#unreported,
        forwarded_for: printable(c.req.header("x-forwarded-for") ?? "").slice(
          0,
          200,
        ),
        request_id: c.get("requestId"),
      },
    );
    this.#unreported = 0;
    this.#warnedAt = this.#now();
  }
}

/**
 * Returns the address, or the /64 network of an IPv6 address. A client with one
 * such address can use all addresses of its network.
 */
function networkOf(address: string): string {
  if (!address.includes(":") || address.includes(".")) return address;
  return expandIPv6(address).split(":").slice(0, 4).join(":");
}

/** Returns the address of the other end of the connection. */
function addressOf(c: Context): string {
  return c.env?.incoming?.socket?.remoteAddress ?? "unknown";
}
