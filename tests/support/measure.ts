/**
 * Saves the results of the fault tests for `docs/reliability.md`, as lines of JSON
 * in the file that FAULTS_MEASURE names.
 *
 * @module
 */

/** The result of one test. */
export interface Measurement {
  /** Heading in the table. */
  readonly group: string;
  readonly fault: string;
  /** The contents of the targets after the fault: `old`, `new`, or the state of each. */
  readonly holds: string;
  /** The end of the load with the fault: exit code and error code. */
  readonly sees: string;
  /** Seconds of the next load, from process start to exit. */
  readonly recoverySeconds: number;
}

const FILE = Deno.env.get("FAULTS_MEASURE");

/** Whether measurements are saved. */
export const IS_MEASURED = Boolean(FILE);

/** Saves a measurement. */
export function measure(measurement: Measurement): void {
  if (!FILE) return;
  Deno.writeTextFileSync(FILE, `${JSON.stringify(measurement)}\n`, {
    append: true,
  });
}

/** Reports a skipped test and the reason on standard error. */
export function skip(what: string, why: string): void {
  Deno.stderr.writeSync(new TextEncoder().encode(`SKIPPED: ${what}: ${why}\n`));
}
