/**
 * How much of the suite is run: all of it by the task `test:faults`, and along
 * with all other tests what stays within minutes.
 *
 * @module
 */

/** Whether every combination is run, rather than each fault in its main forms. */
export const IS_THOROUGH = Deno.env.get("FAULTS") === "all";

/** All of the values when everything is run, else the first ones. */
export function some<T>(values: readonly T[], few: number): readonly T[] {
  return IS_THOROUGH ? values : values.slice(0, few);
}
