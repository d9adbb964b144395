/**
 * Names the rows that differ, on top of a plan that says where they are.
 *
 * A row is named by its key, or by all its columns. Each round reads the hashes of
 * the rows in a part of all names, so memory does not grow with the table. The
 * values of a few rows are read last.
 *
 * @module
 */
import type { Column } from "../tables/declaration.ts";
import type { Plan, RowDifference, Sides } from "./find_difference.ts";
import type { Fingerprint } from "./fingerprint.ts";
import { hashSql } from "./queries.ts";
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

/** SQL condition that includes every row that differs, and its copies on both sides. */
interface Scope {
  readonly condition: string;
  /** Number of rows of one side, approximately. */
  readonly rows: number;
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
  const rows = Math.max(source.count, target.count);
  const scope = plan.mode === "delta"
    ? scopeOf(sides, plan.difference)
    : { condition: "true", rows };
  for (const naming of namings) {
    const search = new Search(sides, naming, scope, max);
    const found = await search.findNames();
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

function scopeOf(
  { table: { columns }, method }: Sides,
  { source, target }: RowDifference,
): Scope {
  const hashes = new Set([...source.hashes(), ...target.hashes()]);
  return {
    condition: hashSql(columns, method, hashes),
    rows: Math.max(source.count, target.count),
  };
}

/** Number of parts of all names: the values of the lower bits of a hash. */
const PARTS = 65_536;

/** Number of rows of the first part, and the maximum number of a part. */
const FIRST_ROWS = 16_384;
const MAX_ROWS = 131_072;

/** Maximum number of different rows that a side may have in a part. */
const MAX_GROUPS = 2 * MAX_ROWS;

/** A row that was read, and the number of its copies on either side. */
interface ReadRow {
  readonly name: string;
  readonly values: Values;
  source: number;
  target: number;
}

const SIDES = ["source", "target"] as const;

/** A search of the rows that differ, with one naming. */
class Search {
  readonly #sides: Sides;
  readonly #naming: Naming;
  readonly #scope: Scope;
  readonly #max: number;
  readonly #rowHash: string;
  /** Its seed does not change, so that equal data give equal rows. */
  readonly #nameHash: string;
  readonly #splitHash: string;

  constructor(sides: Sides, naming: Naming, scope: Scope, max: number) {
    this.#sides = sides;
    this.#naming = naming;
    this.#scope = scope;
    this.#max = max;
    const unseeded: HashMethod = { ...sides.method, seed: 0n };
    this.#rowHash = rowHash(sides.table.columns, sides.method);
    this.#nameHash = rowHash(naming.columns, unseeded);
    this.#splitHash = naming.splitBy === "name"
      ? this.#nameHash
      : keyHash(naming.columns, unseeded);
  }

  /**
   * Returns the hashes of names whose rows differ, at most the maximum. Returns
   * `undefined` when the hashes of the naming do not split the table.
   */
  async findNames(): Promise<
    { names: readonly string[]; total: number | null } | undefined
  > {
    const partsOf = (rows: number) =>
      Math.min(PARTS, Math.ceil(PARTS * rows / Math.max(this.#scope.rows, 1)));
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
          names.add(row.slice(0, row.indexOf(" ")));
        }
      }
      from = to;
      width = Math.max(width, Math.min(4 * width, partsOf(MAX_ROWS)));
    }
    return {
      names: [...names].sort().slice(0, this.#max),
      total: from < PARTS ? null : names.size,
    };
  }

  /**
   * Returns the number of copies of each row in a part, by the hashes of its name and
   * of the row. Returns `undefined` when there are too many rows.
   */
  async #readGroups(
    side: typeof SIDES[number],
    from: number,
    to: number,
  ): Promise<ReadonlyMap<string, string> | undefined> {
    const { session, relation } = this.#sides[side];
    const inPart = from === 0 && to === PARTS
      ? "true"
      : `(${this.#splitHash} & ${
        PARTS - 1
      }::bigint) between ${from}::bigint and ${to - 1}::bigint`;
    const [row] = await session.scan<{ count: string; groups: string }>(
      `select pg_catalog.count(*)::text as count,
         pg_catalog.string_agg(name::text || ' ' || hash::text || ' ' || copies::text, ',') as groups
       from (select name, hash, pg_catalog.count(*) as copies
         from (select ${this.#nameHash} as name, ${this.#rowHash} as hash
           from ${relation} where ${this.#scope.condition} and ${inPart} offset 0) hashes
         group by 1, 2 limit ${MAX_GROUPS + 1}) groups`,
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
      for (const { hash, name, copies, values } of read[index]!) {
        const row = rows.get(hash) ?? {
          name,
          values: JSON.parse(values) as Values,
          source: 0,
          target: 0,
        };
        row[side] = Number(copies);
        rows.set(hash, row);
      }
    }
    const differing = [...rows.values()].filter((row) =>
      row.source !== row.target
    );
    return this.#naming.kind === "key"
      ? await this.#pairByKey(differing)
      : differing.map((row) => this.#describe(row));
  }

  async #readSide(side: typeof SIDES[number], names: readonly string[]) {
    if (names.length === 0) return [];
    const { session } = this.#sides[side];
    const list = (of: (column: Column) => string, type: string) =>
      `array[${this.#sides.table.columns.map(of)}]::${type}[]`;
    return await session.scan<
      { hash: string; name: string; copies: string; values: string }
    >(
      `select hash::text, name::text, pg_catalog.count(*)::text as copies, pg_catalog.min(values collate "C") as values
       from (select ${this.#nameHash} as name, ${this.#rowHash} as hash, pg_catalog.json_build_array(${
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
  #rowsOf(side: typeof SIDES[number], names: readonly string[]): string {
    return `${
      this.#sides[side].relation
    } where ${this.#scope.condition} and ${this.#nameHash} = any ('{${names}}'::int8[])`;
  }

  async #pairByKey(
    differing: readonly ReadRow[],
  ): Promise<DifferingRow[] | undefined> {
    const pairs = [...Map.groupBy(differing, ({ name }) => name).values()]
      .map((rows) => ({
        sources: rows.filter((row) => row.source > 0),
        targets: rows.filter((row) => row.target > 0),
      }));
    const isUnique = pairs.flatMap((pair) => Object.values(pair)).every((
      rows,
    ) =>
      rows.length === 0 ||
      rows.length === 1 && rows[0]!.source + rows[0]!.target === 1
    );
    if (!isUnique) return undefined;
    const differences = await compareValues(
      this.#sides,
      pairs.flatMap(({ sources: [source], targets: [target] }) =>
        source && target
          ? [{
            name: source.name,
            source: source.values,
            target: target.values,
          }]
          : []
      ),
      this.#nameHash,
      (side, names) => this.#rowsOf(side, names),
    );
    return pairs.map(({ sources: [source], targets: [target] }) => {
      const { name, values } = (source ?? target)!;
      const row = this.#describe({
        name,
        values,
        source: source ? 1 : 0,
        target: target ? 1 : 0,
      });
      const columns = differences.get(name);
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
