/**
 * The extent of the fault suite. The task `test:faults` runs all of it. The task
 * `test` runs a part that takes minutes.
 *
 * @module
 */

/** Whether every combination is tested, not only the main forms of each fault. */
export const IS_THOROUGH = Deno.env.get("FAULTS") === "all";

/** Returns all values when every combination is tested, and the first ones otherwise. */
export function some<T>(values: readonly T[], few: number): readonly T[] {
  return IS_THOROUGH ? values : values.slice(0, few);
}
