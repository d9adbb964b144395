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
 * @param expectsRemovals whether rows were probably updated or deleted.
 */
export async function prove(
  sides: Sides,
  present: Present,
  last: VerifiedState,
  expectsRemovals: boolean,
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
  const counted = expectsRemovals ? undefined : await proveAdded(sides, last);
  const found = counted?.compared
    ? counted
    : await proveRemoved(sides, last) ?? counted;
  const { compared, young, isChanged = true } = found ?? {};
  const xids = young
    ? await runningBeside(source, present.source.horizon, young)
    : last.source.xids.filter((xid) => BigInt(xid) >= xmin);
  return {
    xids,
    isChanged,
    ...compared ? { compared, sides: withSeed(sides, last) } : {},
  };
}

/** Returns the sides with the hash method of the last load. */
function withSeed(sides: Sides, { seed }: VerifiedState): Sides {
  return { ...sides, method: { ...sides.method, seed: BigInt(seed) } };
}

/** What row versions say about a table. */
interface Found {
  readonly compared?: Compared;
  /** SQL condition for the rows of the source that the last load did not see, if there are any. */
  readonly young?: string;
  readonly isChanged: boolean;
}

/** Finds that nothing changed, or that rows were only added to the source. */
async function proveAdded(sides: Sides, last: VerifiedState): Promise<Found> {
  const [source, target] = await Promise.all([
    countVersions(sides.source, last.source),
    countVersions(sides.target, last.target),
  ]);
  const { count, checksum } = last;
  const isChanged = source.young > 0 || source.old !== count;
  const isSame = source.old === count && target.old === count &&
    target.young === 0;
  if (!isSame) return { isChanged };
  if (source.young === 0) {
    const before = { count, checksum };
    const plan = { mode: "unchanged" } as const;
    return {
      compared: { plan, source: before, target: before },
      isChanged,
    };
  }
  const young = `${await pagesOfYoung(sides.source, last.source)} and ${
    youngSql(last.source)
  }`;
  const compared = await compareRows(sides, last, young, source.young);
  return { young, isChanged, ...compared ? { compared } : {} };
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
): Promise<Found | undefined> {
  const columns = await identifyingColumns(sides);
  if (!columns) return undefined;
  const { count, young, difference } = await matchOldRows(sides, columns, {
    source: youngSql(last.source),
    target: youngSql(last.target),
  });
  const removed = difference.target;
  const added = ctidSql(young.source.ctids());
  const found = {
    ...young.source.count > 0 ? { young: added } : {},
    isChanged: young.source.count + removed.count > 0,
  };
  const isSound = difference.isWhole && difference.source.count === 0 &&
    count.target === last.count && young.target.count === 0;
  if (!isSound) return found;
  const compared = await compareRows(sides, last, added, young.source.count, {
    columns,
    rows: removed,
  });
  return { ...found, ...compared ? { compared } : {} };
}

/**
 * Returns the columns of the key, or the first column that has no repeated value in
 * the statistics of the target.
 */
async function identifyingColumns(
  { table: { columns, key, target }, target: { session } }: Sides,
): Promise<readonly Column[] | undefined> {
  if (key) return columns.filter(({ name }) => key.includes(name));
  const rows = await session.query(
    `select attname::text as name from pg_catalog.pg_stats
     where schemaname = ${literal(target.schema)} and tablename = ${
      literal(target.name)
    } and n_distinct = -1 and null_frac = 0`,
  );
  const unique = new Set(rows.map(({ name }) => name));
  const column = columns.find(({ name }) => unique.has(name));
  return column && [column];
}

/**
 * Compares the rows that were added to the source with those that were removed.
 *
 * @param added SQL condition for the added rows, which are `count` rows.
 * @param removed the rows of the target, found by the hash of these columns.
 * @returns `undefined` where the conditions find other numbers of rows.
 */
async function compareRows(
  sides: Sides,
  last: VerifiedState,
  added: string,
  count: number,
  removed?: { readonly columns: readonly Column[]; readonly rows: RowSet },
): Promise<Compared | undefined> {
  const { table, target, method } = sides;
  const source = {
    ...sides.source,
    relation: sourceRelation({ ...table, where: added }, true),
  };
  const targetRows = (condition: string) => ({
    ...target,
    relation: `${target.relation} where ${condition}`,
  });
  // The seed of the last load is known by now. So rows could be made for it.
  const { source: plus, target: minus, difference } = await diffRows({
    ...sides,
    source,
    // All rows with these values, so that a repeated value is noticed.
    target: targetRows(
      removed
        ? hashSql(oldHash(removed.columns, method), removed.rows.hashes())
        : "false",
    ),
  });
  if (plus.count !== count || minus.count !== (removed?.rows.count ?? 0)) {
    return undefined;
  }
  const before = { count: last.count, checksum: last.checksum };
  const earlier = withSeed(sides, last);
  const [more, less] = await Promise.all([
    wholeFingerprint(source, earlier),
    wholeFingerprint(
      targetRows(removed ? ctidSql(removed.rows.ctids()) : "false"),
      earlier,
    ),
  ]);
  const now = {
    count: before.count - less.count + more.count,
    checksum: (BigInt(before.checksum) - BigInt(less.checksum) +
      BigInt(more.checksum)).toString(),
  };
  const mode = difference.isWhole
    ? modeFor(difference.source.count + difference.target.count, now.count)
    : "full";
  return {
    plan: mode === "delta" ? { mode, difference } : { mode },
    source: now,
    target: before,
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
  // pg_surgery writes 2 into a row that it makes visible again.
  return `(pg_catalog.age(xmin) <= ${horizonAge(state)} or xmin = '2'::xid)${
    others.length > 0 ? ` and xmin <> all ('{${others}}'::xid[])` : ""
  }`;
}

/** The numbers of row versions of a side. */
interface RowVersions {
  /** Rows that were visible at the last load. */
  readonly old: number;
  readonly young: number;
}

/** The lines of the plan of {@linkcode countSql} on a table that the server itself stores. */
const PLAIN_PLAN = /^\s*(->\s+)?(Aggregate|InitPlan .*|Result|Seq Scan on .*)$/;

function countSql({ relation }: Side, state: SideState): string {
  return `select pg_catalog.count(*)::text as total,
      pg_catalog.count(*) filter (where ${youngSql(state)})::text as young
    from ${relation}`;
}

/** Returns whether the rows come from the table's own file. */
async function readsOwnFile(side: Side, state: SideState): Promise<boolean> {
  const plan = await side.session.query(
    `explain (costs off) ${countSql(side, state)}`,
  );
  return plan.every((line) => PLAIN_PLAN.test(line["QUERY PLAN"]));
}

/** Counts the rows that were visible at the last load, and the others. */
async function countVersions(
  side: Side,
  state: SideState,
): Promise<RowVersions> {
  const [row] = await side.session.query(countSql(side, state));
  const young = Number(row!.young);
  return { old: Number(row!.total) - young, young };
}

/** Returns an SQL condition for the pages of the young rows. They are often the last ones. */
async function pagesOfYoung(
  { session, relation }: Side,
  state: SideState,
): Promise<string> {
  const [row] = await session.query(
    `select pg_catalog.min(ctid)::text as first, pg_catalog.max(ctid)::text as last
     from ${relation} where ${youngSql(state)}`,
  );
  return `ctid >= '${row!.first}' and ctid <= '${row!.last}'`;
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
