/**
 * Compares a table that a Mara pipeline loaded with what the service would
 * load, and tells Mara's habits from real differences.
 *
 * Mara pipes `psql` through `sed '/^$/d'` into `psql`, both with `PGTZ` set
 * (mara_db/shell.py). So a DATE becomes midnight in Mara's time zone, blank
 * lines inside a text vanish, and without `csv_format` an empty text becomes
 * NULL. Everything else arrives as it was, or differs.
 *
 * @module
 */
import { compareTable } from "../sync/compare_tables.ts";
import type { Session } from "../postgres/session.ts";
import { identifier, literal, qualified } from "../postgres/sql.ts";
import {
  type Side,
  type Sides,
  wholeFingerprint,
} from "../diff/find_difference.ts";
import {
  bucketCount,
  type Bucketing,
  type Buckets,
  equal,
  parseBuckets,
} from "../diff/fingerprint.ts";
import { bucketsSql, inBucketsSql, rowHash } from "../diff/queries.ts";
import type { Snapshot } from "../sync/snapshot.ts";
import { sidesOf } from "../sync/sync_table.ts";
import type { Column, Table } from "../tables/declaration.ts";
import { findTarget } from "../sync/target.ts";

/** What Mara does to values on their way. */
export const HABITS = ["timezone", "blank_lines", "empty_texts"] as const;

/** One of {@linkcode HABITS}. */
export type Habit = (typeof HABITS)[number];

/** What became of a table under Mara. */
export interface MaraComparison {
  readonly sourceCount: number;
  /** `null` when the target does not exist. */
  readonly targetCount: number | null;
  /** Habits that explain differences, with the source rows that each touches. */
  readonly habits: readonly { readonly habit: Habit; readonly rows: number }[];
  /** What the habits do not explain, or `null` when they explain everything. */
  readonly unexplained: Unexplained | null;
}

/** Rows that one side has and the other has not, the habits allowed for. */
export interface Unexplained {
  readonly missing: number;
  readonly surplus: number;
  /** There are more: only some of the buckets that differ were looked into. */
  readonly isAtLeast: boolean;
  /** Some of their first columns, such as `mql_id`; `null` is NULL. */
  readonly missingKeys: readonly (string | null)[];
  readonly surplusKeys: readonly (string | null)[];
}

/** Most rows of one side that are looked at one by one: they are held in memory. */
const MOST_ROWS = 100_000;

/** Keys that are named as examples, on either side. */
const MOST_EXAMPLES = 5;

/** The time zones of Mara's sessions and of the service's, LOAD_TIMEZONE. */
export interface Zones {
  readonly mara: string;
  readonly ours: string;
}

/**
 * Compares one table for a pipeline in Mara's time zone: first as the service
 * compares, which also checks both shapes, then as Mara would have loaded it.
 */
export function compareWithMara(zones: Zones) {
  return async (
    snapshot: Snapshot,
    table: Table,
    warehouse: Session,
  ): Promise<MaraComparison> => {
    const { plan, source: wanted, target: present } = await compareTable(
      snapshot,
      table,
      warehouse,
    );
    const counts = {
      sourceCount: wanted.count,
      targetCount: present?.count ?? null,
    };
    if (plan.mode === "unchanged") {
      return { ...counts, habits: [], unexplained: null };
    }
    if (!present) {
      const unexplained = {
        missing: wanted.count,
        surplus: 0,
        isAtLeast: false,
        missingKeys: [],
        surplusKeys: [],
      };
      return { ...counts, habits: [], unexplained };
    }
    using source = await snapshot.openReader(table);
    const found = await findTarget(table, warehouse);
    const target = { ...found, relation: qualified(table.target) };
    const sides = sidesOf(table, snapshot, source, warehouse, target);
    const values = await describeValues(sides, zones);
    const touched = await countTouchedRows(sides, values);
    const candidates = subsets(touched.filter(({ rows }) => rows > 0));
    for (const habits of candidates) {
      const loaded = asLoaded(sides, values, habits);
      if (equal(await wholeFingerprint(loaded, sides), present)) {
        return { ...counts, habits, unexplained: null };
      }
    }
    return { ...counts, ...await findUnexplained(sides, values, candidates) };
  };
}

type Touched = MaraComparison["habits"];

/** What the habits make of the source's columns, as SQL. */
interface Values {
  readonly value: (column: Column, habits: ReadonlySet<Habit>) => string;
  /** Conditions of which one holds for a row that the habit changes. */
  readonly touches: Readonly<Record<Habit, readonly string[]>>;
}

async function describeValues(sides: Sides, zones: Zones): Promise<Values> {
  const { columns } = sides.table;
  const types = await columnTypes(sides);
  const isLocal = ({ name }: Column) =>
    /^(date|timestamp without time zone)$/.test(types.get(name) ?? "");
  const instant = ({ name }: Column, zone: string) =>
    `(${identifier(name)}::timestamp at time zone ${literal(zone)})`;
  const asText = ({ name }: Column) => `${identifier(name)}::text`;
  const texts = columns.filter(({ type }) => type === "text");
  return {
    value(column, habits) {
      switch (column.type) {
        case "double precision":
          return `${identifier(column.name)}::double precision`;
        case "timestamp with time zone":
          return isLocal(column)
            ? instant(column, habits.has("timezone") ? zones.mara : zones.ours)
            : identifier(column.name);
        case "text": {
          const text = habits.has("blank_lines")
            ? `pg_catalog.regexp_replace(${
              asText(column)
            }, E'\\n{2,}', E'\\n', 'g')`
            : asText(column);
          return habits.has("empty_texts") ? `nullif(${text}, '')` : text;
        }
      }
    },
    touches: {
      timezone: columns.filter(isLocal).map((column) =>
        `${instant(column, zones.mara)} <> ${instant(column, zones.ours)}`
      ),
      blank_lines: texts.map((column) =>
        `pg_catalog.strpos(${asText(column)}, E'\\n\\n') > 0`
      ),
      empty_texts: texts.map((column) => `${asText(column)} = ''`),
    },
  };
}

/** Types of the source's columns, as `format_type` spells them without a length. */
async function columnTypes(
  { source }: Sides,
): Promise<ReadonlyMap<string, string>> {
  const rows = await source.session.query(
    `select attname as name, pg_catalog.format_type(atttypid, null) as type
     from pg_catalog.pg_attribute
     where attrelid = ${literal(source.relation)}::regclass::oid
       and attnum > 0 and not attisdropped`,
  );
  return new Map(rows.map(({ name, type }) => [name, type]));
}

/** The source as Mara with these habits would load it. */
function asLoaded(
  { table, source }: Sides,
  { value }: Values,
  habits: Touched,
): Side {
  const names = new Set(habits.map(({ habit }) => habit));
  const columns = table.columns.map((column) =>
    `${value(column, names)} as ${identifier(column.name)}`
  );
  return {
    session: source.session,
    relation: `(select ${columns} from ${source.relation}) as loaded`,
    hasStableCtid: false,
  };
}

async function countTouchedRows(
  { source }: Sides,
  { touches }: Values,
): Promise<Touched> {
  const [row] = await source.session.query(
    `select ${
      HABITS.map((habit) =>
        `count(*) filter (where ${
          touches[habit].join(" or ") || "false"
        }) as ${habit}`
      )
    } from ${source.relation}`,
  );
  return HABITS.map((habit) => ({ habit, rows: Number(row![habit]) }));
}

/** Every choice of the habits but none, larger ones first: a pipeline mostly has all that apply. */
function subsets(habits: Touched): Touched[] {
  return habits
    .reduce<Touched[]>(
      (sets, habit) => [...sets, ...sets.map((set) => [...set, habit])],
      [[]],
    )
    .filter((set) => set.length > 0)
    .sort((a, b) => b.length - a.length);
}

/** The rows that no habit explains, under the habits that explain most. */
async function findUnexplained(
  sides: Sides,
  values: Values,
  candidates: readonly Touched[],
): Promise<Pick<MaraComparison, "habits" | "unexplained">> {
  const { table, target, method } = sides;
  const [size] = await target.session.query(
    `select count(*)::text as rows from ${target.relation}`,
  );
  const bucketing: Bucketing = {
    by: "row",
    buckets: bucketCount(Number(size!.rows)),
  };
  const bucketsOf = async ({ session, relation }: Side) => {
    const [row] = await session.query(
      bucketsSql(relation, table.columns, method, bucketing),
    );
    return parseBuckets(row!.buckets);
  };
  const present = await bucketsOf(target);
  let nearest: { habits: Touched; differing: Differing } | undefined;
  for (const habits of [[], ...candidates]) {
    const wanted = await bucketsOf(asLoaded(sides, values, habits));
    const differing = tellBucketsApart(wanted, present);
    if (!nearest || differing.rows < nearest.differing.rows) {
      nearest = { habits, differing };
    }
  }
  const { habits, differing } = nearest!;
  const looked = differing.buckets.slice(0, differing.within);
  const [wanted, found] = await Promise.all(
    [asLoaded(sides, values, habits), target].map((side) =>
      rowsIn(side, sides, bucketing, looked)
    ),
  );
  return {
    habits,
    unexplained: {
      ...tellApart(wanted!, found!),
      isAtLeast: looked.length < differing.buckets.length,
    },
  };
}

interface Differing {
  readonly buckets: readonly number[];
  /** Rows in them, on both sides. */
  readonly rows: number;
  /** How many of the buckets hold no more than {@linkcode MOST_ROWS} rows of either side; at least one. */
  readonly within: number;
}

function tellBucketsApart(wanted: Buckets, present: Buckets): Differing {
  const buckets: number[] = [];
  let [ours, theirs, within] = [0, 0, 0];
  for (const bucket of new Set([...wanted.keys(), ...present.keys()])) {
    const [a, b] = [wanted.get(bucket), present.get(bucket)];
    if (equal(a, b)) continue;
    buckets.push(bucket);
    ours += a?.count ?? 0;
    theirs += b?.count ?? 0;
    if (Math.max(ours, theirs) <= MOST_ROWS) within = buckets.length;
  }
  return { buckets, rows: ours + theirs, within: Math.max(within, 1) };
}

/** Keys of the rows in the buckets, by the rows' hash. */
async function rowsIn(
  { session, relation }: Side,
  { table: { columns }, method }: Sides,
  bucketing: Bucketing,
  changed: readonly number[],
): Promise<Map<string, (string | null)[]>> {
  const difference = { ...bucketing, changed, sourceRows: 0, targetRows: 0 };
  const rows = await session.query(
    `select ${rowHash(columns, method)}::text as hash, ${
      identifier(columns[0]!.name)
    } as key from ${relation} where ${
      inBucketsSql(columns, method, difference)
    }`,
  );
  const keys = new Map<string, (string | null)[]>();
  for (const { hash, key } of rows) {
    const known = keys.get(hash);
    if (known) known.push(key);
    else keys.set(hash, [key]);
  }
  return keys;
}

function tellApart(
  wanted: ReadonlyMap<string, (string | null)[]>,
  found: ReadonlyMap<string, (string | null)[]>,
): Omit<Unexplained, "isAtLeast"> {
  const surplusOf = (
    here: typeof wanted,
    there: typeof wanted,
  ): (string | null)[] =>
    [...here].flatMap(([hash, keys]) =>
      keys.slice(there.get(hash)?.length ?? 0)
    );
  const missing = surplusOf(wanted, found);
  const surplus = surplusOf(found, wanted);
  return {
    missing: missing.length,
    surplus: surplus.length,
    missingKeys: missing.slice(0, MOST_EXAMPLES),
    surplusKeys: surplus.slice(0, MOST_EXAMPLES),
  };
}
