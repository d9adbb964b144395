/**
 * Measures the rows of a table, and compares the target with the source.
 *
 * @module
 */
import type { Config } from "../config/config.ts";
import {
  fingerprintOf,
  type Side,
  type Sides,
  wholeFingerprint,
} from "../diff/find_difference.ts";
import { afterDelta, equal, type Fingerprint } from "../diff/fingerprint.ts";
import { writtenRowsSql } from "../diff/queries.ts";
import { ServiceError } from "../errors.ts";
import type { Session } from "../postgres/session.ts";
import { formatCount, formatQuantity } from "../format.ts";
import { isUserDefined } from "../tables/column_types.ts";
import { type Column, formatRelation } from "../tables/declaration.ts";
import type { Snapshot } from "./snapshot.ts";
import type { Target } from "./find_target.ts";

/** The parts of a load that its verification needs. */
interface Verification {
  readonly config: Pick<Config, "verify">;
  readonly snapshot: Pick<Snapshot, "repeatable">;
  /** Whether the transaction loads no other table. */
  readonly isAlone: boolean;
}

/** Returns the fingerprint of a side: count and content, or the count only, as VERIFY says. */
export async function measure(
  { config }: Verification,
  side: Side,
  sides: Sides,
): Promise<Fingerprint> {
  return config.verify === "content"
    ? await wholeFingerprint(side, sides)
    : await countRows(side.session, side.relation);
}

/**
 * Checks that the target holds the rows of the source.
 *
 * @throws {ServiceError} `verification_failed`, with a remedy that fits the table.
 */
export function checkHeld(
  { config, snapshot, isAlone }: Verification,
  sides: Sides,
  { hasNoSideEffects }: Pick<Target, "hasNoSideEffects">,
  held: Fingerprint,
  source: Fingerprint,
): void {
  const { table } = sides;
  const byContent = config.verify === "content";
  if (held.count !== source.count || (byContent && !equal(held, source))) {
    const checksumOf = ({ checksum }: Fingerprint) =>
      byContent ? ` (checksum ${checksum})` : "";
    throw new ServiceError(
      "verification_failed",
      `after the copy the target holds ${formatQuantity(held.count, "row")}${
        checksumOf(held)
      } where the source has ${formatCount(source.count)}${checksumOf(source)}`,
      {
        table: table.name,
        remedy: mismatchRemedy(
          sides,
          held.count === source.count,
          snapshot.repeatable.has(table.name),
          hasNoSideEffects && isAlone,
        ),
      },
    );
  }
}

/** Types whose values have parts that a server sorts by their bytes in its encoding. */
const SORTED_TYPES: readonly string[] = ["jsonb", "tsvector"];

/** Returns whether the server has infinite intervals. */
function hasInfiniteIntervals({ session }: Side): boolean {
  return Number.parseInt(session.serverVersion) >= 17;
}

/** Returns the remedy of a mismatch, by its possible causes. */
function mismatchRemedy(
  sides: Sides,
  hasAllRows: boolean,
  isRepeatable: boolean,
  hasNoSideEffects: boolean,
): string {
  const { source, target, where, columns } = sides.table;
  const isComputed = where !== undefined ||
    columns.some(({ expression }) => expression !== undefined);
  // A type can change values, and not the number of rows.
  const listed = (of: (column: Column) => boolean) =>
    columns.filter((column) => hasAllRows && of(column))
      .map(({ name }) => `"${name}"`).join(", ");
  const ofUsers = listed(({ type, layout }) =>
    isUserDefined(type) && layout !== undefined
  );
  const infinite = hasInfiniteIntervals(sides.source) &&
    !hasInfiniteIntervals(sides.target) &&
    listed(({ type }) => type.base === "interval");
  const sorted = sides.method.kind === "text" &&
    listed(({ type }) =>
      isUserDefined(type) || SORTED_TYPES.includes(type.base)
    );
  const causes = [
    ofUsers &&
    `Give the user-defined types of ${ofUsers} the same definition on both servers, or declare the columns as text in TABLES_FILE.`,
    sorted &&
    `Declare ${sorted} as text in TABLES_FILE, with an expression such as value::text. Servers of different encodings sort keys of jsonb and words of tsvector differently.`,
    infinite &&
    `Correct the infinite intervals of ${infinite} in the source. PostgreSQL 16 and older have none.`,
    isRepeatable ||
    `${
      formatRelation(source)
    } is a view. Look for a function that returns different rows each time, such as random() or clock_timestamp().`,
    isComputed &&
    "Remove functions that return different values each time, such as random(), from `where` and `expression` in TABLES_FILE.",
    hasNoSideEffects ||
    `Look for triggers, rules or foreign keys that change rows of ${
      formatRelation(target)
    }.`,
  ].filter((cause) => typeof cause === "string" && cause !== "");
  return causes.length > 0
    ? `The target was rolled back. ${causes.join(" ")}`
    : "Report this with the log: no trigger, view or function explains it.";
}

/** Rows of a delta that deleted none, in a table that nothing else changes. */
export interface Appended {
  readonly rows: number;
  /** SQL condition for the pages that had room for new rows at the end of the table. */
  readonly place: string;
}

/**
 * Returns the fingerprint of the target after a delta, without hashing unchanged
 * rows again. Returns `undefined` when a trigger or a rule also changed rows.
 *
 * Reads the last pages only, if all appended rows are there.
 */
export async function heldAfterDelta(
  { table, target: { session, relation }, method }: Sides,
  before: Fingerprint,
  deleted: Fingerprint,
  appended?: Appended,
): Promise<Fingerprint | undefined> {
  const measureWritten = async (from: string) => {
    const [row] = await session.scan(
      writtenRowsSql(from, table.columns, method),
    );
    return { written: fingerprintOf(row!), total: Number(row!.total) };
  };
  if (appended) {
    const { written } = await measureWritten(
      `${relation} where ${appended.place}`,
    );
    const total = before.count + appended.rows;
    if (written.count === appended.rows) {
      return afterDelta(before, deleted, written, total);
    }
  }
  const { written, total } = await measureWritten(relation);
  return afterDelta(before, deleted, written, total);
}

/** Returns an SQL condition for the last page of a table that is not empty, and later ones. */
export async function lastPages(
  { target: { session } }: Sides,
  oid: number,
): Promise<string> {
  const [row] = await session.query(
    `select greatest(0, pg_catalog.pg_relation_size(${oid}) / pg_catalog.current_setting('block_size')::int8 - 1)::text as page`,
  );
  return `ctid >= '(${row!.page},0)'`;
}

async function countRows(
  session: Session,
  relation: string,
): Promise<Fingerprint> {
  const [row] = await session.query(
    `select count(*)::text as count from ${relation}`,
  );
  return countAs(Number(row!.count));
}

/** Returns a fingerprint with a row count only. */
export function countAs(count: number): Fingerprint {
  return { count, checksum: "" };
}
