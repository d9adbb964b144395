/**
 * Formats numbers and times, and makes foreign text safe to print.
 *
 * `Intl` is not used: its start takes longer than the work of a command.
 */

/**
 * Matches characters that control a terminal, reverse the direction of a line or are
 * invisible. These are control and format characters, line separators, lone
 * surrogates and private characters. The two joiners stay, because scripts and
 * emoji need them.
 */
const UNPRINTABLES = /[[\p{C}\p{Zl}\p{Zp}]--[\u200c\u200d\p{Cn}]]/gv;

const UNPRINTABLES_IN_LINES =
  /[[\p{C}\p{Zl}\p{Zp}]--[\n\r\t\u200c\u200d\p{Cn}]]/gv;

/**
 * Returns the text as one line that is safe to print. White space is folded, and
 * every unprintable character becomes its number, such as `\\u{9b}`.
 */
export function printable(text: string): string {
  return escapeCharacters(text.replace(/\s+/g, " ").trim(), UNPRINTABLES);
}

/** Returns the text with its unprintable characters as numbers. Line breaks and tabs stay. */
export function printableLines(text: string): string {
  return escapeCharacters(text, UNPRINTABLES_IN_LINES);
}

/** Matches characters that {@linkcode formatValue} prints as numbers: spaces of other scripts are confused with spaces. */
const CONFUSABLES = /[[\p{C}\p{Z}]--[ \u200c\u200d\p{Cn}]]/gv;

/**
 * Returns a value of a table in quotes, on one line and safe to print, with every space
 * visible. A shortened value ends with an ellipsis.
 */
export function formatValue(text: string | null, isShortened = false): string {
  if (text === null) return "NULL";
  const quoted = escapeCharacters(JSON.stringify(text), CONFUSABLES);
  return isShortened ? `${quoted.slice(0, -1)}…` : quoted;
}

/** Returns the text with the matched characters as numbers, such as `\\u{9b}`. */
function escapeCharacters(text: string, characters: RegExp): string {
  return text.replace(
    characters,
    (c) => `\\u{${c.codePointAt(0)!.toString(16)}}`,
  );
}

/** Two values of a column, as text. Long ones are shortened around the first difference. */
export interface ValueDifference {
  readonly source: string | null;
  readonly target: string | null;
  /** `hex` when the texts are equal, and only the bytes differ. */
  readonly format: "text" | "hex";
  /** Number of bytes of the whole value before the first difference. The text is in UTF-8. */
  readonly position: number;
  /** Numbers of bytes of the whole values. `null` for NULL. */
  readonly source_bytes: number | null;
  readonly target_bytes: number | null;
}

/** A printable value: its beginning, the part that differs from the other value, and its end. */
type MarkedValue = readonly [string, string, string];

/**
 * Returns both values as {@linkcode formatValue} does, with the difference marked. An
 * ellipsis in place of a quote stands for the rest of a shortened value. Where both look
 * the same, letters beyond ASCII become numbers.
 */
export function formatDifference(
  difference: ValueDifference,
  mask = (text: string) => text,
): readonly [source: MarkedValue, target: MarkedValue] {
  const { source, target, format, position } = difference;
  const [a, b] = [[...source ?? ""], [...target ?? ""]];
  const equal = a.slice(0, equalLetters(a, b)).join("");
  const bytesOf = (text: string) =>
    new TextEncoder().encode(text).length / (format === "hex" ? 2 : 1);
  const omitted = position - Math.floor(bytesOf(equal));
  const show = (text: string | null, bytes: number | null) => {
    if (text === null) return "NULL";
    const quoted = formatValue(mask(text));
    return (omitted > 0 ? "…" : '"') + quoted.slice(1, -1) +
      (omitted + bytesOf(text) < bytes! ? "…" : '"');
  };
  let texts = [
    show(source, difference.source_bytes),
    show(target, difference.target_bytes),
  ];
  if (texts[0]!.normalize("NFKC") === texts[1]!.normalize("NFKC")) {
    texts = texts.map((text) => escapeCharacters(text, /[^\0-~…]/gv));
  }
  const [first, second] = texts.map((text) => [...text]);
  const start = equalLetters(first!, second!);
  const end = equalLetters(
    first!.slice(start).reverse(),
    second!.slice(start).reverse(),
  );
  const divide = (letters: readonly string[]): MarkedValue => [
    letters.slice(0, start).join(""),
    letters.slice(start, letters.length - end).join(""),
    letters.slice(letters.length - end).join(""),
  ];
  return [divide(first!), divide(second!)];
}

/** Returns the number of letters that both have at their beginning. */
export function equalLetters(
  a: readonly string[],
  b: readonly string[],
): number {
  let count = 0;
  while (count < a.length && a[count] === b[count]) count++;
  return count;
}

/** Returns serialized JSON with its unprintable characters escaped. The data stays the same. */
export function printableJson(json: string): string {
  return json.replace(
    UNPRINTABLES,
    (c) =>
      Array.from(
        { length: c.length },
        (_, i) => `\\u${c.charCodeAt(i).toString(16).padStart(4, "0")}`,
      ).join(""),
  );
}

/** Maximum number of tables that a sentence names. */
export const MAX_NAMES = 10;

/** Returns the names of tables, or their number where they are many: `500 tables`. */
export function formatTables(names: readonly string[]): string {
  return names.length > MAX_NAMES
    ? formatQuantity(names.length, "table")
    : names.join(", ");
}

/** Returns a count with separated thousands: `1,234,567`. */
export function formatCount(count: number): string {
  return String(count).replace(/\B(?=(\d{3})+$)/g, ",");
}

/** Returns a count with its noun, whose plural ends with "s": `1 row`, `8,000 rows`. */
export function formatQuantity(count: number, noun: string): string {
  return `${formatCount(count)} ${noun}${count === 1 ? "" : "s"}`;
}

/** Returns a duration, given in seconds: `<1 ms`, `4 ms`, `0.17 s`, `12.3 s`, `3 min 20 s`, `2 h 5 min`. */
export function formatSeconds(seconds: number): string {
  if (seconds < 0.0005) return seconds > 0 ? "<1 ms" : "0 ms";
  if (seconds < 0.0995) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 9.995) return `${seconds.toFixed(2)} s`;
  if (seconds < 59.95) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  return whole < 3600
    ? `${Math.floor(whole / 60)} min ${whole % 60} s`
    : `${Math.floor(whole / 3600)} h ${Math.floor(whole % 3600 / 60)} min`;
}

const BYTE_UNITS = ["B", "kB", "MB", "GB", "TB"];

/** Returns a number of bytes in decimal units: `903 B`, `1.2 MB`. */
export function formatBytes(bytes: number): string {
  let value = bytes;
  let unit = 0;
  while (value >= 999.5 && unit < BYTE_UNITS.length - 1) {
    value /= 1000;
    unit++;
  }
  return `${
    unit === 0 || value >= 99.95 ? Math.round(value) : value.toFixed(1)
  } ${BYTE_UNITS[unit]}`;
}

const MONTHS = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split(" ");

/** Returns a moment in UTC to the second: `24 Nov 2026 08:15:03`. */
export function formatMoment(date: Date): string {
  const time = date.toISOString().slice(11, 19);
  return `${date.getUTCDate()} ${
    MONTHS[date.getUTCMonth()]
  } ${date.getUTCFullYear()} ${time}`;
}

/** Returns the distance of a moment from `now`: `just now`, `3 min ago`, `in 2 h`. */
export function formatDistance(date: Date, now: Date): string {
  const seconds = (now.getTime() - date.getTime()) / 1000;
  const distance = Math.abs(seconds);
  if (distance < 5) return seconds >= 0 ? "just now" : "in a moment";
  const text = distance < 60
    ? `${Math.floor(distance)} s`
    : distance < 3600
    ? `${Math.floor(distance / 60)} min`
    : distance < 172_800
    ? `${Math.floor(distance / 3600)} h`
    : `${Math.floor(distance / 86_400)} days`;
  return seconds > 0 ? `${text} ago` : `in ${text}`;
}
