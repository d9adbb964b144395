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
import { identifier, literal, qualified, type Session } from "./db.ts";
import {
  bucketCount,
  type Buckets,
  bucketsSql,
  equal,
  type Fingerprint,
  HASH_PROBE,
  type HashMethod,
  inBucketsSql,
  parseBuckets,
  rowHash,
  wholeTableSql,
} from "./fingerprint.ts";
import { compareTable, type TableLoadContext } from "./table_load.ts";
import type { Column, Table } from "./tables.ts";

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

/**
 * Compares one table, as {@linkcode compareTable} does, for a pipeline whose
 * sessions had the time zone `zone`.
 */
export function compareWithMara(zone: string) {
  return async (
    context: TableLoadContext,
    table: Table,
    warehouse: Session,
  ): Promise<MaraComparison> => {
    // First as the service compares: it also checks both shapes.
    const ours = await compareTable(context, table, warehouse);
    const counts = {
      sourceCount: ours.source.count,
      targetCount: ours.target?.count ?? null,
    };
    if (ours.plan.mode === "unchanged") {
      return { ...counts, habits: [], unexplained: null };
    }
    if (!ours.target) {
      const unexplained = {
        missing: ours.source.count,
        surplus: 0,
        isAtLeast: false,
        missingKeys: [],
        surplusKeys: [],
      };
      return { ...counts, habits: [], unexplained };
    }
    await using source = await context.snapshot.openReader(table);
    const side = await describeSides(context, table, source, warehouse, zone);
    const touched = await countTouchedRows(side);
    const applicable = touched.filter(({ rows }) => rows > 0);
    const candidates = subsets(applicable);
    for (const habits of candidates) {
      const loaded = await fingerprint(source, side.asLoaded(habits), side);
      if (equal(loaded, ours.target)) {
        return { ...counts, habits, unexplained: null };
      }
    }
    return { ...counts, ...await findUnexplained(side, candidates) };
  };
}

type Touched = MaraComparison["habits"];

/** What the queries on both sides are made of. */
interface Sides {
  readonly table: Table;
  readonly source: Session;
  readonly warehouse: Session;
  readonly method: HashMethod;
  /** The source's rows as Mara with these habits would load them, as a FROM item. */
  readonly asLoaded: (habits: Touched) => string;
  /** Condition on the source that holds for rows which the habit changes. */
  readonly touches: (habit: Habit) => string;
}

async function describeSides(
  { snapshot, config }: TableLoadContext,
  table: Table,
  source: Session,
  warehouse: Session,
  zone: string,
): Promise<Sides> {
  const types = await columnTypes(source, table);
  const [probe] = await warehouse.query(`select ${HASH_PROBE} as value`);
  const isLocal = ({ name }: Column) =>
    /^(date|timestamp without time zone)$/.test(types.get(name) ?? "");
  const instant = ({ name }: Column, zone: string) =>
    `(${identifier(name)}::timestamp at time zone ${literal(zone)})`;
  const asText = ({ name }: Column) => `${identifier(name)}::text`;

  function value(column: Column, habits: ReadonlySet<Habit>): string {
    switch (column.type) {
      case "double precision":
        return `${identifier(column.name)}::double precision`;
      case "timestamp with time zone":
        return isLocal(column)
          ? instant(
            column,
            habits.has("timezone") ? zone : config.loadTimezone,
          )
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
  }

  const texts = table.columns.filter(({ type }) => type === "text");
  const conditions: Readonly<Record<Habit, readonly string[]>> = {
    timezone: table.columns.filter(isLocal).map((column) =>
      `${instant(column, zone)} <> ${instant(column, config.loadTimezone)}`
    ),
    blank_lines: texts.map((column) =>
      `pg_catalog.strpos(${asText(column)}, E'\\n\\n') > 0`
    ),
    empty_texts: texts.map((column) => `${asText(column)} = ''`),
  };
  return {
    table,
    source,
    warehouse,
    method: snapshot.hashProbe === probe!.value &&
        snapshot.encoding === warehouse.serverEncoding
      ? "record"
      : "text",
    asLoaded(habits) {
      const names = new Set(habits.map(({ habit }) => habit));
      const columns = table.columns.map((column) =>
        `${value(column, names)} as ${identifier(column.name)}`
      );
      return `(select ${columns} from ${qualified(table.source)}) as loaded`;
    },
    touches: (habit) => conditions[habit].join(" or ") || "false",
  };
}

/** Types of the source's columns, as `format_type` spells them without a length. */
async function columnTypes(
  source: Session,
  table: Table,
): Promise<ReadonlyMap<string, string>> {
  const rows = await source.query(
    `select attname as name, pg_catalog.format_type(atttypid, null) as type
     from pg_catalog.pg_attribute
     where attrelid = ${literal(qualified(table.source))}::regclass
       and attnum > 0 and not attisdropped`,
  );
  return new Map(rows.map(({ name, type }) => [name, type]));
}

async function countTouchedRows(sides: Sides): Promise<Touched> {
  const [row] = await sides.source.query(
    `select ${
      HABITS.map((habit) =>
        `count(*) filter (where ${sides.touches(habit)}) as ${habit}`
      )
    } from ${qualified(sides.table.source)}`,
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

async function fingerprint(
  session: Session,
  from: string,
  { table, method }: Sides,
): Promise<Fingerprint> {
  const [row] = await session.query(
    wholeTableSql(from, table.columns, method),
  );
  return { count: Number(row!.count), checksum: row!.checksum };
}

/** The rows that no habit explains, under the habits that explain most. */
async function findUnexplained(
  sides: Sides,
  candidates: readonly Touched[],
): Promise<Pick<MaraComparison, "habits" | "unexplained">> {
  const { table, source, warehouse } = sides;
  const target = qualified(table.target);
  const [size] = await warehouse.query(
    `select count(*)::text as rows from ${target}`,
  );
  const buckets = bucketCount(Number(size!.rows));
  const bucketsOf = async (session: Session, from: string) => {
    const [row] = await session.query(
      bucketsSql(from, table.columns, sides.method, buckets),
    );
    return parseBuckets(row!.buckets);
  };
  const present = await bucketsOf(warehouse, target);
  let nearest: { habits: Touched; differing: Differing } | undefined;
  for (const habits of [[], ...candidates]) {
    const differing = differingBuckets(
      await bucketsOf(source, sides.asLoaded(habits)),
      present,
    );
    if (!nearest || differing.rows < nearest.differing.rows) {
      nearest = { habits, differing };
    }
  }
  const { habits, differing } = nearest!;
  const looked = differing.buckets.slice(0, differing.within);
  const [wanted, found] = await Promise.all([
    rowsIn(source, sides.asLoaded(habits), sides, buckets, looked),
    rowsIn(warehouse, target, sides, buckets, looked),
  ]);
  return {
    habits,
    unexplained: {
      ...tellApart(wanted, found),
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

function differingBuckets(wanted: Buckets, present: Buckets): Differing {
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
  session: Session,
  from: string,
  { table, method }: Sides,
  buckets: number,
  changed: readonly number[],
): Promise<Map<string, (string | null)[]>> {
  const rows = await session.query(
    `select ${rowHash(table.columns, method)}::text as hash, ${
      identifier(table.columns[0]!.name)
    } as key from ${from} where ${
      inBucketsSql(table.columns, method, {
        buckets,
        changed,
        sourceRows: 0,
        targetRows: 0,
      })
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
