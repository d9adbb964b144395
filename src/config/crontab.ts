/** Parses schedules, which are crontab expressions in UTC. */
import { Cron } from "croner";

/** Matches the syntax of crontab(5). croner also accepts seconds, `@daily`, `L`, `W`, `#` and `?`. */
const CRONTAB = /^[\d*,/A-Z-]+( [\d*,/A-Z-]+){4}$/i;

/** Matches names of months and days. croner accepts other words too. */
const NAMES =
  /^(JAN|FEB|MAR|APR|MAY|JUN|JUL|AUG|SEP|OCT|NOV|DEC|SUN|MON|TUE|WED|THU|FRI|SAT)$/i;

/**
 * Returns the expression with its white space folded. Returns `undefined` when
 * crontab(5) does not allow it, or when it has no future tick.
 */
export function parseCrontab(text: string): string | undefined {
  const expression = text.trim().replace(/\s+/g, " ");
  const words = expression.match(/[A-Z]+/gi) ?? [];
  if (!CRONTAB.test(expression) || !words.every((word) => NAMES.test(word))) {
    return undefined;
  }
  try {
    return cronOf(expression).nextRun() ? expression : undefined;
  } catch {
    return undefined;
  }
}

/**
 * Compiles the expression. A day matches by day of month or by day of week. It
 * must match both when one of the two fields begins with `*` (crontab(5)).
 */
function cronOf(expression: string): Cron {
  const [, , days, , weekdays] = expression.split(" ");
  return new Cron(expression, {
    mode: "5-part",
    timezone: "UTC",
    sloppyRanges: true,
    domAndDow: days!.startsWith("*") || weekdays!.startsWith("*"),
  });
}

/** Returns the first tick of the schedule after `now`, or `undefined` without a schedule. */
export function nextTick(
  schedule: string | undefined,
  now: Date,
): Date | undefined {
  if (schedule === undefined) return undefined;
  // Without a callback, Cron starts no timer.
  return cronOf(schedule).nextRun(now) ?? undefined;
}

/** Returns the last tick of the schedule up to `now`. */
export function lastTick(schedule: string, now: Date): Date | undefined {
  const minute = Math.floor(now.getTime() / 60_000) * 60_000;
  // It returns ticks before a second. A tick is the first second of its minute.
  return cronOf(schedule).previousRuns(1, new Date(minute + 1000))[0];
}
