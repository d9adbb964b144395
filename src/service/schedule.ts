/** The schedule: loads at every tick of LOAD_SCHEDULE. */
import type { Logger } from "@logtape/logtape";
import { lastTick } from "../config/crontab.ts";
import type { Config } from "../config/config.ts";
import type { Dispatcher } from "./dispatcher.ts";
import { asServiceError } from "../errors.ts";

/** The parts of the process that a trigger uses. */
export interface TriggerContext {
  readonly config: Config;
  readonly log: Logger;
  readonly dispatcher: Dispatcher;
}

/**
 * Loads at every tick of LOAD_SCHEDULE until the signal. Does nothing when it is unset.
 *
 * `Deno.cron` wakes the process each minute. Its own expressions count days of
 * the week from another number than crontab, and cannot ask for both days.
 */
export function startSchedule(
  context: TriggerContext,
  signal: AbortSignal,
): void {
  const { loadSchedule } = context.config;
  if (!loadSchedule) return;
  // A retry would load at an unplanned time. The next tick follows anyway.
  let checkedAt = new Date();
  void Deno.cron(
    "load",
    "* * * * *",
    { signal, backoffSchedule: [] },
    async () => {
      const now = new Date();
      const since = checkedAt;
      checkedAt = now;
      await runDue(context, loadSchedule, since, now);
    },
  );
  context.log.info("Loads are scheduled: {schedule} (UTC)", {
    schedule: loadSchedule,
  });
}

/**
 * Loads if the schedule has a tick in the minute of `now`, or after `since`. The process
 * may have been suspended or busy at that tick. Never throws.
 */
export async function runDue(
  context: TriggerContext,
  schedule: string,
  since: Date,
  now: Date,
): Promise<void> {
  const tick = lastTick(schedule, now);
  // The clock may have been set back after `since`.
  const isDue = tick && (tick > since || tick >= minuteOf(now));
  if (isDue) await runTick(context, tick);
}

function minuteOf(time: Date): Date {
  return new Date(Math.floor(time.getTime() / 60_000) * 60_000);
}

/** Handles the tick of the minute that `now` is in. Never throws. */
export async function runTick(
  { log, dispatcher }: TriggerContext,
  now: Date,
): Promise<void> {
  // A tick has no number: replicas identify it by its minute.
  const tick = minuteOf(now);
  const minute = tick.toISOString();
  try {
    const result = await dispatcher.tick(tick);
    if (result === "running") {
      log.warn("Skipped the tick of {minute}: a load is running", {
        minute,
      });
    } else if (result === "taken") {
      log.info("Another process runs the tick of {minute}", { minute });
    }
  } catch (error) {
    log.error("Cannot start the load for the tick of {minute}: {error}", {
      minute,
      error: asServiceError(error).line,
    });
  }
}
