/**
 * Finds the rows that only one of two sides has, while both sides are read. A row
 * cancels an equal row of the other side. Only rows without a partner are kept. So
 * the memory depends on the number of differences, and on how different the order
 * of the rows is.
 *
 * This module uses no database.
 *
 * @module
 */
import type { Fingerprint } from "./fingerprint.ts";

/** One of the two sides. */
export type SideName = "source" | "target";

/** The number of values that the upper half of a hash can have. */
const ALL_HASHES = 2 ** 32;

/** The smallest part of all hashes that is compared at once. More passes cost more than a full copy. */
const MIN_RANGE = ALL_HASHES / 16;

/** Maximum number of rows without a partner in memory. They take 22 bytes each. */
const MAX_PENDING = 2 ** 20;

/** Maximum number of rows that differ, on both sides together. They take 14 bytes each. */
const MAX_DIFFERING = 2 * MAX_PENDING;

/** Number of rows whose halves of hashes a double can add without rounding. */
const EXACT_ROWS = 2 ** 20;

/** The bit of a stored item number that marks a row of the target. */
const OF_TARGET = 0x8000;

/** The stored item number of a row that was canceled. PostgreSQL has no such item. */
const CANCELED = 0xffff;

/** Some of the rows of a {@linkcode RowSet}, by their position. The end is not included. */
export type Part = readonly [from: number, to: number];

const ALL: Part = [0, Infinity];

/** Rows that one side has more often than the other one. */
export class RowSet {
  #count = 0;
  #words = new Int32Array();
  #items = new Uint16Array();

  get count(): number {
    return this.#count;
  }

  /** Makes room for so many more rows. */
  reserve(rows: number): void {
    this.#words = resized(this.#words, 3 * (this.#count + rows));
    this.#items = resized(this.#items, this.#count + rows);
  }

  add(upper: number, lower: number, block: number, item: number): void {
    if (this.#count === this.#items.length) this.reserve(this.#count || 64);
    const at = 3 * this.#count;
    this.#words[at] = upper;
    this.#words[at + 1] = lower;
    this.#words[at + 2] = block;
    this.#items[this.#count++] = item;
  }

  /** Returns the hash of each row of the part, in decimal. */
  *hashes([from, to]: Part = ALL): Generator<string> {
    const end = Math.min(to, this.#count);
    for (let i = from; i < end; i++) yield this.#hash(i).toString();
  }

  /** Returns the ctid of each row of the part. */
  *ctids([from, to]: Part = ALL): Generator<string> {
    const end = Math.min(to, this.#count);
    for (let i = from; i < end; i++) {
      yield `(${this.#words[3 * i + 2]! >>> 0},${this.#items[i]})`;
    }
  }

  /** Calls `onRow` with each row. */
  forEach(
    onRow: (upper: number, lower: number, block: number, item: number) => void,
  ): void {
    for (let i = 0; i < this.#count; i++) {
      const [upper, lower, block] = this.#words.subarray(3 * i, 3 * i + 3);
      onRow(upper!, lower!, block!, this.#items[i]!);
    }
  }

  #hash(index: number): bigint {
    return joined(
      this.#words[3 * index]!,
      this.#words[3 * index + 1]! >>> 0,
    );
  }
}

/**
 * Moves values to an array of another length. Frees the memory of the old one, because
 * the garbage collector would keep it for long.
 */
function resized<T extends Int32Array<ArrayBuffer> | Uint16Array<ArrayBuffer>>(
  values: T,
  length: number,
): T {
  const moved = new (values.constructor as new (length: number) => T)(length);
  moved.set(values.subarray(0, length));
  values.buffer.transfer(0);
  return moved;
}

function sideOf(storedItem: number): SideName {
  return storedItem & OF_TARGET ? "target" : "source";
}

function joined(upper: number, lower: number): bigint {
  return BigInt(upper) * 0x1_0000_0000n + BigInt(lower);
}

/** Counts rows and adds their hashes. */
class Total {
  #count = 0;
  #checksum = 0n;
  #upper = 0;
  #lower = 0;

  add(upper: number, lower: number): void {
    this.#upper += upper;
    this.#lower += lower >>> 0;
    if (++this.#count % EXACT_ROWS === 0) this.#flush();
  }

  get fingerprint(): Fingerprint {
    this.#flush();
    return { count: this.#count, checksum: this.#checksum.toString() };
  }

  #flush(): void {
    this.#checksum += joined(this.#upper, this.#lower);
    this.#upper = this.#lower = 0;
  }
}

/**
 * Matches the rows of both sides by their hashes.
 *
 * Reads both sides once where memory holds the rows without a partner. Otherwise each
 * pass compares the hashes of a range, and both sides are read again for the next one.
 */
export class RowMatcher {
  readonly source = new RowSet();
  readonly target = new RowSet();
  readonly #totals = { source: new Total(), target: new Total() };
  #isFirstPass = true;
  #isWhole = true;
  /** The range of the pass: upper halves of hashes, from 0. */
  #from = 0;
  #to = ALL_HASHES;
  /**
   * Rows without a partner, in chains by their hash. The canceled ones are a chain, too.
   * Places from `#used` on were never used, and take no memory until then.
   */
  #size = 0;
  #used = 0;
  #free = -1;
  #heads = new Int32Array();
  #next = new Int32Array();
  #upper = new Int32Array();
  #lower = new Int32Array();
  #block = new Int32Array();
  #item = new Uint16Array();

  constructor(readonly maxPending = MAX_PENDING) {
    this.#resize(Math.min(1024, maxPending));
  }

  /** Fingerprint of a side, after the first pass. */
  fingerprint(side: SideName): Fingerprint {
    return this.#totals[side].fingerprint;
  }

  /** Whether all rows are being read, or were read once. */
  get isFirstPass(): boolean {
    return this.#isFirstPass;
  }

  /** The hashes of the pass, as limits of a signed 64-bit number. `undefined` for all. */
  get range(): readonly [min: bigint, max: bigint] | undefined {
    if (this.#isFirstPass) return undefined;
    const limit = (at: number) => joined(at - ALL_HASHES / 2, 0);
    return [limit(this.#from), limit(this.#to) - 1n];
  }

  /** Whether all differences were found. Otherwise there are too many. */
  get isWhole(): boolean {
    return this.#isWhole;
  }

  /**
   * Adds a row, and returns whether it cancels an equal row of the other side. Rows
   * that cannot be addressed have no block and no item.
   */
  add(
    side: SideName,
    upper: number,
    lower: number,
    block = 0,
    item = 0,
  ): boolean {
    if (this.#isFirstPass) this.#totals[side].add(upper, lower);
    if (this.#isOutside(upper)) return false;
    const mark = side === "target" ? OF_TARGET : 0;
    const head = lower & (this.#size - 1);
    let before = -1;
    for (let at = this.#heads[head]!; at >= 0; at = this.#next[at]!) {
      if (this.#lower[at] === lower && this.#upper[at] === upper) {
        // All rows of a hash are of one side: those of the other one were canceled.
        if ((this.#item[at]! & OF_TARGET) === mark) break;
        this.#remove(head, before, at);
        return true;
      }
      before = at;
    }
    this.#insert(upper, lower, block, item | mark);
    return false;
  }

  /** Ends a pass. Returns whether another one follows. */
  endPass(): boolean {
    this.#isFirstPass = false;
    this.#collect();
    if (this.source.count + this.target.count > MAX_DIFFERING) {
      this.#isWhole = false;
    }
    if (!this.#isWhole) return false;
    const width = this.#to - this.#from;
    this.#from = this.#to;
    this.#to = Math.min(this.#from + width, ALL_HASHES);
    if (this.#from === ALL_HASHES) return false;
    this.#resize(Math.min(1024, this.maxPending));
    return true;
  }

  /** Moves all rows without a partner to the results. */
  #collect(): void {
    for (let at = this.#free; at >= 0; at = this.#next[at]!) {
      this.#item[at] = CANCELED;
    }
    this.#heads = resized(this.#heads, 0);
    this.#next = resized(this.#next, 0);
    const items = this.#item.subarray(0, this.#used);
    const count = { source: 0, target: 0 };
    for (const item of items) if (item !== CANCELED) count[sideOf(item)]++;
    this.source.reserve(count.source);
    this.target.reserve(count.target);
    for (const [at, item] of items.entries()) {
      if (item === CANCELED) continue;
      this[sideOf(item)].add(
        this.#upper[at]!,
        this.#lower[at]!,
        this.#block[at]!,
        item & ~OF_TARGET,
      );
    }
    this.#used = 0;
    this.#free = -1;
    this.#resize(0);
  }

  #isOutside(upper: number): boolean {
    const at = upper + ALL_HASHES / 2;
    return at < this.#from || at >= this.#to;
  }

  #insert(upper: number, lower: number, block: number, item: number): void {
    let at = this.#free;
    if (at >= 0) this.#free = this.#next[at]!;
    else if (this.#used < this.#size) at = this.#used++;
    else {
      if (this.#size < this.maxPending) this.#resize(2 * this.#size);
      else this.#narrow();
      if (!this.#isOutside(upper)) this.#insert(upper, lower, block, item);
      return;
    }
    this.#upper[at] = upper;
    this.#lower[at] = lower;
    this.#block[at] = block;
    this.#item[at] = item;
    const head = lower & (this.#size - 1);
    this.#next[at] = this.#heads[head]!;
    this.#heads[head] = at;
  }

  #remove(head: number, before: number, at: number): void {
    const after = this.#next[at]!;
    if (before < 0) this.#heads[head] = after;
    else this.#next[before] = after;
    this.#next[at] = this.#free;
    this.#free = at;
  }

  /** Leaves half of the hashes to later passes, until rows are free. */
  #narrow(): void {
    while (this.#free < 0) {
      const half = Math.floor((this.#to - this.#from) / 2);
      this.#to = this.#from + half;
      if (half < MIN_RANGE) this.#isWhole = false;
      for (let head = 0; head < this.#size; head++) {
        let before = -1;
        let at = this.#heads[head]!;
        while (at >= 0) {
          const after = this.#next[at]!;
          if (this.#isOutside(this.#upper[at]!)) this.#remove(head, before, at);
          else before = at;
          at = after;
        }
      }
    }
  }

  /** Makes room for `size` rows, a power of two or 0. The used places stay. */
  #resize(size: number): void {
    this.#size = size;
    this.#upper = resized(this.#upper, size);
    this.#lower = resized(this.#lower, size);
    this.#block = resized(this.#block, size);
    this.#item = resized(this.#item, size);
    this.#next = resized(this.#next, size);
    this.#heads = resized(this.#heads, size).fill(-1);
    // All of them are taken. Otherwise there would be room.
    for (let at = 0; at < this.#used; at++) {
      const head = this.#lower[at]! & (size - 1);
      this.#next[at] = this.#heads[head]!;
      this.#heads[head] = at;
    }
  }
}
