import { assert, assertEquals } from "@std/assert";
import fc from "fast-check";
import { lastTick, nextTick, parseCrontab } from "./crontab.ts";

/** Returns the days of December 2026 on which the schedule has a tick at midnight. The 1st is a Tuesday. */
function daysOf(schedule: string): number[] {
  return Array.from({ length: 31 }, (_, i) => i + 1).filter((day) => {
    const midnight = Date.UTC(2026, 11, day);
    return lastTick(schedule, new Date(midnight))?.getTime() === midnight;
  });
}

Deno.test("lastTick() matches days as crontab(5) does", () => {
  const evens = [1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31];
  for (
    const [schedule, days] of [
      ["0 0 * * 1", [7, 14, 21, 28]],
      ["0 0 * * MON", [7, 14, 21, 28]],
      ["0 0 * * 0", [6, 13, 20, 27]],
      ["0 0 * * 7", [6, 13, 20, 27]],
      ["0 0 * * 5-7", [4, 5, 6, 11, 12, 13, 18, 19, 20, 25, 26, 27]],
      ["0 0 13 * *", [13]],
      // A day matches either field when both restrict it.
      ["0 0 13 * 5", [4, 11, 13, 18, 25]],
      ["0 0 1,15 * MON", [1, 7, 14, 15, 21, 28]],
      // A day matches both fields when one begins with a star.
      ["0 0 */2 * *", evens],
      ["0 0 */2 * 1", [7, 21]],
      ["0 0 1-7 * */7", [6]],
      ["0 0 1-7 * *", [1, 2, 3, 4, 5, 6, 7]],
      ["0 0 5/10 * *", [5, 15, 25]],
      ["0 0 * DEC *", Array.from({ length: 31 }, (_, i) => i + 1)],
      ["0 0 * NOV *", []],
    ] as [string, number[]][]
  ) {
    assertEquals(parseCrontab(schedule), schedule);
    assertEquals(daysOf(schedule), days, schedule);
  }
});

Deno.test("parseCrontab() refuses schedules that crontab(5) does not allow or that have no tick", () => {
  for (
    const wrong of [
      "",
      "x",
      "* * * *",
      "* * * * * *",
      "61 * * * *",
      "* 24 * * *",
      "* * 0 * *",
      "* * * * 8",
      "*/0 * * * *",
      "1,,2 * * * *",
      "5-1 * * * *",
      "-1 * * * *",
      "0 0 31 2 *",
      "0 0 31 4,6 *",
      "@daily",
      "0 0 L * *",
      "0 0 15W * *",
      "0 0 ? * *",
      "0 0 * * 1#2",
      "0 0 * * MOON",
      "H * * * *",
    ]
  ) assertEquals(parseCrontab(wrong), undefined, wrong);
  assertEquals(parseCrontab("  0\t6 * *   mon-fri "), "0 6 * * mon-fri");
  // The next tick is in a leap year.
  assertEquals(parseCrontab("0 0 29 2 *"), "0 0 29 2 *");
});

Deno.test("nextTick() and lastTick() agree", () => {
  const field = (minimum: number, maximum: number) =>
    fc.oneof(
      fc.constant("*"),
      fc.integer({ min: 2, max: 6 }).map((step) => `*/${step}`),
      fc.uniqueArray(fc.integer({ min: minimum, max: maximum }), {
        minLength: 1,
        maxLength: 3,
      }).map((values) => values.join()),
    );
  const schedules = fc.tuple(
    field(0, 59),
    field(0, 23),
    field(1, 28),
    field(1, 12),
    field(0, 6),
  ).map((fields) => fields.join(" "));
  const now = fc.date({
    min: new Date("2026-01-01"),
    max: new Date("2030-01-01"),
    noInvalidDate: true,
  });
  fc.assert(
    fc.property(schedules, now, (schedule, now) => {
      const next = nextTick(schedule, now)!;
      assertEquals(lastTick(schedule, next), next, `${schedule} ${next}`);
      // No tick is between them.
      const last = lastTick(schedule, new Date(next.getTime() - 1));
      assert(!last || last <= now, `${schedule} ${last}`);
    }),
    { numRuns: 50 },
  );
});
