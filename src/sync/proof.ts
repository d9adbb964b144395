/**
 * Proves that tables are still equal by their row versions, without hashing them. See
 * `docs/guarantees.md` for the argument and its conditions.
 *
 * @module
 */
import {
  type Compared,
  diffRows,
  matchOldRows,
  oldHash,
  type Side,
  type Sides,
  wholeFingerprint,
} from "../diff/find_difference.ts";
import { modeFor } from "../diff/fingerprint.ts";
import { ctidSql, hashSql } from "../diff/queries.ts";
import type { RowSet } from "../diff/row_matcher.ts";
import { literal } from "../postgres/sql.ts";
import type { Column } from "../tables/declaration.ts";
import { fetchingByCtid } from "./sides.ts";
import { sourceRelation } from "./source_tables.ts";
import {
  type Horizon,
  MAX_XIDS,
  type Present,
  type SideState,
  type VerifiedState,
} from "./verified_state.ts";

/** Number of transactions between two loads at which 32 bits might no longer order them. */
const MAX_DISTANCE = 2n ** 30n;

/** Maximum number of young or removed rows that are compared one by one. They stay in memory. */
const MAX_CHANGED = 2 ** 19;

/** Number of such rows that are always compared one by one. */
const MIN_CHANGED = 16;

/**
 * Cost of hashing a column of a row in a scan, as a share of the cost of comparing a
 * row that is fetched by its ctid. Measured with tables of 4 and 14 columns.
 */
const COLUMN_COST = 1 / 256;

/** The outcome of a proof. */
export interface Proof {
  /** The plan, or `undefined` when nothing is proven. */
  readonly compared?: Compared;
  /** The sides with the seed of the plan's fingerprints. */
  readonly sides?: Sides;
  /** Transactions of the source from its horizon on, whose rows are visible. */
  readonly xids: readonly string[];
  /** Whether the source is known to have other rows. */
  readonly isChanged?: boolean;
}

/**
 * Compares the two sides with the last load, by their row versions. Reads the contents
 * of no row that is as old as that load, or only columns that identify such rows.
 *
 * @param removals the probable number of updated and deleted rows. `NaN` if unknown.
 */
export async function prove(
  sides: Sides,
  present: Present,
  last: VerifiedState,
  removals: number,
): Promise<Proof> {
  const { source, target } = sides;
  const { xmin, xmax } = present.source.horizon;
  const isSame = last.declaration === present.declaration &&
    last.source.facts === present.source.facts &&
    last.target.facts === present.target.facts &&
    isAfter(xmin, xmax, last.source.horizon) &&
    isAfter(present.target.horizon, BigInt(present.xid), last.target.horizon);
  if (!isSame) return { xids: [] };
  const arePlain = await Promise.all([
    readsOwnFile(source, last.source),
    readsOwnFile(target, last.target),
  ]);
  if (!arePlain.every(Boolean)) return { xids: [] };
  // No transaction of the source has ended since, so it has the same rows.
  const isAtRest = xmax === BigInt(last.source.horizon);
  const found = isAtRest
    ? await proveUnchanged(sides, last)
    : removals === 0
    ? await proveAdded(sides, last)
    : await proveRemoved(sides, last, removals);
  const { compared, young, isChanged = true } = found ?? {};
  const xids = [
    ...last.source.xids.filter((xid) => BigInt(xid) >= xmin),
    ...young ? await runningBeside(source, present.source.horizon, young) : [],
  ];
  return {
    xids: xids.slice(-MAX_XIDS),
    isChanged,
    ...compared ? { compared, sides: withSeed(sides, last) } : {},
  };
}

/** Returns the sides with the hash method of the last load. */
function withSeed(sides: Sides, { seed }: VerifiedState): Sides {
  return { ...sides, method: { ...sides.method, seed: BigInt(seed) } };
}

/** The result of comparing the row versions of a table. */
interface Found {
  readonly compared?: Compared;
  /** SQL condition for the rows of the source that the last load did not see, if there are any. */
  readonly young?: string;
  readonly isChanged: boolean;
}

/** Compares the target only: the source is known to have the rows of the last load. */
async function proveUnchanged(
  { target }: Sides,
  last: VerifiedState,
): Promise<Found> {
  const isSame = holdsOnlyOld(await countVersions(target, last.target), last);
  return { isChanged: false, ...isSame ? { compared: unchanged(last) } : {} };
}

/** Finds that nothing changed, or that rows were only added to the source. */
async function proveAdded(
  sides: Sides,
  last: VerifiedState,
): Promise<Found | undefined> {
  const [source, target] = await Promise.all([
    countVersions(sides.source, last.source),
    countVersions(sides.target, last.target),
  ]);
  const isSame = holdsOnlyOld(target, last);
  if (holdsOnlyOld(source, last)) {
    return { isChanged: false, ...isSame ? { compared: unchanged(last) } : {} };
  }
  if (!isSame) return { isChanged: true };
  if (source.firstYoung !== null && source.total > last.count) {
    // They are often on the last pages.
    const young = `ctid >= '${source.firstYoung}' and ${youngSql(last.source)}`;
    const { compared, added } = await fetchingByCtid(
      sides,
      () => compareRows(sides, last, young),
    );
    if (source.total === last.count + added) {
      return { young, isChanged: true, compared };
    }
  }
  return await proveRemoved(sides, last, NaN);
}

/** Returns the plan for two sides with the rows of the last load. */
function unchanged({ count, checksum }: VerifiedState): Compared {
  const before = { count, checksum };
  return { plan: { mode: "unchanged" }, source: before, target: before };
}

/**
 * Finds which rows are new in the source, and which rows of the last load it lacks.
 * Matches the others by a column whose values are probably unique. So each old row of
 * the source has its row in the target, and the others were removed, unless a value
 * is repeated.
 */
async function proveRemoved(
  sides: Sides,
  last: VerifiedState,
  expected: number,
): Promise<Found | undefined> {
  const columns = await identifyingColumns(sides);
  if (!columns) return undefined;
  const unread = sides.table.columns.length - columns.length;
  // Above it, reading all columns of all rows costs less.
  const limit = Math.min(
    Math.max(last.count * unread * COLUMN_COST, MIN_CHANGED),
    MAX_CHANGED,
  );
  if (unread === 0 || expected > limit) return { isChanged: true };
  const { count, young, difference, repeated } = await matchOldRows(
    sides,
    columns,
    { source: youngSql(last.source), target: youngSql(last.target) },
    { expected: last.count, maxYoung: limit },
  );
  const removed = difference.target;
  if (Math.max(young.source.count, removed.count) > limit) {
    return { isChanged: true };
  }
  const condition = ctidSql(young.source.ctids());
  const found = {
    ...young.source.count > 0 ? { young: condition } : {},
    isChanged: young.source.count + removed.count > 0,
  };
  const isSound = difference.isWhole && difference.source.count === 0 &&
    count.target === last.count && young.target.count === 0 &&
    await areUnique(sides, columns, repeated);
  if (!isSound) return found;
  const { compared } = await fetchingByCtid(
    sides,
    () => compareRows(sides, last, condition, removed),
  );
  return { ...found, compared };
}

/** Returns whether the target has no other rows with the values of these ones. */
async function areUnique(
  { target: { session, relation }, method }: Sides,
  columns: readonly Column[],
  rows: RowSet,
): Promise<boolean> {
  if (rows.count === 0) return true;
  const [found] = await session.query(
    `select pg_catalog.count(*)::text as count from ${relation}
     where ${hashSql(oldHash(columns, method), rows.hashes())}`,
  );
  return Number(found!.count) === rows.count;
}

/**
 * Returns the columns of the key, or the shortest column that has no repeated value in
 * the statistics of the target. They have no histogram of values that ANALYZE finds too
 * long, and say that none of these is repeated.
 */
async function identifyingColumns(
  { table: { columns, key, target }, target: { session } }: Sides,
): Promise<readonly Column[] | undefined> {
  if (key) return columns.filter(({ name }) => key.includes(name));
  const rows = await session.query(
    `select attname::text as name from pg_catalog.pg_stats
     where schemaname = ${literal(target.schema)} and tablename = ${
      literal(target.name)
    } and n_distinct = -1 and null_frac = 0 and histogram_bounds is not null
     order by avg_width`,
  );
  for (const row of rows) {
    const column = columns.find(({ name }) => name === row.name);
    if (column) return [column];
  }
  return undefined;
}

/**
 * Compares the rows that were added to the source with those that were removed.
 *
 * @param condition SQL condition for the added rows.
 * @param removed the rows of the target that the source lacks.
 * @returns the plan, and the number of added rows.
 */
async function compareRows(
  sides: Sides,
  last: VerifiedState,
  condition: string,
  removed?: RowSet,
): Promise<{ readonly compared: Compared; readonly added: number }> {
  const rows = (added: string, removed: string): Sides => ({
    ...sides,
    source: {
      ...sides.source,
      relation: sourceRelation({ ...sides.table, where: added }, true),
    },
    target: {
      ...sides.target,
      relation: `${sides.target.relation} where ${removed}`,
    },
  });
  const changed = rows(condition, removed ? ctidSql(removed.ctids()) : "false");
  // The seed of the last load is known by now. So rows could be made for it.
  const { source: plus, difference } = await diffRows(changed);
  // Rows that both have cancel each other in the sum, too.
  const { source, target } = difference.isWhole
    ? rows(
      ctidSql(difference.source.ctids()),
      ctidSql(difference.target.ctids()),
    )
    : changed;
  const [more, less] = await Promise.all([
    wholeFingerprint(source, withSeed(sides, last)),
    wholeFingerprint(target, withSeed(sides, last)),
  ]);
  const before = { count: last.count, checksum: last.checksum };
  const now = {
    count: before.count - less.count + more.count,
    checksum: (BigInt(before.checksum) - BigInt(less.checksum) +
      BigInt(more.checksum)).toString(),
  };
  const mode = difference.isWhole
    ? modeFor(difference.source.count + difference.target.count, now.count)
    : "full";
  return {
    compared: {
      plan: mode === "delta" ? { mode, difference } : { mode },
      source: now,
      target: before,
    },
    added: plus.count,
  };
}

/** Returns whether 32 bits order all transactions from the last horizon on. */
function isAfter(horizon: bigint, latest: bigint, last: string): boolean {
  return horizon >= BigInt(last) && latest - BigInt(last) < MAX_DISTANCE;
}

const RAW_XID = 2n ** 32n;

/** Returns the age of the horizon, as SQL that is computed once. */
function horizonAge({ horizon }: Pick<SideState, "horizon">): string {
  return `(select pg_catalog.age('${BigInt(horizon) % RAW_XID}'::xid))`;
}

/** Returns an SQL condition for rows that may have been invisible at the last load. */
function youngSql(state: Omit<SideState, "facts">): string {
  const others = state.xids.map((xid) => BigInt(xid) % RAW_XID);
  // pg_surgery writes 2 into a row that it makes visible again. Its age is 2^31 - 1.
  return `pg_catalog.age(xmin) % 2147483647 <= ${horizonAge(state)}${
    others.length > 0 ? ` and xmin <> all ('{${others}}'::xid[])` : ""
  }`;
}

/** The row versions of a side. */
interface RowVersions {
  readonly total: number;
  /** The ctid of the first row that may have been invisible at the last load. */
  readonly firstYoung: string | null;
}

/** Returns whether all rows of the last load are there, and no others. */
function holdsOnlyOld(
  { total, firstYoung }: RowVersions,
  { count }: VerifiedState,
): boolean {
  return firstYoung === null && total === count;
}

/** The lines of the plan of {@linkcode countSql} on a table that the server itself stores. */
const PLAIN_PLAN = /^\s*(->\s+)?(Aggregate|InitPlan .*|Result|Seq Scan on .*)$/;

function countSql({ relation }: Side, state: SideState): string {
  return `select pg_catalog.count(*)::text as total,
      pg_catalog.min(ctid) filter (where ${youngSql(state)})::text as first
    from ${relation}`;
}

/** Returns whether the rows come from the table's own file. */
async function readsOwnFile(side: Side, state: SideState): Promise<boolean> {
  const plan = await side.session.query(
    `explain (costs off) ${countSql(side, state)}`,
  );
  return plan.every((line) => PLAIN_PLAN.test(line["QUERY PLAN"]));
}

/** Counts the rows, and finds the first one that may have been invisible at the last load. */
async function countVersions(
  side: Side,
  state: SideState,
): Promise<RowVersions> {
  const [row] = await side.session.query(countSql(side, state));
  return { total: Number(row!.total), firstYoung: row!.first };
}

/**
 * Returns the transactions above the horizon whose rows are visible, or none where
 * there are too many of them. `young` is an SQL condition for these and other rows.
 */
async function runningBeside(
  { session, relation }: Side,
  { xmin, xmax }: Horizon,
  young: string,
): Promise<readonly string[]> {
  // Later, rows that VACUUM has frozen may have the 32 bits of a running transaction.
  if (xmin === xmax || xmax >= RAW_XID) return [];
  const state = { horizon: xmin.toString(), xids: [] };
  const rows = await session.scan(
    `select xmin::text as xid from ${relation}
     where ${young} and ${youngSql(state)} group by xmin limit ${MAX_XIDS + 1}`,
  );
  return rows.length > MAX_XIDS ? [] : rows.map(({ xid }) => xid)
    .filter((xid) => BigInt(xid) >= xmin && BigInt(xid) < xmax);
}
