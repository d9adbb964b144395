/** Moments on a page, relative and exact. */
import { formatDistance, formatMoment } from "../../../format.ts";

/** A moment as its distance from `now`. */
export function Distance({ at, now }: { at: string | Date; now: Date }) {
  const date = new Date(at);
  return (
    <time datetime={isoSeconds(date)} title={`${formatMoment(date)} UTC`}>
      {formatDistance(date, now)}
    </time>
  );
}

/** A moment to the second. The year is omitted if it is the year of `now`. */
export function Moment({ at, now }: { at: string | Date; now?: Date }) {
  const date = new Date(at);
  const text = formatMoment(date);
  const year = ` ${now?.getUTCFullYear()} `;
  return <time datetime={isoSeconds(date)}>{text.replace(year, " ")}</time>;
}

/** Returns a moment to the second in ISO 8601. */
function isoSeconds(date: Date): string {
  return `${date.toISOString().slice(0, 19)}Z`;
}
