/**
 * What a publisher is: something that takes events, one after another.
 *
 * @module
 */
import type { PublisherName } from "../runs/event.ts";

/** An event on its way out. */
export interface OutgoingEvent {
  readonly eventId: string;
  readonly runId: string;
  readonly eventType: string;
  /** As the event has it: UTC, six decimals, no offset. */
  readonly timestamp: string;
  /** The event exactly as it is stored. */
  readonly payload: string;
}

/** What became of one attempt. Texts hold no secret. */
export type Outcome =
  | { readonly kind: "delivered" }
  | {
    readonly kind: "failed";
    readonly error: string;
    /** Seconds for which the receiver asked to be left alone. */
    readonly retryAfterSeconds?: number;
  }
  /** The receiver wants no more. */
  | { readonly kind: "gone"; readonly error: string };

/** Takes events. */
export interface Publisher {
  readonly name: PublisherName;
  /** Digest of where events go; another one is a new receiver. */
  readonly target: string | null;
  /** Where events go, as logs may say it. */
  readonly label: string;
  /** Seconds until an attempt may follow on this many failures in a row. */
  readonly delaySeconds: (failures: number) => number;
  /**
   * A remote receiver is left alone by every process for the delay that
   * follows on a failure, and is not waited for without end. A local one is
   * tried anew after each run, until it has everything.
   */
  readonly isRemote: boolean;
  /**
   * How long, and how often at least, it has to fail in a row until events
   * that are as old are given up; `undefined` is for ever.
   */
  readonly giveUpAfter?: {
    readonly seconds: number;
    readonly failures: number;
  };
  /** Hands over one event. Rejects only when aborted. */
  readonly publish: (
    event: OutgoingEvent,
    signal: AbortSignal,
  ) => Promise<Outcome>;
}
