/**
 * What a case showed, for the table in `docs/reliability.md`: lines of JSON in
 * the file that FAULTS_MEASURE names, where it names one.
 *
 * @module
 */

/** One case, as it went. */
export interface Measurement {
  /** Heading in the table. */
  readonly group: string;
  readonly fault: string;
  /** What the targets held after the fault: `old`, `new`, or which of them is which. */
  readonly holds: string;
  /** How the load that met the fault ended: exit code and error code. */
  readonly sees: string;
  /** Seconds of the next load, process start to exit. */
  readonly recoverySeconds: number;
}

/** Keeps a measurement. */
export function measure(measurement: Measurement): void {
  const path = Deno.env.get("FAULTS_MEASURE");
  if (!path) return;
  Deno.writeTextFileSync(path, `${JSON.stringify(measurement)}\n`, {
    append: true,
  });
}

/** Says on standard error that a case is left out, and why. */
export function skip(what: string, why: string): void {
  Deno.stderr.writeSync(new TextEncoder().encode(`SKIPPED: ${what}: ${why}\n`));
}
