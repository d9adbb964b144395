/** Times on a page, relative and exact. */
import { formatDistance, formatMoment } from "../../../format.ts";

/** A time relative to `now`. */
export function Distance({ at, now }: { at: string | Date; now: Date }) {
  const date = new Date(at);
  return (
    <time datetime={isoSeconds(date)} title={`${formatMoment(date)} UTC`}>
      {formatDistance(date, now)}
    </time>
  );
}

/** A time in seconds. The year is omitted if it is the year of `now`. */
export function Moment({ at, now }: { at: string | Date; now?: Date }) {
  const date = new Date(at);
  const text = formatMoment(date);
  const year = ` ${now?.getUTCFullYear()} `;
  return <time datetime={isoSeconds(date)}>{text.replace(year, " ")}</time>;
}

function isoSeconds(date: Date): string {
  return `${date.toISOString().slice(0, 19)}Z`;
}
