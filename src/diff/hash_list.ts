/**
 * Finds hashes that occur in two places, of which one is a long stream.
 *
 * This module uses no database.
 *
 * @module
 */
import { RowSet } from "./row_matcher.ts";

/** Maximum number of hashes in memory. They take 8 bytes each. */
const MAX_HASHES = 2 ** 22;

/** The hashes of a stream, in the order of their arrival. */
export class HashList {
  readonly #halves: Int32Array;
  #count = 0;

  /** @param expected number of hashes. */
  constructor(expected: number) {
    this.#halves = new Int32Array(2 * Math.min(expected, MAX_HASHES));
  }

  /** Adds a hash, in two halves. */
  add(upper: number, lower: number): void {
    const at = 2 * this.#count++;
    this.#halves[at] = upper;
    this.#halves[at + 1] = lower;
  }

  /**
   * Returns the rows whose hash was added. Returns all rows where more hashes were
   * added than expected, or than memory holds.
   */
  findRepeated(rows: RowSet): RowSet {
    if (2 * this.#count > this.#halves.length) return rows;
    const filter = new HashFilter(rows.count);
    rows.forEach((upper, lower) => filter.add(upper, lower));
    const found = new Set<string>();
    for (let at = 0; at < 2 * this.#count; at += 2) {
      const upper = this.#halves[at]!;
      const lower = this.#halves[at + 1]!;
      if (filter.mayHave(upper, lower)) found.add(`${upper} ${lower}`);
    }
    const repeated = new RowSet();
    rows.forEach((upper, lower, block, item) => {
      if (!found.has(`${upper} ${lower}`)) return;
      repeated.add(upper, lower, block, item);
    });
    return repeated;
  }
}

/** A Bloom filter. It fits into the cache where a set would not. */
class HashFilter {
  readonly #words: Int32Array;

  constructor(expected: number) {
    this.#words = new Int32Array(2 ** Math.ceil(Math.log2(2 * expected + 1)));
  }

  add(upper: number, lower: number): void {
    const words = this.#words;
    words[(lower >>> 9) & (words.length - 1)]! |= bits(upper);
  }

  mayHave(upper: number, lower: number): boolean {
    const words = this.#words;
    const wanted = bits(upper);
    return (words[(lower >>> 9) & (words.length - 1)]! & wanted) === wanted;
  }
}

/** Returns a word with up to three bits. */
function bits(half: number): number {
  return 1 << half | 1 << (half >>> 5) | 1 << (half >>> 10);
}
