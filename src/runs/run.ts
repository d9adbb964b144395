/** Types of runs. */
import type { Trigger } from "./event.ts";

/** The states of a run, in the order of its life. The last three are final. */
export const RUN_STATES = [
  "queued",
  "running",
  "succeeded",
  "failed",
  "interrupted",
] as const;

/** State of a run, stored verbatim. See {@linkcode RUN_STATES}. */
export type RunState = (typeof RUN_STATES)[number];

/** Options of a run. Requests with equal options can share one run. */
export interface RunOptions {
  readonly tables: readonly string[];
  readonly mode: "auto" | "full";
  readonly atomic: boolean;
  readonly recreate: boolean;
  /** Whether it may remove any number of rows, see MAX_SHRINK. */
  readonly allowShrink: boolean;
}

/** A run: its trigger and its options. */
export interface Run extends RunOptions {
  readonly id: string;
  readonly trigger: Trigger;
  /** Start in the format of an event. Absent before it is claimed. */
  readonly startedAt?: string;
}

/** A run in the queue, and how long a caller of this process waits for its start. */
export interface QueuedRun extends Run {
  /**
   * End of the wait as Unix time of the warehouse, in seconds. Null for an unattended
   * run, which starts even if no caller waits for it.
   */
  readonly deadline: number | null;
}
