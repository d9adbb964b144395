/**
 * Writes the rows of a plan to the target, in the transaction that the target's
 * session has open.
 *
 * @module
 */
import type { Config } from "../config/config.ts";
import {
  type Compared,
  fingerprintOf,
  partsOf,
  type Selection,
  selectionOf,
  type Sides,
  wholeFingerprint,
} from "../diff/find_difference.ts";
import type { Fingerprint } from "../diff/fingerprint.ts";
import { deleteSql } from "../diff/queries.ts";
import { castToTarget } from "../diff/row_hash.ts";
import type { Part } from "../diff/row_matcher.ts";
import { copyRows } from "../postgres/copy.ts";
import { identifier } from "../postgres/sql.ts";
import {
  checkDeletable,
  checkReplacing,
  referenceError,
} from "./check_target.ts";
import type { Target } from "./find_target.ts";
import { type Appended, countAs, lastPages } from "./measure.ts";
import type { PhaseClock } from "./progress.ts";
import { writeTo } from "./target.ts";
import { createStaging, updateInPlace } from "./update_in_place.ts";

/** The plan, and the fingerprints of both sides where they are known. */
export type Decided = Pick<Compared, "plan"> & Partial<Compared>;

/** The rows that were written, and the fingerprint of the source. */
export interface Applied {
  readonly rowsInserted: number;
  readonly rowsDeleted: number;
  readonly bytesCopied: number;
  /** Number of rows of the target before, where all were written or compared. */
  readonly rowsBefore?: number;
  readonly source: Fingerprint;
  /** The fingerprint of the deleted rows, where the delete returned it. */
  readonly deleted?: Fingerprint | undefined;
  /** The inserted rows, where nothing else changed. */
  readonly appended?: Appended;
  /** The subtransaction that wrote the rows, if there was one. 32 bits, in decimal. */
  readonly xid?: string | null;
}

/** The write of a plan that changes the target. */
interface Write {
  readonly sides: Sides;
  readonly target: Target;
  /** The rows of a delta. `undefined` stands for all rows. */
  readonly selected: Selection | undefined;
  readonly clock: PhaseClock;
  /** Returns the fingerprint of the source, where it is known or needed. */
  readonly measureSource: () => Promise<Fingerprint | undefined>;
}

/**
 * Makes the target hold the source's rows, as the plan says.
 *
 * @throws {ServiceError} of the side that failed first. A refused row names its cause.
 */
export async function applyPlan(
  sides: Sides,
  target: Target,
  { plan, source: known, target: held }: Decided,
  clock: PhaseClock,
  verify: Config["verify"],
): Promise<Applied> {
  if (plan.mode === "unchanged") {
    const nothing = { rowsInserted: 0, rowsDeleted: 0, bytesCopied: 0 };
    return { ...nothing, source: known! };
  }
  const difference = plan.mode === "delta" ? plan.difference : undefined;
  const selected = difference && selectionOf(sides, difference);
  const isEmpty = target.isNew || held?.count === 0;
  const isOnlyAdded = difference?.target.count === 0;
  await prepareTarget(sides, target, selected);
  const needsFingerprint = !known && verify === "content";
  const write: Write = {
    sides,
    target,
    selected,
    clock,
    measureSource: async () =>
      needsFingerprint ? await wholeFingerprint(sides.source, sides) : known,
  };
  return sides.table.key !== undefined && !isEmpty && !isOnlyAdded
    ? await updateRows(write)
    : await replaceRows(write, isOnlyAdded);
}

/**
 * Checks that rows can be deleted, and defers constraints.
 *
 * @throws {ServiceError} `target_incompatible`.
 */
async function prepareTarget(
  { table, target: { session } }: Sides,
  target: Target,
  selected: Selection | undefined,
): Promise<void> {
  if (!target.isNew) {
    checkDeletable(table, target);
    await checkReplacing(session, target, selected?.target);
  }
  // A row that is deleted and inserted again then keeps a deferrable foreign key.
  if (target.callsFunctions) {
    await session.query("set constraints all deferred");
  }
}

/** Updates, deletes and inserts rows by their key. The rows are copied to a staging table first. */
async function updateRows(write: Write): Promise<Applied> {
  const { sides, target, selected, clock, measureSource } = write;
  const staged = await createStaging(sides.target.session, target);
  const copied = await copySelected(write, staged, await measureSource(), true);
  clock.enter("update");
  const updated = await updateInPlace(
    sides,
    target,
    staged,
    selected?.target(),
  ).catch((error) => {
    throw referenceError(error, target);
  });
  return { ...copied, ...updated };
}

/** Deletes rows of the target and inserts rows of the source. */
async function replaceRows(
  write: Write,
  isOnlyAdded: boolean,
): Promise<Applied> {
  const { sides, target, selected, clock, measureSource } = write;
  const { session } = sides.target;
  clock.enter("delete");
  // The source hashes its rows while the warehouse deletes.
  const [deleted, measured] = await Promise.all([
    writeTo(session, target, () => deleteRows(sides, target, selected))
      .catch((error) => {
        throw referenceError(error, target);
      }),
    measureSource(),
  ]);
  const place = isOnlyAdded && target.hasNoSideEffects
    ? await lastPages(sides, target.oid)
    : undefined;
  const copied = await copySelected(
    write,
    target.relation,
    measured,
    target.hasNoSideEffects,
  );
  return {
    ...copied,
    ...place ? { appended: { rows: copied.rowsInserted, place } } : {},
    rowsDeleted: deleted.rows,
    rowsBefore: deleted.rows,
    deleted: deleted.fingerprint,
  };
}

/** Copies the rows into a relation of the warehouse, in parts where the target allows it. */
async function copySelected(
  { sides: { table, source, target: { session } }, target, selected, clock }:
    Write,
  relation: string,
  measured: Fingerprint | undefined,
  mayDivide: boolean,
): Promise<Pick<Applied, "bytesCopied" | "rowsInserted" | "source">> {
  clock.enter("copy", selected?.rows.source ?? measured?.count ?? null);
  const copied = { rows: 0, bytes: 0, sourceRows: 0 };
  const copyFrom = async (rows: string) => {
    const { rows: before, bytes } = copied;
    const more = await copyRows(
      source.session,
      `select ${table.columns.map(castToTarget)} from ${rows}`,
      session,
      `${relation} (${table.columns.map((c) => identifier(c.name))})`,
      table.columns.some(({ isText }) => isText) ? "text" : "binary",
      (moved) =>
        clock.moved({
          rows: before + moved.rows,
          bytes: bytes + moved.bytes,
        }),
      target.isNew && target.hasStableCtid,
    );
    copied.rows += more.rows;
    copied.bytes += more.bytes;
    copied.sourceRows += more.sourceRows;
  };
  await writeTo(session, target, async () => {
    if (!selected) return await copyFrom(source.relation);
    const { rows } = selected;
    const parts = mayDivide
      ? partsOf(source, rows.source)
      : inOnePart(rows.source);
    for (const part of parts) await copyFrom(selected.source(part));
  });
  return {
    bytesCopied: copied.bytes,
    rowsInserted: copied.rows,
    source: measured ?? countAs(copied.sourceRows),
  };
}

/** Deletes the selected rows of the target, or all rows. */
async function deleteRows(
  { table, target: { session, hasStableCtid }, method }: Sides,
  target: Target,
  selected: Selection | undefined,
): Promise<{ rows: number; fingerprint?: Fingerprint }> {
  const { relation, isNew } = target;
  if (isNew) return { rows: 0 };
  if (!selected) {
    return { rows: await session.execute(`delete from ${relation}`) };
  }
  if (!hasStableCtid) {
    const rows = await session.execute(
      `delete from ${relation} where ${selected.target()}`,
    );
    return { rows };
  }
  let [rows, checksum] = [0, 0n];
  const parts = target.hasNoSideEffects
    ? partsOf(target, selected.rows.target)
    : inOnePart(selected.rows.target);
  for (const part of parts) {
    const [row] = await session.scan(
      deleteSql(relation, table.columns, method, selected.target(part)),
    );
    const deleted = fingerprintOf(row!);
    rows += deleted.count;
    checksum += BigInt(deleted.checksum);
  }
  return { rows, fingerprint: { count: rows, checksum: checksum.toString() } };
}

/** Returns all rows as one part, for triggers and foreign keys that must see them at once. */
function inOnePart(rows: number): readonly Part[] {
  return rows === 0 ? [] : [[0, rows]];
}
