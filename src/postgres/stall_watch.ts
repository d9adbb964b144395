/**
 * Ends sessions on which no byte moves while their server is idle.
 *
 * @module
 */
import type { DatabaseConfig } from "../config/config.ts";
import { ServiceError } from "../errors.ts";
import { probe } from "./client.ts";
import { address } from "./address.ts";
import type { LineOptions } from "./line.ts";
import { LIFT_TIMEOUTS, literal, SET_SEARCH_PATH } from "./sql.ts";

/** A session, as its watch sees it. */
interface Watched {
  readonly config: DatabaseConfig;
  readonly pid: number;
  /** Whether it waits for an answer. */
  readonly isWaiting: boolean;
  /** Bytes sent, and bytes of answers received, so far. */
  readonly bytesMoved: number;
  destroy(reason: ServiceError): void;
}

export interface WatchOptions extends LineOptions {
  readonly stallTimeoutSeconds: number;
}

/** Watches one session until `stop`. */
export class StallWatch {
  /** The watch of the other end of a COPY. This end may wait for it. */
  peer: StallWatch | undefined;
  readonly #watched: Watched;
  readonly #options: WatchOptions;
  readonly #timer: ReturnType<typeof setInterval>;
  #moved = -1;
  /** Time of the last tick that found the session idle, or bytes moved. */
  #movedAt = performance.now();
  /** Time of the last probe that found the server busy while no byte moved. */
  #workedAt = -Infinity;
  /** Bytes of a COPY that the server had processed at the last probe. */
  #copied: string | undefined;
  #probing: Promise<void> | undefined;
  /** Whether this watch waits for probes, of either end. */
  #isProbing = false;

  constructor(watched: Watched, options: WatchOptions) {
    this.#watched = watched;
    this.#options = options;
    const seconds = Math.min(options.stallTimeoutSeconds / 8, 5);
    this.#timer = setInterval(() => void this.#tick(), seconds * 1000);
    Deno.unrefTimer(this.#timer as unknown as number);
  }

  stop(): void {
    clearInterval(this.#timer);
  }

  async #tick(): Promise<void> {
    const { isWaiting, bytesMoved } = this.#watched;
    if (!isWaiting || bytesMoved !== this.#moved) {
      this.#moved = bytesMoved;
      this.#movedAt = performance.now();
      return;
    }
    const ends = this.peer ? [this, this.peer] : [this];
    const { stallTimeoutSeconds } = this.#options;
    const isStalled = () =>
      performance.now() -
          Math.max(this.#movedAt, ...ends.map((end) => end.#workedAt)) >=
        stallTimeoutSeconds * 1000;
    // The progress of a COPY is only known relative to an earlier probe.
    if (this.#isProbing || !this.peer && !isStalled()) return;
    this.#isProbing = true;
    await Promise.all(ends.map((end) => end.#probe()));
    this.#isProbing = false;
    const hasMoved = this.#watched.bytesMoved !== this.#moved;
    if (!this.#watched.isWaiting || hasMoved || !isStalled()) return;
    this.#watched.destroy(
      new ServiceError(
        "stalled",
        `The connection to ${
          address(this.#watched.config)
        } stalled: no data for ${stallTimeoutSeconds} s`,
      ),
    );
  }

  /** Probes whether the server is busy. Both ends of a COPY share a running probe. */
  #probe(): Promise<void> {
    return this.#probing ??= this.#isServerBusy().then((isBusy) => {
      if (isBusy) this.#workedAt = performance.now();
      this.#probing = undefined;
    });
  }

  /**
   * Asks the server on a second connection. Returns whether the backend computes,
   * waits for a lock, or has processed more of a COPY since the last probe. Sent
   * bytes can be in transit for longer than the stall timeout.
   */
  async #isServerBusy(): Promise<boolean> {
    const { config, pid } = this.#watched;
    if (!pid) return false;
    const { rows } = await probe(
      config,
      this.#options,
      // A role that changed at login may not be allowed to see its own sessions.
      `${LIFT_TIMEOUTS}; ${SET_SEARCH_PATH}; set local role none;
       select wait_event_type is distinct from 'Client' as busy, bytes_processed::text as copied
       from pg_stat_activity left join pg_stat_progress_copy using (pid)
       -- The state is disabled without track_activities. An idle backend waits for its client.
       where pid = ${pid} and state in ('active', 'disabled')
         and application_name = ${literal(this.#options.applicationName)}`,
    );
    if (!rows) return false;
    const [backend] = rows;
    const hasTaken = backend?.copied !== undefined &&
      backend.copied !== null && backend.copied !== this.#copied;
    this.#copied = backend?.copied;
    return Boolean(backend?.busy || hasTaken);
  }
}
