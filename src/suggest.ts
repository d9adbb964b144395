/** Suggestions for mistyped words. */
import { closestString } from "@std/text/closest-string";

/** Returns a suggestion for a mistyped word, or an empty text when no known word is similar. */
export function suggest(word: string, known: readonly string[]): string {
  if (known.length === 0) return "";
  const closest = closestString(word, [...known]);
  return isNear(word, closest) ? `; did you mean ${closest}?` : "";
}

function isNear(a: string, b: string): boolean {
  const shared = [...a].filter((letter) => b.includes(letter)).length;
  return Math.abs(a.length - b.length) <= 3 &&
    shared >= Math.max(a.length, b.length) / 2;
}
