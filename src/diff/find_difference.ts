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
  rowsWithHashesSql,
  wholeTableSql,
} from "./queries.ts";
import type { HashMethod } from "./row_hash.ts";
import { RowMatcher, type RowSet, type SideName } from "./row_matcher.ts";
import type { Table } from "../tables/declaration.ts";

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
  /** SQL for FROM. */
  readonly source: string;
  /** SQL condition. */
  readonly target: string;
  /** Number of rows to copy. */
  readonly rows: number;
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
  const sessions = [sides.source.session, sides.target.session] as const;
  using _ = watchTogether(...sessions);
  try {
    do {
      const source = readerOf(sides, "source", matcher);
      const target = readerOf(sides, "target", matcher);
      source.onChunk = target.onChunk = () => {
        const ahead = source.rows - target.rows;
        source.hold(ahead > MAX_AHEAD);
        target.hold(-ahead > MAX_AHEAD);
      };
      const read = (reader: RowReader, side: Side) =>
        reader.read(
          hashesSql(side, sides.table.columns, sides.method, matcher.range),
        );
      await Promise.all([
        read(source, sides.source),
        read(target, sides.target),
      ]);
    } while (matcher.endPass());
  } catch (error) {
    for (const session of sessions) session.destroy();
    throw error;
  }
  const { source, target, isWhole } = matcher;
  return {
    source: matcher.fingerprint("source"),
    target: matcher.fingerprint("target"),
    difference: { source, target, isWhole },
  };
}

/**
 * Reads rows that only the source has.
 *
 * @param relation SQL for FROM of these rows, with their ctid.
 * @returns their fingerprint, and the difference.
 */
export async function readAdded(sides: Sides, relation: string): Promise<{
  readonly added: Fingerprint;
  readonly difference: RowDifference;
}> {
  const matcher = new RowMatcher();
  const source = { ...sides.source, relation };
  const { columns } = sides.table;
  try {
    do {
      await readerOf(sides, "source", matcher).read(
        hashesSql(source, columns, sides.method, matcher.range),
      );
    } while (matcher.endPass());
  } catch (error) {
    sides.source.session.destroy();
    throw error;
  }
  return { added: matcher.fingerprint("source"), difference: matcher };
}

/** Bytes of a hash, and of a ctid: a block number of 32 bits and an item number of 16. */
const HASH_BYTES = 8;
const CTID_BYTES = 6;

function readerOf(
  sides: Sides,
  side: SideName,
  matcher: RowMatcher,
): RowReader {
  const { session, hasStableCtid } = sides[side];
  return hasStableCtid
    ? new RowReader(
      session,
      [HASH_BYTES, CTID_BYTES],
      (bytes, at) =>
        matcher.add(
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
      (bytes, at) =>
        matcher.add(side, bytes.getInt32(at), bytes.getInt32(at + 4)),
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

/** Returns SQL of the rows that differ, of at most `maxRows` of each side. */
export function selectionOf(
  { table: { columns }, source, target, method }: Sides,
  difference: RowDifference,
  maxRows = Infinity,
): Selection {
  const ctids = (rows: RowSet) => ctidSql(rows.ctids().take(maxRows));
  const withHashes = ({ relation }: Side, rows: RowSet, values: string[]) =>
    rowsWithHashesSql(
      relation,
      columns,
      method,
      rows.hashes().take(maxRows),
      values,
    );
  const names = columns.map(({ name }) => identifier(name));
  return {
    source: source.hasStableCtid
      ? `${source.relation} where ${ctids(difference.source)}`
      : withHashes(source, difference.source, names),
    target: target.hasStableCtid
      ? ctids(difference.target)
      : `(tableoid, ctid) in (select tableoid, ctid from ${
        withHashes(target, difference.target, ["tableoid", "ctid"])
      })`,
    rows: difference.source.count,
  };
}
