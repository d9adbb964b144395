/**
 * Updates a target in place by its key. Rows whose key exists on both sides are updated.
 * Foreign keys, row triggers and publications then see an update.
 *
 * @module
 */
import { fingerprintOf, type Sides } from "../diff/find_difference.ts";
import type { Fingerprint } from "../diff/fingerprint.ts";
import {
  castToTarget,
  type HashMethod,
  randomSeed,
  rowHash,
} from "../diff/row_hash.ts";
import { hasSqlstate } from "../errors.ts";
import type { Session } from "../postgres/session.ts";
import { identifier, literal, qualified, type Row } from "../postgres/sql.ts";
import { formatTypeName, isUserDefined } from "../tables/column_types.ts";
import {
  type Column,
  formatRelation,
  type Table,
} from "../tables/declaration.ts";
import { checkReferences, type Replacing } from "./check_target.ts";
import type { Target } from "./find_target.ts";
import { writeTo } from "./target.ts";
import { tableError } from "./table_errors.ts";

/** Maximum number of offending keys that a message names. */
const MAX_NAMED_KEYS = 5;

/** Maximum number of characters of a value in a message. */
const MAX_VALUE_LENGTH = 40;

function keyColumns({ columns, key }: Table): readonly Column[] {
  return key!.map((name) => columns.find((column) => column.name === name)!);
}

/** Returns SQL that compares a text by its bytes. Other texts can be equal in the collation of a column. */
function exactly(value: string, { type }: Column): string {
  return ["text", "character varying", "character", "bpchar", "name"]
      .includes(type.base)
    ? `(${value} collate "C")`
    : value;
}

/**
 * Checks that no two rows of the snapshot share a key, and that no part of a key is
 * NULL. Reads no row where a unique index of the source proves both.
 *
 * @throws {ServiceError} `key_not_unique`, naming keys.
 */
export async function checkKey({ table, source }: Sides): Promise<void> {
  if (!table.key) return;
  const key = keyColumns(table);
  const values = key.map((column, i) =>
    `${exactly(`(${castToTarget(column)})`, column)} as key_${i}`
  );
  const names = key.map((_, i) => `key_${i}`);
  const listed = key.map(({ name }) => `"${name}"`).join(", ");
  let rows;
  try {
    rows = await source.session.scan<{ keys: (string | null)[] }>(
      `select pg_catalog.json_build_array(${
        names.map((name) =>
          `pg_catalog."left"(${name}::text, ${MAX_VALUE_LENGTH})`
        )
      }) as keys from (select ${values} from ${source.relation} where not ${
        hasUniqueIndex(table, key)
      }) k group by ${names} having pg_catalog.count(*) > 1 or ${
        names.map((name) => `${name} is null`).join(" or ")
      } limit ${MAX_NAMED_KEYS + 1}`,
    );
  } catch (error) {
    if (!hasSqlstate(error, "42883")) throw error;
    throw tableError(
      table.name,
      "configuration",
      `the key (${listed}) cannot be compared: ${error.reason}`,
      "Name other columns as key in TABLES_FILE.",
    );
  }
  if (rows.length === 0) return;
  const name = formatRelation(table.source);
  const named = rows.map(({ keys }, i) =>
    i === MAX_NAMED_KEYS
      ? "…"
      : `(${keys.map((value) => value ?? "NULL").join(", ")})`
  );
  throw tableError(
    table.name,
    "key_not_unique",
    `the key (${listed}) does not identify the rows of ${name}: ${
      named.join(", ")
    }`,
  );
}

/**
 * Returns an SQL condition that is true if a unique index of the source proves the key.
 * The index is valid and covers the columns of the key, and none of them allows NULL. A
 * cast could make two values equal, so columns that are cast prove nothing.
 */
function hasUniqueIndex(
  { source }: Table,
  key: readonly Column[],
): string {
  if (key.some(({ expression }) => expression !== undefined)) return "false";
  const names = key.map(({ name, from }) => literal(from ?? name));
  const typed = key.map(({ type }, i) =>
    `(${names[i]}, ${literal(formatTypeName(type))})`
  );
  return `exists (
    select from pg_catalog.pg_class c join pg_catalog.pg_index x on x.indrelid = c.oid
    where c.oid = ${literal(qualified(source))}::pg_catalog.regclass
      and x.indisunique and x.indisvalid and x.indpred is null
      -- The index of a parent does not cover its children.
      and (c.relkind = 'p' or not c.relhassubclass)
      and ${key.length} = (select pg_catalog.count(*) from pg_catalog.pg_attribute a
        where a.attrelid = c.oid and a.attnotnull and not exists (select from pg_catalog.pg_constraint k
          where k.conrelid = c.oid and k.contype = 'n' and not k.convalidated and a.attnum = any (k.conkey))
          and (a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod)) in (${typed}))
      and x.indnkeyatts = (select pg_catalog.count(*) from pg_catalog.pg_attribute a
        where a.attrelid = c.oid and a.attname in (${names})
          and a.attnum = any ((x.indkey::int2[])[0:x.indnkeyatts - 1])))`;
}

/** The rows that an update in place wrote. */
interface Updated {
  /** Inserted rows and new versions of updated ones. */
  readonly rowsInserted: number;
  /** Deleted rows and old versions of updated ones. */
  readonly rowsDeleted: number;
  /** Number of the rows of the target that were compared. */
  readonly rowsBefore: number;
  /** Fingerprint of the deleted rows and of the old versions of updated ones. */
  readonly deleted: Fingerprint | undefined;
  /** The subtransaction that wrote, where there is a stable ctid. 32 bits, in decimal. */
  readonly xid: string | null;
}

/**
 * Creates a temporary table with the target's columns, and returns its name. Writing
 * to it needs no WAL.
 */
export async function createStaging(
  warehouse: Session,
  { relation, table }: Target,
): Promise<string> {
  // The tables of one transaction must not share a name.
  const name = `pg_temp.staged_${crypto.randomUUID().replaceAll("-", "")}`;
  await warehouse.query(
    `create temporary table ${name} using heap as select ${
      table.columns.map(({ name }) => identifier(name))
    } from ${relation} with no data`,
  );
  return name;
}

/**
 * Makes the selected rows of the target, or all of them, equal to the staged rows.
 * Drops the staging table.
 *
 * An index that is not deferrable checks each row at once. Where rows exchange its
 * values, they are deleted and inserted instead of updated.
 *
 * @throws {ServiceError} `target_incompatible` when a foreign key acts on the
 * deletion of such a row.
 */
export async function updateInPlace(
  { target: { session }, table, method }: Sides,
  target: Target,
  staged: string,
  condition: string | undefined,
): Promise<Updated> {
  const write = async (fixed: readonly Column[]) => {
    const sql = updateSql(
      table,
      method,
      target,
      staged,
      condition,
      fixed,
    );
    const [row] = await writeTo(session, target, () => session.scan(sql));
    return row!;
  };
  const isIdentity = ({ name }: Column) =>
    target.identityColumns.includes(name);
  let row: Row;
  let replacing: Replacing = {
    kind: "identity",
    columns: target.identityColumns,
  };
  await session.query("savepoint update_in_place");
  try {
    row = await write(table.columns.filter(isIdentity));
  } catch (error) {
    // An index found a value that another row still has.
    const isTaken = hasSqlstate(error, "23505", "23P01") && !session.failure;
    if (!isTaken) throw error;
    await session.query("rollback to savepoint update_in_place");
    const unique = await uniqueColumns(session, target);
    replacing = { kind: "exchange" };
    row = await write(
      table.columns.filter((column) =>
        isIdentity(column) || unique.has(column.name)
      ),
    );
  }
  await session.query(
    `release savepoint update_in_place; drop table ${staged}`,
  );
  if (row.replaced !== "0") checkReferences(target, replacing);
  return {
    rowsInserted: Number(row.inserted),
    rowsDeleted: Number(row.count),
    rowsBefore: Number(row.before),
    deleted: target.hasStableCtid ? fingerprintOf(row) : undefined,
    xid: row.xid,
  };
}

/** Returns the columns outside of the key that unique indexes and exclusion constraints use. */
async function uniqueColumns(
  session: Session,
  { oid, table }: Target,
): Promise<ReadonlySet<string>> {
  const rows = await session.query(
    `select distinct a.attname as name
     from pg_catalog.pg_index x join pg_catalog.pg_attribute a on a.attrelid = x.indrelid
       and (a.attnum = any (x.indkey::int2[]) or x.indexprs is not null or x.indpred is not null)
     where (x.indisunique or x.indisexclusion) and a.attnum > 0 and (x.indrelid = ${oid}
       or x.indrelid in (select relid from pg_catalog.pg_partition_tree(${oid})))`,
  );
  return new Set(
    rows.map(({ name }) => name).filter((name) => !table.key!.includes(name)),
  );
}

/**
 * Returns SQL that deletes, updates and inserts in this order, in one statement. So a
 * foreign key with NO ACTION is checked when all rows are in place.
 *
 * @param fixed columns that cannot be updated. Rows in which they differ are deleted
 * and inserted.
 */
function updateSql(
  table: Table,
  method: HashMethod,
  { relation, hasStableCtid }: Target,
  staged: string,
  condition: string | undefined,
  fixed: readonly Column[],
): string {
  const { columns } = table;
  const xid = (alias: string) => hasStableCtid ? `${alias}.xmin` : "null::xid";
  // The seed of the last load is known by now. So a row could be made for it.
  const unknown = { ...method, seed: randomSeed() };
  const contents = `${rowHash(columns, unknown)} as content, ${
    fixed.length > 0 ? rowHash(fixed, unknown) : "0::bigint"
  } as fixed`;
  const key = keyColumns(table);
  const keys = key.map(({ name }, i) => `${identifier(name)} as key_${i}`);
  const isSameKey = key.map((column, i) =>
    isUserDefined(column.type)
      // Records compare with the operator of the type, in any schema. They need its order, too.
      ? `row(o.key_${i})::record operator(pg_catalog.=) row(s.key_${i})::record`
      : `${exactly(`o.key_${i}`, column)} operator(pg_catalog.=) s.key_${i}`
  ).join(" and ");
  const names = columns.map(({ name }) => identifier(name));
  const changing = columns.filter((column) => !fixed.includes(column))
    .map(({ name }) => identifier(name));
  const after = (step: string) =>
    `(select pg_catalog.count(*) from ${step}) >= 0`;
  return `with pair as materialized (
      select o.id, o.part, o.hash, s.id as staged, case
          when o.id is null then 'insert'
          -- A damaged target can have a key twice.
          when s.id is null or pg_catalog.row_number() over (partition by s.id order by o.content <> s.content) > 1 then 'delete'
          when o.fixed <> s.fixed then 'replace'
          when o.content <> s.content then 'update' end as action
      from (select ctid as id, tableoid as part, ${keys}, ${contents}, ${
    rowHash(columns, method)
  } as hash from ${relation}${
    condition === undefined ? "" : ` where ${condition}`
  }) o full join (select ctid as id, ${keys}, ${contents} from ${staged}) s on ${isSameKey}),
    gone as (
      delete from ${relation} t using pair p
      where p.action in ('delete', 'replace') and t.tableoid = p.part and t.ctid = p.id returning p.hash),
    changed as (${
    changing.length === 0
      ? "select hash, null::xid as xid from pair where false"
      : `update ${relation} t set ${
        changing.map((name) => `${name} = s.${name}`)
      } from pair p join ${staged} s on s.ctid = p.staged
      where p.action = 'update' and t.tableoid = p.part and t.ctid = p.id and ${
        after("gone")
      } returning p.hash, ${xid("t")} as xid`
  }),
    added as (
      insert into ${relation} as t (${names}) overriding system value
      select ${
    names.map((name) => `s.${name}`)
  } from pair p join ${staged} s on s.ctid = p.staged
      where p.action in ('insert', 'replace') and ${
    after("changed")
  } returning ${xid("t")} as xid)
    select old.*, (select pg_catalog.count(*) from added) + (select pg_catalog.count(*) from changed) as inserted,
      (select pg_catalog.count(id) from pair) as before,
      (select pg_catalog.count(*) from pair where action = 'replace') as replaced,
      (select pg_catalog.max(xid::text) from (select xid from changed union all select xid from added) written) as xid
    from (select pg_catalog.count(*)::text as count, coalesce(pg_catalog.sum(hash), 0)::text as checksum
      from (select hash from gone union all select hash from changed) hashes) old`;
}
