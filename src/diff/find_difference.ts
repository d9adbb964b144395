/**
 * Finds the differences between the two sides of a table. Compares the sums of whole
 * tables, and then rows.
 *
 * @module
 */
import { RowReader, watchTogether } from "../postgres/copy.ts";
import type { Session } from "../postgres/session.ts";
import { identifier, type Row } from "../postgres/sql.ts";
import {
  equal,
  type Fingerprint,
  modeFor,
  type PlanMode,
} from "./fingerprint.ts";
import {
  ctidSql,
  hashesSql,
  type HashRange,
  rowsWithHashesSql,
  wholeTableSql,
} from "./queries.ts";
import { type HashMethod, rowHash } from "./row_hash.ts";
import { HashList } from "./hash_list.ts";
import { type Part, RowMatcher, RowSet, type SideName } from "./row_matcher.ts";
import type { Column, Table } from "../tables/declaration.ts";

/** One side of a comparison: a session that sees the rows, and their table. */
export interface Side {
  readonly session: Session;
  /** Quoted, schema-qualified. */
  readonly relation: string;
  readonly hasStableCtid: boolean;
}

/** Both sides of a table, and the hash method of the comparison. */
export interface Sides {
  readonly table: Table;
  readonly source: Side;
  readonly target: Side;
  readonly method: HashMethod;
}

/** The plan of a load. */
export type Plan =
  | { readonly mode: Exclude<PlanMode, "delta"> }
  | { readonly mode: "delta"; readonly difference: RowDifference };

/** The plan, and the fingerprints of both sides. */
export interface Compared {
  readonly plan: Plan;
  readonly source: Fingerprint;
  readonly target: Fingerprint;
}

/** The rows that a delta deletes from the target and copies from the source. */
export interface Selection {
  /** Returns SQL for FROM. It takes much memory, so it is made where it is sent. */
  readonly source: (part?: Part) => string;
  /** Returns an SQL condition. */
  readonly target: (part?: Part) => string;
  /** Number of rows to delete and to copy. */
  readonly rows: Readonly<Record<SideName, number>>;
}

/**
 * Compares by content. A sum over both tables costs least, and finds most tables
 * unchanged. Where they differ, or a difference is expected, compares row by row.
 */
export async function compareContent(
  sides: Sides,
  expectsDifference = false,
): Promise<Compared> {
  if (!expectsDifference) {
    const [source, target] = await Promise.all([
      wholeFingerprint(sides.source, sides),
      wholeFingerprint(sides.target, sides),
    ]);
    if (equal(source, target)) {
      return { plan: { mode: "unchanged" }, source, target };
    }
    if (target.count === 0) return { plan: { mode: "full" }, source, target };
  }
  const { source, target, difference } = await diffRows(sides);
  const mode = difference.isWhole
    ? modeFor(difference.source.count + difference.target.count, source.count)
    : "full";
  const plan: Plan = mode === "delta" ? { mode, difference } : { mode };
  return { plan, source, target };
}

/** The rows that one side has more often than the other one. */
export interface RowDifference {
  readonly source: RowSet;
  readonly target: RowSet;
  /** Whether these are all. Otherwise there are too many to be found. */
  readonly isWhole: boolean;
}

/**
 * Number of rows that a side may be read ahead of the other one. Rows that have the
 * same place on both sides then meet soon.
 */
const MAX_AHEAD = 8_000;

/**
 * Compares row by row, by hash. Each side sends the hashes of its rows while this
 * process matches them.
 *
 * @param maxPending maximum number of rows without a partner in memory.
 * @returns both fingerprints, and the difference.
 */
export async function diffRows(sides: Sides, maxPending?: number): Promise<{
  readonly source: Fingerprint;
  readonly target: Fingerprint;
  readonly difference: RowDifference;
}> {
  const matcher = new RowMatcher(maxPending);
  await matchRows(sides, matcher, (side, range) =>
    hashesSql(
      sides[side],
      rowHash(sides.table.columns, sides.method),
      range,
    ));
  const { source, target, isWhole } = matcher;
  return {
    source: matcher.fingerprint("source"),
    target: matcher.fingerprint("target"),
    difference: { source, target, isWhole },
  };
}

/** The rows that the last load saw, and the younger ones. */
interface OldRows {
  /** Number of old rows. */
  readonly count: Readonly<Record<SideName, number>>;
  /** Not all of them, where there are more than `maxYoung`. */
  readonly young: Readonly<Record<SideName, RowSet>>;
  /** The old rows that one side has more often, by the columns of the comparison. */
  readonly difference: RowDifference;
  /** Those rows of the target for which another row may have the same values. */
  readonly repeated: RowSet;
}

/** Returns the hash of an old row, as SQL. The last bit distinguishes it from a young one. */
export function oldHash(
  columns: readonly Column[],
  method: HashMethod,
): string {
  return `(${rowHash(columns, method)} & '-2'::bigint)`;
}

/**
 * Matches the old rows of both sides by some of their columns. Reads no other column.
 *
 * @param isYoung SQL conditions for the young rows of each side.
 * @param limits number of old rows of the target, and a number of young rows of a
 * side above which not all are kept.
 */
export async function matchOldRows(
  sides: Sides,
  columns: readonly Column[],
  isYoung: Readonly<Record<SideName, string>>,
  limits: { readonly expected: number; readonly maxYoung: number },
): Promise<OldRows> {
  const { method } = sides;
  const matcher = new RowMatcher();
  const matched = new HashList(limits.expected);
  const young = { source: new RowSet(), target: new RowSet() };
  await matchRows(
    sides,
    matcher,
    (side, range) =>
      hashesSql(
        sides[side],
        `case when ${isYoung[side]} then ${
          rowHash(columns, method)
        } | '1'::bigint else ${oldHash(columns, method)} end`,
        range,
      ),
    (side, upper, lower, block = 0, item = 0) => {
      if ((lower & 1) === 0) {
        const hasPartner = matcher.add(side, upper, lower, block, item);
        if (hasPartner) matched.add(upper, lower);
      } else if (matcher.isFirstPass && young[side].count <= limits.maxYoung) {
        young[side].add(upper, lower, block, item);
      }
    },
  );
  const { source, target, isWhole } = matcher;
  return {
    count: {
      source: matcher.fingerprint("source").count,
      target: matcher.fingerprint("target").count,
    },
    young,
    difference: { source, target, isWhole },
    repeated: matched.findRepeated(target),
  };
}

/** Receives a row: its hash in two halves, and its place where it has one. */
type OnHash = (
  side: SideName,
  upper: number,
  lower: number,
  block?: number,
  item?: number,
) => void;

/** Reads the hashes of both sides side by side, until the matcher needs no other pass. */
async function matchRows(
  sides: Sides,
  matcher: RowMatcher,
  select: (side: SideName, range: HashRange | undefined) => string,
  onRow: OnHash = (side, upper, lower, block, item) =>
    void matcher.add(side, upper, lower, block, item),
): Promise<void> {
  const sessions = [sides.source.session, sides.target.session] as const;
  using _ = watchTogether(...sessions);
  try {
    do {
      const source = readerOf(sides, "source", onRow);
      const target = readerOf(sides, "target", onRow);
      source.onChunk = target.onChunk = () => {
        const ahead = source.rows - target.rows;
        source.hold(ahead > MAX_AHEAD);
        target.hold(-ahead > MAX_AHEAD);
      };
      await Promise.all([
        source.read(select("source", matcher.range)),
        target.read(select("target", matcher.range)),
      ]);
    } while (matcher.endPass());
  } catch (error) {
    for (const session of sessions) session.destroy();
    throw error;
  }
}

/** Bytes of a hash, and of a ctid: a block number of 32 bits and an item number of 16. */
const HASH_BYTES = 8;
const CTID_BYTES = 6;

function readerOf(sides: Sides, side: SideName, onRow: OnHash): RowReader {
  const { session, hasStableCtid } = sides[side];
  return hasStableCtid
    ? new RowReader(
      session,
      [HASH_BYTES, CTID_BYTES],
      (bytes, at) =>
        onRow(
          side,
          bytes.getInt32(at),
          bytes.getInt32(at + 4),
          bytes.getInt32(at + 12),
          bytes.getUint16(at + 16),
        ),
    )
    : new RowReader(
      session,
      [HASH_BYTES],
      (bytes, at) => onRow(side, bytes.getInt32(at), bytes.getInt32(at + 4)),
    );
}

/** Returns the fingerprint of a side. */
export async function wholeFingerprint(
  { session, relation }: Side,
  { table, method }: Pick<Sides, "table" | "method">,
): Promise<Fingerprint> {
  const [row] = await session.scan(
    wholeTableSql(relation, table.columns, method),
  );
  return fingerprintOf(row!);
}

/** Returns the fingerprint of a row with `count` and `checksum`. */
export function fingerprintOf(row: Row): Fingerprint {
  return { count: Number(row.count), checksum: row.checksum };
}

/** Maximum number of rows that a statement names by their ctids, and by their hashes. */
const MAX_CTIDS = 2 ** 14;
const MAX_HASHES = 2 ** 18;

/**
 * Returns the parts of so many rows that one statement each names. A long statement takes
 * much memory. Each statement that finds rows by hashes reads the whole side.
 */
export function partsOf(
  { hasStableCtid }: Pick<Side, "hasStableCtid">,
  rows: number,
): readonly Part[] {
  const size = hasStableCtid ? MAX_CTIDS : MAX_HASHES;
  return Array.from(
    { length: Math.ceil(rows / size) },
    (_, i) => [i * size, (i + 1) * size],
  );
}

/** Selects the rows that differ. */
export function selectionOf(
  { table: { columns }, source, target, method }: Sides,
  difference: RowDifference,
): Selection {
  const withHashes = (
    { relation }: Side,
    hashes: Iterable<string>,
    values: string[],
  ) => rowsWithHashesSql(relation, columns, method, hashes, values);
  const names = columns.map(({ name }) => identifier(name));
  return {
    source: (part) =>
      source.hasStableCtid
        ? `${source.relation} where ${ctidSql(difference.source.ctids(part))}`
        : withHashes(source, difference.source.hashes(part), names),
    target: (part) =>
      target.hasStableCtid
        ? ctidSql(difference.target.ctids(part))
        : `(tableoid, ctid) in (select tableoid, ctid from ${
          withHashes(target, difference.target.hashes(part), [
            "tableoid",
            "ctid",
          ])
        })`,
    rows: {
      source: difference.source.count,
      target: difference.target.count,
    },
  };
}
