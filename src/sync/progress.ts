/**
 * The progress of a table's load, and the duration of each phase.
 *
 * @module
 */

/** Phase of a table's load. */
export type Phase =
  | "lock"
  | "compare"
  | "delete"
  | "copy"
  | "update"
  | "verify"
  | "check"
  | "wait"
  | "commit";

/** A finished phase, for the timeline of a run. */
export interface PhaseTiming {
  readonly phase: Phase;
  /** Seconds since the table's load began. */
  readonly started_after: number;
  readonly seconds: number;
}

/** Progress of a table's load. */
export interface Progress {
  readonly table: string;
  readonly phase: Phase;
  readonly rows: number;
  readonly bytes: number;
  /** Number of rows of the phase, where it is known. */
  readonly totalRows: number | null;
}

/** Measures phases and reports progress to the listener. The first phase is `lock`. */
export class PhaseClock {
  readonly #started = performance.now();
  readonly #phases: PhaseTiming[] = [];
  readonly #onProgress: (progress: Progress) => void;
  readonly #table: string;
  #phase: Phase | undefined;
  #phaseStarted = 0;
  #totalRows: number | null = null;

  constructor(table: string, onProgress: (progress: Progress) => void) {
    this.#table = table;
    this.#onProgress = onProgress;
    this.enter("lock");
  }

  /** Begins a phase with this number of rows, where it is known. */
  enter(phase: Phase, totalRows: number | null = null): void {
    this.#leave();
    this.#phase = phase;
    this.#phaseStarted = performance.now();
    this.#totalRows = totalRows;
    this.moved({ rows: 0, bytes: 0 });
  }

  /** Reports the progress of the phase. */
  moved = ({ rows, bytes }: { rows: number; bytes: number }): void => {
    this.#onProgress({
      table: this.#table,
      phase: this.#phase!,
      rows,
      bytes,
      totalRows: this.#totalRows,
    });
  };

  /** Ends the last phase. Returns the whole duration in seconds, and every phase. */
  stop(): { seconds: number; phases: readonly PhaseTiming[] } {
    this.#leave();
    return {
      seconds: (performance.now() - this.#started) / 1000,
      phases: this.#phases,
    };
  }

  #leave(): void {
    if (!this.#phase) return;
    const now = performance.now();
    this.#phases.push({
      phase: this.#phase,
      started_after: (this.#phaseStarted - this.#started) / 1000,
      seconds: (now - this.#phaseStarted) / 1000,
    });
  }
}
