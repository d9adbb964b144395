/**
 * Names the rows that differ, by their key or by all their columns.
 *
 * First it finds the names, as hashes. They come from the difference that a plan
 * contains. Without one, it compares all names, one part after the other. Then it reads
 * every row with these names on both sides, and counts copies. Memory does not grow with
 * the table.
 *
 * @module
 */
import type { Column } from "../tables/declaration.ts";
import type { Plan, RowDifference, Sides } from "./find_difference.ts";
import type { Fingerprint } from "./fingerprint.ts";
import { ctidSql, hashSql } from "./queries.ts";
import type { RowSet, SideName } from "./row_matcher.ts";
import {
  type ColumnDifference,
  compareValues,
  MAX_CHARACTERS,
  READ_CHARACTERS,
  type Values,
} from "./value_differences.ts";
import {
  bytesOf,
  type HashMethod,
  keyHash,
  rowHash,
  textOf,
} from "./row_hash.ts";

/** The rows of a table that differ, as documents show them. */
export interface DifferingRows {
  /** The columns that name a row. */
  readonly named_by: "key" | "all columns";
  /** Whether a key is declared and does not name the rows, because it is not unique. */
  readonly is_key_ambiguous: boolean;
  /** Number of rows that differ, or `null` when the search ended before all were found. */
  readonly total: number | null;
  readonly rows: readonly DifferingRow[];
}

/** One row that differs. */
export interface DifferingRow {
  /** The values of the columns that name the row, as text. */
  readonly row: Readonly<Record<string, string | null>>;
  /** The columns of `row` whose text is shortened. */
  readonly shortened?: readonly string[];
  /** Number of times that each side has the row. */
  readonly source: number;
  readonly target: number;
  /** The columns that differ, where both sides have a row with the key. */
  readonly columns?: readonly ColumnDifference[];
}

/** The columns that name a row, and the columns whose hash splits all names into parts. */
interface Naming {
  readonly kind: DifferingRows["named_by"];
  readonly columns: readonly Column[];
  /** The first column costs less, but a frequent value fills one part. */
  readonly splitBy: "first column" | "name";
}

/**
 * Returns rows that differ, at most `max`. Equal data give equal rows. If the key is
 * not unique, all columns name a row.
 */
export async function findDifferingRows(
  sides: Sides,
  { plan, source, target }: {
    readonly plan: Plan;
    readonly source: Fingerprint;
    readonly target: Fingerprint;
  },
  max: number,
): Promise<DifferingRows> {
  const { columns, key = [] } = sides.table;
  const keyColumns = key.map((name) => columns.find((c) => c.name === name)!);
  const all = { kind: "all columns", columns } as const;
  const namings: Naming[] = [
    { kind: "key", columns: keyColumns, splitBy: "name" },
    { ...all, splitBy: "first column" },
    { ...all, splitBy: "name" },
  ];
  if (key.length === 0) namings.shift();
  if (plan.mode === "unchanged") {
    const named_by = namings[0]!.kind;
    return { named_by, is_key_ambiguous: false, total: 0, rows: [] };
  }
  for (const naming of namings) {
    const search = new Search(sides, naming, max);
    const found = plan.mode === "delta"
      ? await search.readNames(plan.difference)
      : await search.findNames(Math.max(source.count, target.count));
    const named = found && await search.readRows(found.names);
    if (!named) continue;
    return {
      named_by: naming.kind,
      is_key_ambiguous: naming.kind !== namings[0]!.kind,
      total: found.total,
      rows: named.sort(byName),
    };
  }
  throw new Error("the hashes of the rows are not spread");
}

/** Number of parts of all names: the values of the lower bits of a hash. */
const PARTS = 65_536;

/** Number of rows of the first part, and the maximum number of a part. */
const FIRST_ROWS = 16_384;
const MAX_ROWS = 131_072;

/** Maximum number of different rows that a side may have in a part, and of rows whose names are read. */
const MAX_GROUPS = 2 * MAX_ROWS;

/** Rows with one hash, and the number of their copies on either side. */
interface ReadRow {
  readonly name: string;
  readonly values: Values;
  source: number;
  target: number;
  /** The ctid of a copy on either side, where it is stable. */
  readonly ids: Partial<Record<SideName, string>>;
}

/** Names of rows that differ: each has the hash of the name, and of its first column. */
interface FoundNames {
  readonly names: readonly string[];
  readonly total: number | null;
}

const SIDES = ["source", "target"] as const;

/** A search of the rows that differ, with one naming. */
class Search {
  readonly #sides: Sides;
  readonly #naming: Naming;
  readonly #max: number;
  readonly #rowHash: string;
  /** The seed of names does not change, so that equal data give equal rows. */
  readonly #nameHash: string;
  readonly #firstHash: string;

  constructor(sides: Sides, naming: Naming, max: number) {
    this.#sides = sides;
    this.#naming = naming;
    this.#max = max;
    const unseeded: HashMethod = { ...sides.method, seed: 0n };
    this.#rowHash = rowHash(sides.table.columns, sides.method);
    this.#nameHash = rowHash(naming.columns, unseeded);
    this.#firstHash = keyHash(naming.columns, unseeded);
  }

  /** Returns the names of the rows of a difference. */
  async readNames(difference: RowDifference): Promise<FoundNames> {
    const names = new Set<string>();
    const lists = await Promise.all(
      SIDES.map((side) => this.#readNamesOf(side, difference[side])),
    );
    for (const list of lists) for (const name of list) names.add(name);
    const isWhole = SIDES.every((side) => difference[side].count <= MAX_GROUPS);
    return this.#firstOf(names, isWhole);
  }

  async #readNamesOf(side: SideName, rows: RowSet): Promise<string[]> {
    if (rows.count === 0) return [];
    const { session, relation, hasStableCtid } = this.#sides[side];
    const { table, method } = this.#sides;
    const condition = hasStableCtid
      ? ctidSql(rows.ctids().take(MAX_GROUPS))
      : hashSql(rowHash(table.columns, method), rows.hashes().take(MAX_GROUPS));
    const [row] = await session.scan<{ names: string | null }>(
      `select pg_catalog.string_agg(distinct ${this.#nameHash}::text || ' ' || ${this.#firstHash}::text, ',') as names
       from ${relation} where ${condition}`,
    );
    return (row!.names ?? "").split(",").filter(Boolean);
  }

  #firstOf(names: ReadonlySet<string>, isWhole: boolean): FoundNames {
    return {
      names: [...names].sort().slice(0, this.#max),
      total: isWhole ? names.size : null,
    };
  }

  /**
   * Compares tables of about `rows` rows until enough names are found. Returns
   * `undefined` when the hashes of the naming do not split the table.
   */
  async findNames(rows: number): Promise<FoundNames | undefined> {
    const partsOf = (count: number) =>
      Math.min(PARTS, Math.ceil(PARTS * count / Math.max(rows, 1)));
    const names = new Set<string>();
    let width = partsOf(FIRST_ROWS);
    const minWidth = Math.max(1, width / 64);
    let from = 0;
    while (from < PARTS && names.size < this.#max) {
      const to = Math.min(from + width, PARTS);
      const [source, target] = await Promise.all(
        SIDES.map((side) => this.#readGroups(side, from, to)),
      );
      if (!source || !target) {
        width = Math.floor(width / 4);
        if (this.#naming.splitBy === "first column" || width < minWidth) {
          return undefined;
        }
        continue;
      }
      for (const row of new Set([...source.keys(), ...target.keys()])) {
        if (source.get(row) !== target.get(row)) {
          names.add(row.slice(0, row.lastIndexOf(" ")));
        }
      }
      from = to;
      width = Math.max(width, Math.min(4 * width, partsOf(MAX_ROWS)));
    }
    return this.#firstOf(names, from >= PARTS);
  }

  /**
   * Returns the number of copies of each row in a part, by its name and its hash.
   * Returns `undefined` when there are too many rows.
   */
  async #readGroups(
    side: SideName,
    from: number,
    to: number,
  ): Promise<ReadonlyMap<string, string> | undefined> {
    const { session, relation } = this.#sides[side];
    const hash = this.#naming.splitBy === "name"
      ? this.#nameHash
      : this.#firstHash;
    const inPart = from === 0 && to === PARTS
      ? "true"
      : `(${hash} & ${PARTS - 1}::bigint) between ${from}::bigint and ${
        to - 1
      }::bigint`;
    const [row] = await session.scan<{ count: string; groups: string }>(
      `select pg_catalog.count(*)::text as count,
         pg_catalog.string_agg(name::text || ' ' || first::text || ' ' || hash::text || ' ' || copies::text, ',') as groups
       from (select name, first, hash, pg_catalog.count(*) as copies
         from (select ${this.#nameHash} as name, ${this.#firstHash} as first, ${this.#rowHash} as hash
           from ${relation} where ${inPart} offset 0) hashes
         group by 1, 2, 3 limit ${MAX_GROUPS + 1}) groups`,
    );
    if (Number(row!.count) > MAX_GROUPS) return undefined;
    return new Map(
      (row!.groups ?? "").split(",").filter(Boolean).map((line) => {
        const end = line.lastIndexOf(" ");
        return [line.slice(0, end), line.slice(end + 1)];
      }),
    );
  }

  /** Returns the differing rows of the names. Returns `undefined` when the key is not unique. */
  async readRows(
    names: readonly string[],
  ): Promise<DifferingRow[] | undefined> {
    const rows = new Map<string, ReadRow>();
    const read = await Promise.all(
      SIDES.map((side) => this.#readSide(side, names)),
    );
    for (const [index, side] of SIDES.entries()) {
      if (read[index]!.length > 2 * this.#max) return undefined;
      for (const { hash, name, copies, values, id } of read[index]!) {
        const row = rows.get(hash) ?? {
          name,
          values: JSON.parse(values) as Values,
          source: 0,
          target: 0,
          ids: {},
        };
        row[side] = Number(copies);
        row.ids[side] = id;
        rows.set(hash, row);
      }
    }
    return this.#naming.kind === "key"
      ? await this.#pairByKey([...rows.values()])
      : [...rows.values()].filter((row) => row.source !== row.target)
        .map((row) => this.#describe(row));
  }

  async #readSide(side: SideName, names: readonly string[]) {
    if (names.length === 0) return [];
    const { session, hasStableCtid } = this.#sides[side];
    const list = (of: (column: Column) => string, type: string) =>
      `array[${this.#sides.table.columns.map(of)}]::${type}[]`;
    // Compiling the values costs more than it saves for a few rows.
    return await session.query<
      { hash: string; name: string; copies: string; values: string; id: string }
    >(
      `select hash::text, name::text, pg_catalog.count(*)::text as copies, pg_catalog.min(values collate "C") as values, pg_catalog.min(id)::text as id
       from (select ${this.#nameHash} as name, ${this.#rowHash} as hash, ${
        hasStableCtid ? "ctid" : "null::tid"
      } as id, pg_catalog.json_build_array(${
        list((c) => `pg_catalog.left(${textOf(c)}, ${READ_CHARACTERS})`, "text")
      }, ${
        list((c) => `pg_catalog.octet_length(${bytesOf(textOf(c))})`, "int4")
      }, ${
        list((c) => `${rowHash([c], this.#sides.method)}::text`, "text")
      })::text as values
         from ${this.#rowsOf(side, names)} offset 0) rows
       group by 1, 2 limit ${2 * this.#max + 1}`,
    );
  }

  /** Returns SQL of the rows with these names. */
  #rowsOf(side: SideName, names: readonly string[]): string {
    const hashes = names.map((name) => name.split(" "));
    const conditions = [this.#nameHash, this.#firstHash].map((hash, i) =>
      `${hash} = any ('{${[
        ...new Set(hashes.map((pair) => pair[i])),
      ]}}'::int8[])`
    );
    // The hash of the first column costs less than that of a name of several columns.
    return `${this.#sides[side].relation} where ${
      hashes[0]!.length > 1 ? `${conditions[1]} and ` : ""
    }${conditions[0]}`;
  }

  /** Pairs the rows of both sides. Returns `undefined` when the key is not unique. */
  async #pairByKey(
    rows: readonly ReadRow[],
  ): Promise<DifferingRow[] | undefined> {
    const pairs = [...Map.groupBy(rows, ({ name }) => name).values()]
      .map((group) => ({
        source: group.find((row) => row.source > 0),
        target: group.find((row) => row.target > 0),
        isUnique: SIDES.every((side) =>
          group.reduce((sum, row) => sum + row[side], 0) <= 1
        ),
      }));
    if (!pairs.every(({ isUnique }) => isUnique)) return undefined;
    const changed = pairs.flatMap(({ source, target }) =>
      source && target
        ? [{
          name: source.name,
          source: source.values,
          target: target.values,
          ids: { source: source.ids.source!, target: target.ids.target! },
        }]
        : []
    );
    const ids = new Map(changed.map(({ name, ids }) => [name, ids]));
    const differences = await compareValues(
      this.#sides,
      changed,
      this.#nameHash,
      (side, names) =>
        this.#sides[side].hasStableCtid
          ? `${this.#sides[side].relation} where ${
            ctidSql(names.map((name) => ids.get(name)![side]))
          }`
          : this.#rowsOf(side, names),
    );
    return pairs.filter((pair) => pair.source !== pair.target).map((pair) => {
      const { source, target } = pair;
      const row = this.#describe({
        ...(source ?? target)!,
        source: source ? 1 : 0,
        target: target ? 1 : 0,
      });
      const columns = source && target && differences.get(source.name);
      return columns ? { ...row, columns } : row;
    });
  }

  #describe({ values, source, target }: ReadRow): DifferingRow {
    const { columns } = this.#sides.table;
    const texts = this.#naming.columns.map((column) => {
      const text = values[0][columns.indexOf(column)]!;
      const letters = [...text ?? ""];
      return {
        name: column.name,
        text: text && letters.slice(0, MAX_CHARACTERS).join(""),
        isShortened: letters.length > MAX_CHARACTERS,
      };
    });
    const shortened = texts.filter(({ isShortened }) => isShortened)
      .map(({ name }) => name);
    return {
      row: Object.fromEntries(texts.map(({ name, text }) => [name, text])),
      ...(shortened.length > 0 ? { shortened } : {}),
      source,
      target,
    };
  }
}

/** Orders rows by their names, numbers by value. */
function byName(a: DifferingRow, b: DifferingRow): number {
  const others = Object.values(b.row);
  for (const [i, text] of Object.values(a.row).entries()) {
    const [here, there] = [text ?? "", others[i] ?? ""];
    if (here === there) continue;
    const distance = Number(here) - Number(there);
    return distance || (here < there ? -1 : 1);
  }
  return 0;
}
