/** When the schedule loads next. */
import { Cron } from "croner";

/** The next tick of LOAD_SCHEDULE after `now`, or `undefined` where there is none. */
export function nextTick(
  schedule: string | undefined,
  now: Date,
): Date | undefined {
  if (schedule === undefined) return undefined;
  // Without a function it is a calculator: it starts no timer.
  return new Cron(schedule, { timezone: "UTC" }).nextRun(now) ?? undefined;
}
