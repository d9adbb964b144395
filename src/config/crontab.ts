/**
 * The schedule: a crontab expression, in UTC.
 *
 * @module
 */
import { Cron } from "croner";

/** What crontab(5) knows. croner knows more: seconds, `@daily`, `L`, `W`, `#` and `?`. */
const CRONTAB = /^[\d*,/A-Z-]+( [\d*,/A-Z-]+){4}$/i;

/** Names of months and days; other words are croner's own. */
const NAMES =
  /^(JAN|FEB|MAR|APR|MAY|JUN|JUL|AUG|SEP|OCT|NOV|DEC|SUN|MON|TUE|WED|THU|FRI|SAT)$/i;

/** Returns the expression with its white space folded, or `undefined` when crontab(5) would not take it or it never comes. */
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
 * Days are those that fit either the day of the month or the day of the week.
 * They must fit both where one of the two fields begins with `*` (crontab(5)).
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

/** Returns the first tick of the schedule after `now`, or `undefined` where there is no schedule. */
export function nextTick(
  schedule: string | undefined,
  now: Date,
): Date | undefined {
  if (schedule === undefined) return undefined;
  // Without a function it starts no timer.
  return cronOf(schedule).nextRun(now) ?? undefined;
}

/** Returns whether the schedule has a tick at the minute that begins at `minute`. */
export function isTick(schedule: string, minute: Date): boolean {
  return cronOf(schedule).match(minute);
}
