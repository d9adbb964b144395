/** The interface of a publisher. A publisher delivers events one after another. */
import type { VariableName } from "../config/variables.ts";
import type { PublisherName } from "../runs/event.ts";

/** An event to deliver. */
export interface OutgoingEvent {
  /** Number of the event, in the order of commits. */
  readonly seq: string;
  readonly eventId: string;
  readonly runId: string;
  readonly eventType: string;
  /** Time of the event: UTC, six decimals, no offset. */
  readonly timestamp: string;
  /** W3C Trace Context of the run. */
  readonly traceparent: string | null;
  /** Tables whose failure this publisher has reported, and that have not loaded since. */
  readonly failingTables: readonly string[];
  /** The event exactly as it is stored. */
  readonly payload: string;
}

/** Outcome of one attempt. Texts hold no secret. */
export type Outcome =
  | {
    readonly kind: "delivered";
    /** {@linkcode OutgoingEvent.failingTables} of the next event, where it changes. */
    readonly failingTables?: readonly string[];
  }
  /** The event is not one for this publisher. */
  | { readonly kind: "skipped" }
  | {
    readonly kind: "failed";
    readonly error: string;
    /** Seconds that the receiver asked to wait. */
    readonly retryAfterSeconds?: number;
  }
  /** The receiver refuses further events. */
  | { readonly kind: "gone"; readonly error: string };

/** Delivers events to one destination. */
export interface Publisher {
  readonly name: PublisherName;
  /** Variable that names the destination. */
  readonly variable: VariableName;
  /** Digest of the destination. Another digest means a new receiver. */
  readonly target: string | null;
  /** Name of the destination in logs. */
  readonly label: string;
  /** Seconds before the next attempt after this number of consecutive failures. */
  readonly delaySeconds: (failures: number) => number;
  /**
   * Whether the receiver is remote. After a failure of a remote receiver, every
   * process waits for the delay. A local one is retried after each run.
   */
  readonly isRemote: boolean;
  /**
   * Minimum seconds and number of consecutive failures after which events of that
   * age are given up. `undefined` means never.
   */
  readonly giveUpAfter?: {
    readonly seconds: number;
    readonly failures: number;
  };
  /** Delivers one event. Rejects only when aborted. */
  readonly publish: (
    event: OutgoingEvent,
    signal: AbortSignal,
  ) => Promise<Outcome>;
}
