/**
 * Stops a load that would remove most rows of a target, such as after an accident in
 * the source.
 *
 * @module
 */
import type { Sides } from "../diff/find_difference.ts";
import { formatCount, formatQuantity } from "../format.ts";
import { formatRelation } from "../tables/declaration.ts";
import { tableError } from "./table_errors.ts";

/** The minimum number of rows of a target that the guard protects. */
const MIN_GUARDED_ROWS = 100;

/** The limit of a run. A table's own limit takes precedence over `maxShrink`. */
export interface ShrinkLimit {
  /** Whether the run may remove any number of rows. */
  readonly allowShrink: boolean;
  /** The share of a target's rows that a load may remove. */
  readonly maxShrink: number;
}

/** Numbers of rows, where a comparison has counted them. */
interface Counts {
  readonly source?: { readonly count: number } | undefined;
  readonly target?: { readonly count: number } | null | undefined;
}

/**
 * Checks that the source has enough of the rows that the target has now. Counts those
 * that are not known.
 *
 * @throws {ServiceError} `would_shrink` with both numbers.
 */
export async function checkShrink(
  { allowShrink, ...limit }: ShrinkLimit,
  { table, source, target }: Sides,
  known: Counts,
): Promise<void> {
  const maxShrink = table.maxShrink ?? limit.maxShrink;
  if (allowShrink || maxShrink === 1) return;
  const { session, relation } = target;
  const before = known.target?.count ??
    await count(session, `select from ${relation}`);
  if (before < MIN_GUARDED_ROWS) return;
  // A decimal fraction is not exact, and the result must not exceed it for that reason.
  const minimum = Math.ceil(before * (1 - maxShrink) - 1e-6);
  const after = known.source?.count ?? await count(
    source.session,
    `select from ${source.relation} limit ${minimum}`,
  );
  if (after >= minimum) return;
  throw tableError(
    table.name,
    "would_shrink",
    `the source has ${formatQuantity(after, "row")} where ${
      formatRelation(table.target)
    } has ${formatCount(before)}, and ${
      table.maxShrink === undefined ? "MAX_SHRINK" : "max_shrink"
    }=${maxShrink} requires at least ${formatCount(minimum)}`,
  );
}

async function count(
  session: Sides["source"]["session"],
  rows: string,
): Promise<number> {
  const [row] = await session.query(
    `select count(*)::text as count from (${rows}) rows`,
  );
  return Number(row!.count);
}
