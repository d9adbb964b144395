/** Moments on a page: how long ago, and when exactly. */
import { formatDistance, formatMoment } from "../../../format.ts";

/** A moment with its distance from now. */
export function Distance({ at, now }: { at: string | Date; now: Date }) {
  const date = new Date(at);
  return (
    <time datetime={date.toISOString()} title={`${formatMoment(date)} UTC`}>
      {formatDistance(date, now)}
    </time>
  );
}

/** A moment to the second; its year only where that is not the one of `now`. */
export function Moment({ at, now }: { at: string | Date; now?: Date }) {
  const date = new Date(at);
  const text = formatMoment(date);
  const year = ` ${now?.getUTCFullYear()} `;
  return <time datetime={date.toISOString()}>{text.replace(year, " ")}</time>;
}
