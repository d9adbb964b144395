/**
 * Compares a table that a Mara pipeline loaded with the source, and separates Mara's
 * habits from other differences.
 *
 * Mara pipes `psql` through `sed '/^$/d'` into `psql`, and sets `PGTZ` for both
 * (mara_db/shell.py). So a DATE or TIMESTAMP becomes an instant in Mara's time zone.
 * Each value takes the form of its text. Blank lines inside a text vanish. Without
 * `csv_format`, an empty text becomes NULL, and a backslash escapes the next character.
 * All other values stay the same.
 *
 * @module
 */
import { compareTable } from "../sync/compare_tables.ts";
import type { Session } from "../postgres/session.ts";
import { identifier, literal, qualified } from "../postgres/sql.ts";
import {
  diffRows,
  type RowDifference,
  selectionOf,
  type Side,
  type Sides,
  wholeFingerprint,
} from "../diff/find_difference.ts";
import { equal } from "../diff/fingerprint.ts";
import { castToTarget } from "../diff/row_hash.ts";
import { formatTypeName } from "../tables/column_types.ts";
import { resolvedIn, type Snapshot } from "../sync/snapshot.ts";
import { sidesOf } from "../sync/sides.ts";
import { withoutNewColumns } from "../sync/new_columns.ts";
import {
  BASE_TYPE,
  type Column,
  type TableDeclaration,
} from "../tables/declaration.ts";
import { findTarget } from "../sync/find_target.ts";

/** The changes that Mara makes to values. */
const HABITS = [
  "timezone",
  "text_form",
  "blank_lines",
  "backslashes",
  "empty_texts",
] as const;

/** One of {@linkcode HABITS}. */
export type Habit = (typeof HABITS)[number];

/** The comparison of one table that Mara loaded. */
export interface MaraComparison {
  readonly sourceCount: number;
  /** `null` when the target does not exist. */
  readonly targetCount: number | null;
  /** Habits that explain differences, with the number of source rows that each changes. */
  readonly habits: readonly { readonly habit: Habit; readonly rows: number }[];
  /** The differences that no habit explains, or `null` when the habits explain everything. */
  readonly unexplained: Unexplained | null;
}

/** Rows that only one side has after the habits are applied. */
export interface Unexplained {
  readonly missing: number;
  readonly surplus: number;
  /** Whether more rows differ, too many to be counted. */
  readonly isAtLeast: boolean;
  /** Examples of the first column, such as `mql_id`. */
  readonly missingKeys: readonly (string | null)[];
  readonly surplusKeys: readonly (string | null)[];
}

/** Maximum number of example keys on each side. */
const MAX_EXAMPLES = 5;

/** The time zone of Mara's sessions, and LOAD_TIMEZONE. */
export interface Zones {
  readonly mara: string;
  readonly service: string;
}

/**
 * Returns a comparison for a pipeline in Mara's time zone. It first compares as a
 * load does, and checks the columns of both sides. Then it compares the target with
 * the source rows as Mara would load them.
 */
export function compareWithMara(zones: Zones) {
  return async (
    snapshot: Snapshot,
    declaration: TableDeclaration,
    warehouse: Session,
  ): Promise<MaraComparison> => {
    const compared = await compareTable(snapshot, declaration, warehouse);
    const counts = {
      sourceCount: compared.source.count,
      targetCount: compared.target?.count ?? null,
    };
    if (compared.plan.mode === "unchanged") {
      return { ...counts, habits: [], unexplained: null };
    }
    if (!compared.target) {
      const unexplained = {
        missing: compared.source.count,
        surplus: 0,
        isAtLeast: false,
        missingKeys: [],
        surplusKeys: [],
      };
      return { ...counts, habits: [], unexplained };
    }
    using source = await snapshot.openReader(declaration);
    const found = await findTarget(declaration, warehouse);
    const { table } = withoutNewColumns(
      resolvedIn(snapshot, declaration).table,
      found,
    );
    const target = { ...found, relation: qualified(table.target) };
    const sides = sidesOf(table, snapshot, source, warehouse, target);
    const values = await describeValues(sides, zones);
    const changes = await countChangedRows(sides, values);
    const candidates = subsets(changes.filter(({ rows }) => rows > 0));
    for (const habits of candidates) {
      const loaded = asLoaded(sides, values, habits);
      if (equal(await wholeFingerprint(loaded, sides), compared.target)) {
        return { ...counts, habits, unexplained: null };
      }
    }
    return { ...counts, ...await findUnexplained(sides, values, candidates) };
  };
}

type Changes = MaraComparison["habits"];

/** The effect of the habits on the columns of the source, as SQL. */
interface Values {
  readonly value: (column: Column, habits: ReadonlySet<Habit>) => string;
  /** SQL conditions. At least one is true for each row that the habit changes. */
  readonly changes: Readonly<Record<Habit, readonly string[]>>;
}

/** Types whose text can contain line breaks. Arrays are others. */
const TEXTUAL = new Set(["text", "character varying", "character", "json"]);

async function describeValues(sides: Sides, zones: Zones): Promise<Values> {
  const { columns } = sides.table;
  const types = await sourceTypes(sides);
  const isLocal = ({ name, type }: Column) =>
    type.base === "timestamp with time zone" && !type.isArray &&
    /^(date|timestamp without time zone)$/.test(types.get(name)!);
  const instant = ({ name }: Column, zone: string) =>
    `(${identifier(name)}::timestamp at time zone ${literal(zone)})`;
  /** Returns the value of the text that `psql` prints, where a cast has another value. */
  const fromText = ({ name, type }: Column) => {
    const value = identifier(name);
    switch (`${types.get(name)} to ${type.base}`) {
      case "real to double precision":
        return `pg_catalog.float8in(pg_catalog.float4out(${value}))`;
      case "character to text":
      case "character to character varying":
        return `pg_catalog.textin(pg_catalog.bpcharout(${value}))`;
    }
  };
  const isTextual = ({ type }: Column) =>
    type.isArray || TEXTUAL.has(type.base);
  const isPadded = ({ type }: Column) =>
    type.base === "character" && !type.isArray;
  const asText = (column: Column) => `${castToTarget(column)}::text`;
  const texts = columns.filter(isTextual);
  return {
    value(column, habits) {
      if (isLocal(column)) {
        const { mara, service } = zones;
        return instant(column, habits.has("timezone") ? mara : service);
      }
      const value = habits.has("text_form") && fromText(column) ||
        castToTarget(column);
      if (!isTextual(column)) return value;
      const lines = habits.has("blank_lines")
        ? `pg_catalog.regexp_replace(${value}::text, E'\\n{2,}', E'\\n', 'g')`
        : `${value}::text`;
      const text = habits.has("backslashes") ? unescaped(lines) : lines;
      // The target pads a CHAR again. A cast without a length would not.
      if (isPadded(column)) return `(${text})::${formatTypeName(column.type)}`;
      return habits.has("empty_texts") ? `nullif(${text}, '')` : text;
    },
    changes: {
      timezone: columns.filter(isLocal).map((column) =>
        `${instant(column, zones.mara)} <> ${instant(column, zones.service)}`
      ),
      text_form: columns.flatMap((column) => {
        const value = fromText(column);
        const cast = isTextual(column) ? asText(column) : castToTarget(column);
        return value ? [`${value} <> ${cast}`] : [];
      }),
      blank_lines: texts.map((column) =>
        `pg_catalog.strpos(${asText(column)}, E'\\n\\n') > 0`
      ),
      backslashes: texts.map((column) =>
        `pg_catalog.strpos(${asText(column)}, E'\\\\') > 0`
      ),
      // `psql` prints a CHAR with its padding.
      empty_texts: texts.filter((column) => !isPadded(column))
        .map((column) => `${asText(column)} = ''`),
    },
  };
}

/**
 * Returns the text as COPY reads it in text format. Leaves out escapes of a character
 * by its number.
 */
function unescaped(text: string): string {
  return String
    .raw`(case when pg_catalog.strpos(${text}, E'\\') = 0 then ${text} else (
    select pg_catalog.string_agg(case pg_catalog.left(part[1], 1) when E'\\'
      then pg_catalog.translate(pg_catalog.substr(part[1], 2), 'bfnrtv', E'\b\f\n\r\t\x0B')
      else part[1] end, '' order by number)
    from pg_catalog.regexp_matches(${text}, E'\\\\.|[^\\\\]+', 'g') with ordinality parts (part, number)) end)`;
}

/** Returns the types of the source's columns and expressions, without a length. A domain has its base type. */
async function sourceTypes(
  { source, table: { columns } }: Sides,
): Promise<ReadonlyMap<string, string>> {
  const rows = await source.session.query(
    `select a.name, pg_catalog.format_type(base.oid, null) as type
     from (select 1) one left join (select * from ${source.relation} limit 0) q on true
       cross join lateral (values ${
      columns.map(({ name }) =>
        `(${literal(name)}::text, pg_catalog.pg_typeof(q.${
          identifier(name)
        })::oid, -1)`
      )
    }) a (name, atttypid, atttypmod) cross join lateral ${BASE_TYPE} base`,
  );
  return new Map(rows.map(({ name, type }) => [name, type]));
}

/** Returns the source as Mara with these habits would load it. */
function asLoaded(
  { table, source }: Sides,
  { value }: Values,
  habits: Changes,
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

async function countChangedRows(
  { source }: Sides,
  { changes }: Values,
): Promise<Changes> {
  const [row] = await source.session.query(
    `select ${
      HABITS.map((habit) =>
        `count(*) filter (where ${
          changes[habit].join(" or ") || "false"
        }) as ${habit}`
      )
    } from ${source.relation}`,
  );
  return HABITS.map((habit) => ({ habit, rows: Number(row![habit]) }));
}

/** Returns every non-empty subset of the habits. Larger ones are first, because most pipelines have all habits. */
function subsets(habits: Changes): Changes[] {
  return habits
    .reduce<Changes[]>(
      (sets, habit) => [...sets, ...sets.map((set) => [...set, habit])],
      [[]],
    )
    .filter((set) => set.length > 0)
    .sort((a, b) => b.length - a.length);
}

/** Finds the habits that explain the most rows, and the rows that these do not explain. */
async function findUnexplained(
  sides: Sides,
  values: Values,
  candidates: readonly Changes[],
): Promise<Pick<MaraComparison, "habits" | "unexplained">> {
  let nearest: Differing | undefined;
  for (const habits of [[], ...candidates]) {
    const loaded = {
      ...sides,
      source: asLoaded(sides, values, habits),
    };
    const { source, target, difference } = await diffRows(loaded);
    const rows = difference.isWhole
      ? difference.source.count + difference.target.count
      : source.count + target.count;
    if (!nearest || rows < nearest.rows) {
      nearest = { habits, sides: loaded, difference, rows };
    }
  }
  const { habits, difference } = nearest!;
  const { source, target } = selectionOf(nearest!.sides, difference);
  const first = [0, MAX_EXAMPLES] as const;
  const { relation } = sides.target;
  const [missingKeys, surplusKeys] = await Promise.all([
    firstColumn(sides, sides.source.session, source(first)),
    firstColumn(
      sides,
      sides.target.session,
      `${relation} where ${target(first)}`,
    ),
  ]);
  return {
    habits,
    unexplained: {
      missing: difference.source.count,
      surplus: difference.target.count,
      isAtLeast: !difference.isWhole,
      missingKeys,
      surplusKeys,
    },
  };
}

/** The rows that differ after the habits are applied. */
interface Differing {
  readonly habits: Changes;
  readonly sides: Sides;
  readonly difference: RowDifference;
  /** Number of rows, both sides added. */
  readonly rows: number;
}

/** Returns the first column of the rows, as text. */
async function firstColumn(
  { table: { columns } }: Sides,
  session: Session,
  from: string,
): Promise<(string | null)[]> {
  const rows = await session.query(
    `select ${identifier(columns[0]!.name)}::text as key from ${from}`,
  );
  return rows.map(({ key }) => key);
}
