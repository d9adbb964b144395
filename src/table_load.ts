/**
 * One table: lock, compare, apply, verify. What is written stays uncommitted;
 * the caller commits.
 *
 * @module
 */
import type { Config } from "./config.ts";
import { copyRows } from "./copy.ts";
import {
  type ConnectionOptions,
  identifier,
  literal,
  qualified,
  type Session,
} from "./db.ts";
import { ServiceError } from "./errors.ts";
import {
  bucketCount,
  type BucketDifference,
  type Buckets,
  bucketsSql,
  castToTarget,
  differingRowsSql,
  diffRows,
  equal,
  type Fingerprint,
  HAS_ROW_IDS,
  HASH_PROBE,
  type HashMethod,
  inBucketsSql,
  isWorthRefining,
  parseBuckets,
  type Plan,
  planFromBuckets,
  rowsSql,
  wholeOf,
  wholeTableSql,
} from "./fingerprint.ts";
import type { Snapshot } from "./snapshot.ts";
import type { Table } from "./tables.ts";

/** What a table's load is doing. */
export type Phase =
  | "lock"
  | "compare"
  | "delete"
  | "copy"
  | "verify"
  | "wait"
  | "commit";

/** A phase that is over, for the timeline of a run. */
export interface PhaseTiming {
  readonly phase: Phase;
  /** Seconds since the table's load began. */
  readonly startedAfter: number;
  readonly seconds: number;
}

/** How far a table's load is. */
export interface Progress {
  readonly table: string;
  readonly phase: Phase;
  readonly rows: number;
  readonly bytes: number;
  /** Rows that the phase will handle, when that is known. */
  readonly totalRows: number | null;
}

/** What a load needs to know of its surroundings. */
export interface TableLoadContext {
  readonly config: Config;
  readonly connection: ConnectionOptions;
  readonly snapshot: Snapshot;
  readonly mode: "auto" | "full";
  /** Drop the target and make it anew. */
  readonly recreate: boolean;
  /** What is known of each table's last load; a hint only. */
  readonly lastLoads: ReadonlyMap<string, LastLoad>;
  readonly onProgress: (progress: Progress) => void;
}

/** What the last load of a table left to know. */
export interface LastLoad {
  /** The source's count of writes to the table at that time. */
  readonly sourceWrites: string;
  readonly rows: number;
}

/** A table that holds the source's rows, verified, in a transaction that is still open. */
export interface TableResult {
  readonly table: Table;
  readonly mode: "unchanged" | "delta" | "full";
  /** Rows in the source's snapshot, and in the target: equal, or the load would have failed. */
  readonly sourceCount: number;
  readonly targetCount: number;
  readonly rowsInserted: number;
  readonly rowsDeleted: number;
  readonly bytesCopied: number;
  /** Sum of the row hashes; `null` when only the counts were compared. */
  readonly checksum: string | null;
  readonly warnings: readonly string[];
  readonly seconds: number;
  readonly phases: readonly PhaseTiming[];
}

/** The warehouse table that rows are written into. */
interface Target {
  /** Quoted, schema-qualified. */
  readonly relation: string;
  /** Made in this transaction, so empty and seen by nobody. */
  readonly isNew: boolean;
  readonly hashProbe: string;
  readonly hasRowIds: boolean;
}

/** Settings of the warehouse's side of a load. */
export function warehouseTransaction(config: Config) {
  return {
    mode: "read committed",
    timezone: config.loadTimezone,
    lockTimeoutSeconds: config.lockTimeoutSeconds,
  } as const;
}

/**
 * Makes the target equal to the snapshot, in the transaction that `warehouse`
 * has open, and verifies it there.
 *
 * @throws {ServiceError} with the table's name; `warehouse` must then be given up.
 */
export async function loadTable(
  context: TableLoadContext,
  table: Table,
  warehouse: Session,
): Promise<TableResult> {
  const warnings = context.snapshot.tables.get(table.name);
  if (warnings instanceof ServiceError) throw warnings;
  const clock = new PhaseClock(context, table);
  try {
    clock.enter("lock");
    const [source, target] = await bothSides(
      context.snapshot.openReader(table),
      lockTarget(context, table, warehouse),
    );
    await using _ = source;
    const method = hashMethod(context.snapshot, target, warehouse);

    clock.enter("compare");
    const { plan, wanted } = await compare(
      context,
      table,
      source,
      warehouse,
      target,
      method,
    );
    const applied = await apply(
      context,
      table,
      { source, warehouse, target, plan, wanted, method },
      clock,
    );

    clock.enter("verify");
    const verified = await verify(
      context,
      table,
      warehouse,
      target,
      method,
      applied,
    );
    if (context.recreate) await putInPlace(table, warehouse, target);
    return {
      table,
      mode: plan.mode,
      ...verified,
      rowsInserted: applied.rowsInserted,
      rowsDeleted: applied.rowsDeleted,
      bytesCopied: applied.bytesCopied,
      warnings: [
        ...warnings ?? [],
        ...(method === "text"
          ? [
            "the servers hash rows differently, so a slower hash of the text was compared",
          ]
          : []),
      ],
      ...clock.stop(),
    };
  } catch (error) {
    throw forTable(error, table, warehouse);
  }
}

/** What `verify` and `load --dry-run` tell of a table. */
export interface Comparison {
  readonly table: Table;
  readonly source: Fingerprint;
  readonly target: Fingerprint | null;
  readonly plan: Plan;
  /** Rows that a load would copy. */
  readonly rowsToCopy: number;
}

/**
 * Compares the target with the snapshot and changes nothing. `warehouse` has a
 * read-only transaction open.
 */
export async function compareTable(
  context: TableLoadContext,
  table: Table,
  warehouse: Session,
): Promise<Comparison> {
  const warnings = context.snapshot.tables.get(table.name);
  if (warnings instanceof ServiceError) throw warnings;
  try {
    const [source, target] = await bothSides(
      context.snapshot.openReader(table),
      findTarget(table, warehouse),
    );
    await using _ = source;
    if (!target.exists) {
      const wanted = await wholeFingerprint(
        source,
        qualified(table.source),
        table,
        "record",
      );
      return {
        table,
        source: wanted,
        target: null,
        plan: { mode: "full" },
        rowsToCopy: wanted.count,
      };
    }
    checkTarget(table, target);
    const relation = qualified(table.target);
    const method = hashMethod(context.snapshot, target, warehouse);
    const { plan, wanted, present } = await compareContent(
      table,
      source,
      warehouse,
      relation,
      method,
    );
    const rowsToCopy = plan.mode === "delta"
      ? (await selectRows(
        context,
        table,
        source,
        warehouse,
        { relation, hasRowIds: target.hasRowIds },
        plan,
        method,
      )).rows
      : plan.mode === "full"
      ? wanted.count
      : 0;
    return { table, source: wanted, target: present, plan, rowsToCopy };
  } catch (error) {
    throw forTable(error, table, warehouse);
  }
}

/** Waits for both; when one fails, the other's session is cut and the failure is thrown. */
async function bothSides<T>(
  reader: Promise<Session>,
  other: Promise<T>,
): Promise<[Session, T]> {
  const [opened, done] = await Promise.allSettled([reader, other]);
  if (done.status === "rejected") {
    if (opened.status === "fulfilled") opened.value.destroy();
    throw done.reason;
  }
  if (opened.status === "rejected") throw opened.reason;
  return [opened.value, done.value];
}

interface FoundTarget {
  readonly exists: boolean;
  readonly kind: string;
  readonly columns: readonly { readonly name: string; readonly type: string }[];
  readonly hashProbe: string;
  readonly hasRowIds: boolean;
}

async function findTarget(
  table: Table,
  warehouse: Session,
): Promise<FoundTarget> {
  const rows = await warehouse.query(
    `select c.relkind as kind, a.attname as name, format_type(a.atttypid, a.atttypmod) as type,
       ${HASH_PROBE} as probe, ${HAS_ROW_IDS} as rowids
     from (select 1) one
       left join pg_catalog.pg_namespace n on n.nspname = ${
      literal(table.target.schema)
    }
       left join pg_catalog.pg_class c on c.relnamespace = n.oid and c.relname = ${
      literal(table.target.name)
    } and c.relkind in ('r', 'p', 'v', 'm', 'f')
       left join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
     order by a.attnum`,
  );
  const [first] = rows;
  return {
    exists: Boolean(first?.kind),
    kind: first?.kind ?? "",
    columns: rows.filter((row) => row.name).map(({ name, type }) => ({
      name,
      type,
    })),
    hashProbe: first?.probe,
    hasRowIds: first?.rowids ?? false,
  };
}

/**
 * Makes sure that the target exists and takes the lock that holds off writers
 * and DDL, but no reader.
 */
async function lockTarget(
  context: TableLoadContext,
  table: Table,
  warehouse: Session,
): Promise<Target> {
  const relation = qualified(table.target);
  let found = await findTarget(table, warehouse);
  if (context.recreate || !found.exists) {
    const name = context.recreate
      ? `${table.target.name}__recreate`
      : table.target.name;
    const fresh = qualified({ schema: table.target.schema, name });
    await warehouse.query(createTableSql(table, fresh));
    return {
      relation: fresh,
      isNew: true,
      hashProbe: found.hashProbe,
      hasRowIds: false,
    };
  }
  checkTarget(table, found);
  // And once more under the lock: what was found before may have changed.
  await warehouse.query(`lock table ${relation} in share row exclusive mode`);
  found = await findTarget(table, warehouse);
  checkTarget(table, found);
  const { hashProbe, hasRowIds } = found;
  return { relation, isNew: false, hashProbe, hasRowIds };
}

/** DDL of a target table; also what `schema print` shows. */
export function createTableSql(
  table: Table,
  relation = qualified(table.target),
): string {
  const columns = table.columns.map((c) => `  ${identifier(c.name)} ${c.type}`);
  return `create table ${relation} (\n${columns.join(",\n")}\n)`;
}

/** @throws {ServiceError} `target_incompatible`, naming the column. */
function checkTarget(table: Table, found: FoundTarget): void {
  const { schema, name } = table.target;
  const fail = (what: string) => {
    throw new ServiceError(
      "target_incompatible",
      `Cannot load ${table.name}: ${what}`,
      { table: table.name },
    );
  };
  if (found.kind !== "r" && found.kind !== "p") {
    fail(`${schema}.${name} in the warehouse is not a table`);
  }
  for (const column of table.columns) {
    const present = found.columns.find((c) => c.name === column.name);
    if (!present) {
      fail(
        `column "${column.name}" is missing in ${schema}.${name} of the warehouse`,
      );
    } else if (present.type !== column.type) {
      fail(
        `column "${column.name}" of ${schema}.${name} in the warehouse is ${present.type}, not ${column.type}`,
      );
    }
  }
  const extra = found.columns.find((c) =>
    !table.columns.some((t) => t.name === c.name)
  );
  if (extra) {
    fail(
      `${schema}.${name} in the warehouse has a column "${extra.name}" that the source table does not feed`,
    );
  }
}

function hashMethod(
  snapshot: Snapshot,
  target: { readonly hashProbe: string },
  warehouse: Session,
): HashMethod {
  return snapshot.hashProbe === target.hashProbe &&
      snapshot.encoding === warehouse.serverEncoding
    ? "record"
    : "text";
}

async function wholeFingerprint(
  session: Session,
  relation: string,
  table: Table,
  method: HashMethod,
): Promise<Fingerprint> {
  const [row] = await session.query(
    wholeTableSql(relation, table.columns, method),
  );
  return { count: Number(row!.count), checksum: row!.checksum };
}

async function bucketFingerprints(
  session: Session,
  relation: string,
  table: Table,
  method: HashMethod,
  buckets: number,
): Promise<Buckets> {
  const [row] = await session.query(
    bucketsSql(relation, table.columns, method, buckets),
  );
  return parseBuckets(row!.buckets);
}

/** What is to be done, and what the source holds as far as that is known by now. */
interface Compared {
  readonly plan: Plan;
  readonly wanted: Fingerprint | undefined;
}

/** A full load needs no comparison; anything else is decided by content. */
function compare(
  context: TableLoadContext,
  table: Table,
  source: Session,
  warehouse: Session,
  target: Target,
  method: HashMethod,
): Promise<Compared> {
  return target.isNew || context.mode === "full"
    ? Promise.resolve({ plan: { mode: "full" }, wanted: undefined })
    : compareContent(
      table,
      source,
      warehouse,
      target.relation,
      method,
      expectsChange(context, table),
      context.lastLoads.get(table.name)?.rows,
    );
}

/**
 * Whether the source table was written to since it was last loaded, by the
 * server's own count of writes. Only a hint of what is worth asking first: a
 * wrong one costs time, never a row.
 */
function expectsChange(
  { snapshot, lastLoads }: TableLoadContext,
  table: Table,
): boolean {
  const before = lastLoads.get(table.name)?.sourceWrites;
  const now = snapshot.writes.get(table.name);
  return before !== undefined && now !== undefined && before !== now;
}

/**
 * Compares in two steps, each one query on either side at the same time: whole
 * tables, then buckets. Where a change is expected the first step is left out,
 * since it would only say that there is one.
 */
async function compareContent(
  table: Table,
  source: Session,
  warehouse: Session,
  relation: string,
  method: HashMethod,
  expectsChange = false,
  estimatedRows = 0,
): Promise<{ plan: Plan; wanted: Fingerprint; present: Fingerprint }> {
  const from = qualified(table.source);
  let rows = estimatedRows;
  if (!expectsChange) {
    const [wanted, present] = await Promise.all([
      wholeFingerprint(source, from, table, method),
      wholeFingerprint(warehouse, relation, table, method),
    ]);
    if (equal(wanted, present)) {
      return { plan: { mode: "unchanged" }, wanted, present };
    }
    if (present.count === 0) return { plan: { mode: "full" }, wanted, present };
    rows = wanted.count;
  }
  const buckets = bucketCount(rows);
  const [wanted, present] = await Promise.all([
    bucketFingerprints(source, from, table, method, buckets),
    bucketFingerprints(warehouse, relation, table, method, buckets),
  ]);
  return {
    plan: planFromBuckets(wanted, present, buckets),
    wanted: wholeOf(wanted),
    present: wholeOf(present),
  };
}

/** Which rows a delta takes away from the target and copies from the source, as SQL conditions. */
interface Selection {
  readonly source: string;
  readonly target: string;
  /** Rows that will be copied. */
  readonly rows: number;
}

/** Narrows the buckets that differ down to the rows that do, where these are not too many. */
async function selectRows(
  { snapshot }: TableLoadContext,
  table: Table,
  source: Session,
  warehouse: Session,
  target: Pick<Target, "relation" | "hasRowIds">,
  difference: BucketDifference,
  method: HashMethod,
): Promise<Selection> {
  const { columns } = table;
  if (!isWorthRefining(difference)) {
    const condition = inBucketsSql(columns, method, difference);
    return {
      source: condition,
      target: condition,
      rows: difference.sourceRows,
    };
  }
  const sourceHasRowIds = snapshot.withRowIds.has(table.name);
  const rowsOf = async (
    session: Session,
    relation: string,
    hasRowIds: boolean,
  ) => {
    const [row] = await session.query(
      rowsSql(relation, columns, method, difference, hasRowIds),
    );
    return row!.rows as string;
  };
  const [wanted, present] = await Promise.all([
    rowsOf(source, qualified(table.source), sourceHasRowIds),
    rowsOf(warehouse, target.relation, target.hasRowIds),
  ]);
  const { hashes, ...rows } = diffRows(wanted, present);
  const condition = (ids: readonly string[] | undefined) =>
    differingRowsSql(columns, method, hashes, ids);
  return {
    source: condition(sourceHasRowIds ? rows.source : undefined),
    target: condition(target.hasRowIds ? rows.target : undefined),
    rows: rows.source.length,
  };
}

interface Applied {
  readonly rowsInserted: number;
  readonly rowsDeleted: number;
  readonly bytesCopied: number;
  readonly plan: Plan;
  readonly wanted: Fingerprint | undefined;
}

async function apply(
  context: TableLoadContext,
  table: Table,
  { source, warehouse, target, plan, wanted, method }: Compared & {
    source: Session;
    warehouse: Session;
    target: Target;
    method: HashMethod;
  },
  clock: PhaseClock,
): Promise<Applied> {
  if (plan.mode === "unchanged") {
    return { rowsInserted: 0, rowsDeleted: 0, bytesCopied: 0, plan, wanted };
  }
  const selected = plan.mode === "delta"
    ? await selectRows(context, table, source, warehouse, target, plan, method)
    : undefined;

  clock.enter("delete");
  // The source's fingerprint is taken while the warehouse deletes: the two servers work side by side.
  const needsFingerprint = !wanted && context.config.verify === "content";
  const [rowsDeleted, measured] = await Promise.all([
    target.isNew ? 0 : warehouse.execute(
      `delete from ${target.relation}${where(selected?.target)}`,
    ),
    needsFingerprint
      ? wholeFingerprint(source, qualified(table.source), table, method)
      : wanted,
  ]);

  clock.enter("copy", selected?.rows ?? measured?.count ?? null);
  const columns = table.columns.map((c) => identifier(c.name));
  const copied = await copyRows(
    source,
    `select ${table.columns.map(castToTarget)} from ${qualified(table.source)}${
      where(selected?.source)
    }`,
    warehouse,
    `${target.relation} (${columns})`,
    clock.moved,
  );
  return {
    rowsInserted: copied.rows,
    rowsDeleted,
    bytesCopied: copied.bytes,
    plan,
    wanted: measured ?? { count: copied.sourceRows, checksum: "" },
  };
}

function where(condition: string | undefined): string {
  return condition ? ` where ${condition}` : "";
}

/**
 * Compares what the target holds now, uncommitted, with the snapshot.
 *
 * @throws {ServiceError} `verification_failed`.
 */
async function verify(
  context: TableLoadContext,
  table: Table,
  warehouse: Session,
  target: Target,
  method: HashMethod,
  { plan, wanted }: Applied,
): Promise<Pick<TableResult, "sourceCount" | "targetCount" | "checksum">> {
  const expected = wanted!;
  if (plan.mode === "unchanged") {
    return {
      sourceCount: expected.count,
      targetCount: expected.count,
      checksum: expected.checksum,
    };
  }
  // Deferred constraints and triggers act now, so that the comparison sees what they do.
  await warehouse.query("set constraints all immediate");
  const byContent = context.config.verify === "content";
  const held: Fingerprint = byContent
    ? await wholeFingerprint(warehouse, target.relation, table, method)
    : await countRows(warehouse, target.relation);
  if (held.count !== expected.count || (byContent && !equal(held, expected))) {
    throw new ServiceError(
      "verification_failed",
      `Cannot load ${table.name}: after the copy the target holds ${held.count} rows${
        byContent ? ` (checksum ${held.checksum})` : ""
      } where the source has ${expected.count}${
        byContent ? ` (checksum ${expected.checksum})` : ""
      }`,
      { table: table.name },
    );
  }
  return {
    sourceCount: expected.count,
    targetCount: held.count,
    checksum: byContent ? held.checksum : null,
  };
}

async function countRows(
  session: Session,
  relation: string,
): Promise<Fingerprint> {
  const [row] = await session.query(
    `select count(*)::text as count from ${relation}`,
  );
  return { count: Number(row!.count), checksum: "" };
}

/** Exchanges the old table for the one that was loaded beside it. Only here is a reader made to wait. */
async function putInPlace(
  table: Table,
  warehouse: Session,
  target: Target,
): Promise<void> {
  await warehouse.query(
    `drop table if exists ${qualified(table.target)};
     alter table ${target.relation} rename to ${identifier(table.target.name)}`,
  );
}

/** The error with the table's name in it, and in the terms of what was being done. */
function forTable(
  error: unknown,
  table: Table,
  warehouse: Session,
): ServiceError {
  if (!(error instanceof ServiceError)) throw error;
  if (error.table) return error;
  const { schema, name } = table.target;
  const isTarget = error.message.startsWith(`${warehouse.config.label}:`);
  const details = {
    table: table.name,
    cause: error,
    ...(error.sqlstate ? { sqlstate: error.sqlstate } : {}),
  };
  if (error.sqlstate === "55P03" && isTarget) {
    return new ServiceError(
      "target_locked",
      `Cannot load ${table.name}: ${schema}.${name} in the warehouse is locked by another session`,
      details,
    );
  }
  // 42P01 no such table, 3F000 no such schema; XX000 is how a wait for a lock ends when the table is dropped.
  if (isTarget && ["42P01", "3F000", "XX000"].includes(error.sqlstate ?? "")) {
    return new ServiceError(
      "target_dropped",
      `Cannot load ${table.name}: ${schema}.${name} went away during the load (${error.message})`,
      details,
    );
  }
  return new ServiceError(
    error.code,
    `Cannot load ${table.name}: ${error.message}`,
    {
      ...details,
      remedy: error.remedy,
    },
  );
}

/** Notes when phases begin and end, and tells the listener. */
class PhaseClock {
  readonly #started = performance.now();
  readonly #phases: PhaseTiming[] = [];
  readonly #onProgress: (progress: Progress) => void;
  readonly #table: string;
  #phase: Phase | undefined;
  #phaseStarted = 0;
  #totalRows: number | null = null;

  constructor(context: TableLoadContext, table: Table) {
    this.#onProgress = context.onProgress;
    this.#table = table.name;
  }

  enter(phase: Phase, totalRows: number | null = null): void {
    this.#leave();
    this.#phase = phase;
    this.#phaseStarted = performance.now();
    this.#totalRows = totalRows;
    this.moved({ rows: 0, bytes: 0 });
  }

  moved = ({ rows, bytes }: { rows: number; bytes: number }): void => {
    this.#onProgress({
      table: this.#table,
      phase: this.#phase!,
      rows,
      bytes,
      totalRows: this.#totalRows,
    });
  };

  stop(): Pick<TableResult, "seconds" | "phases"> {
    this.#leave();
    return {
      seconds: (performance.now() - this.#started) / 1000,
      phases: this.#phases,
    };
  }

  #leave(): void {
    if (!this.#phase) return;
    const now = performance.now();
    this.#phases.push({
      phase: this.#phase,
      startedAfter: (this.#phaseStarted - this.#started) / 1000,
      seconds: (now - this.#phaseStarted) / 1000,
    });
  }
}
