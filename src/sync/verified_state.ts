/**
 * The state of both sides that a verified load leaves behind, for the proof of the
 * next one in `proof.ts`.
 *
 * @module
 */
import type { Sides } from "../diff/find_difference.ts";
import type { Fingerprint } from "../diff/fingerprint.ts";
import { HAS_STABLE_CTID } from "../diff/queries.ts";
import { rowHash } from "../diff/row_hash.ts";
import type { Session } from "../postgres/session.ts";
import { literal, qualified, type Row } from "../postgres/sql.ts";
import { BASE_TYPE, FIRST_VARIABLE_OID } from "../tables/declaration.ts";
import { sourceRelation } from "./source_tables.ts";
import type { Target } from "./find_target.ts";

/** The row versions of a side that were visible when it was verified. */
export interface SideState {
  /** Digest of the server and of the table, without its rows. */
  readonly facts: string;
  /** Every transaction below this number had ended. Decimal, 64 bits. */
  readonly horizon: string;
  /** The others whose rows were visible. Decimal, 64 bits. */
  readonly xids: readonly string[];
}

/** The state after a load, for the next one. Both sides held these rows. */
export interface VerifiedState {
  /** Digest of the declaration, the time zone and the hash method. */
  readonly declaration: string;
  /** Seed of the checksum, in decimal. */
  readonly seed: string;
  readonly count: number;
  readonly checksum: string;
  readonly source: SideState;
  readonly target: SideState;
}

/** The range of transactions of a snapshot that may be running in it. */
export interface Horizon {
  readonly xmin: bigint;
  readonly xmax: bigint;
}

/** SQL of {@linkcode Horizon}, as `xmin` and `xmax`. */
export const HORIZON =
  `pg_catalog.txid_snapshot_xmin(pg_catalog.txid_current_snapshot())::text as xmin,
   pg_catalog.txid_snapshot_xmax(pg_catalog.txid_current_snapshot())::text as xmax`;

/** Returns the horizon of a row with the columns of {@linkcode HORIZON}. */
export function horizonOf(
  { xmin, xmax }: { readonly xmin: string; readonly xmax: string },
): Horizon {
  return { xmin: BigInt(xmin), xmax: BigInt(xmax) };
}

/** Bytes from which a source table is worth a proof. Smaller ones are hashed as fast. */
export const MIN_PROOF_BYTES = 2 ** 21;

/** Maximum number of transactions in a {@linkcode SideState}. */
export const MAX_XIDS = 200;

/**
 * SQL that identifies the server and the database. It changes when the server is
 * restarted, promoted or restored, or recovers from a crash. It also changes when the
 * database is created again.
 */
const SERVER = `(select pg_catalog.concat_ws(' ', system_identifier,
    pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 1, 8),
    pg_catalog.date_part('epoch', pg_catalog.pg_postmaster_start_time())::numeric,
    (select pg_catalog.date_part('epoch', stats_reset)::numeric from pg_catalog.pg_stat_wal),
    (select pg_catalog.concat_ws(' ', d.oid, d.xmin) from pg_catalog.pg_database d
      where d.datname = pg_catalog.current_database()))
  from pg_catalog.pg_control_system())`;

/** A table on one server, with the names of the columns that are read there. */
interface TableOnServer {
  readonly name: string;
  readonly oid: number;
  readonly columns: readonly string[];
}

/**
 * Returns SQL of the facts of each table that a proof supports, as `name` and
 * `facts`. The row version of each catalog row stands for all that it says, because
 * every DDL makes a new one.
 */
function factsSql(tables: readonly TableOnServer[]): string {
  const values = tables.map(({ name, oid, columns }) =>
    `(${literal(name)}, ${oid}::oid, array[${columns.map(literal)}]::text[])`
  );
  return `select wanted.name, pg_catalog.encode(pg_catalog.sha256(pg_catalog.convert_to(pg_catalog.concat_ws('|',
       ${SERVER}, c.oid, c.xmin, c.relfilenode, parts.versions), 'UTF8')), 'hex') as facts
     from (values ${values}) wanted (name, oid, columns)
       join pg_catalog.pg_class c on c.oid = wanted.oid, lateral (
       select pg_catalog.string_agg(pg_catalog.concat_ws(':', a.attnum, a.xmin, base.oid, t.xmin, (
           select pg_catalog.string_agg(pg_catalog.concat_ws(':', e.oid, e.xmin), ',' order by e.oid)
           from pg_catalog.pg_enum e where e.enumtypid = base.oid)), ' ' order by a.attnum) as versions,
         pg_catalog.bool_and(a.attname::text <> all (wanted.columns) or a.attgenerated <> 'v'
           and (base.oid < ${FIRST_VARIABLE_OID} or t.typtype = 'e') and not exists (
             select from pg_catalog.pg_cast k
             -- A load casts to built-in types only.
             where k.castsource = base.oid and k.casttarget < ${FIRST_VARIABLE_OID} and k.castfunc >= ${FIRST_VARIABLE_OID})) as is_plain
       from pg_catalog.pg_attribute a cross join lateral ${BASE_TYPE} base
         left join pg_catalog.pg_type t on t.oid = base.oid
       where a.attrelid = c.oid and a.attnum > 0) parts
     -- The server changes some rows of its own tables in place.
     where c.oid >= ${FIRST_VARIABLE_OID} and ${HAS_STABLE_CTID} and c.relpersistence = 'p'
       and not c.relrowsecurity and parts.is_plain
       and not exists (select from pg_catalog.pg_seclabel l
         where l.objoid = c.oid and l.classoid = 'pg_catalog.pg_class'::pg_catalog.regclass)`;
}

/**
 * Returns the facts of the source tables, by name. Requires the locks of the tables.
 * Must be called between the snapshot and the first read of a row. No lock prevents a
 * change of a label or a cast. Such a change is in the facts, or newer than the snapshot.
 * Returns none where the role may not read them.
 */
export async function sourceFacts(
  session: Session,
  tables: readonly TableOnServer[],
): Promise<ReadonlyMap<string, string>> {
  if (tables.length === 0) return new Map();
  const rows = await queryFacts(session, factsSql(tables));
  return new Map(rows.map(({ name, facts }) => [name, facts]));
}

/** Returns the rows of a query about facts, or none where the role may not read them. */
async function queryFacts(session: Session, sql: string): Promise<Row[]> {
  try {
    return await session.query(
      `savepoint facts;\n${sql};\nrelease savepoint facts`,
    );
  } catch (error) {
    if (session.failure) throw error;
    await session.query("rollback to savepoint facts; release savepoint facts");
    return [];
  }
}

/** The facts about both sides that a proof needs before it reads rows. */
export interface Present {
  readonly declaration: string;
  readonly source: { readonly facts: string; readonly horizon: Horizon };
  readonly target: { readonly facts: string; readonly horizon: bigint };
  /** The loading transaction. Decimal, 64 bits. */
  readonly xid: string;
}

/**
 * Returns the present facts of both sides. Requires the lock of the target. Returns
 * `undefined` where a proof does not support the table, or the role may not read its facts.
 */
export async function presentFacts(
  { table, target: { session }, method }: Sides,
  source: Present["source"] | undefined,
  { oid, hasNoSideEffects }: Target,
  timezone: string,
): Promise<Present | undefined> {
  if (!source || !hasNoSideEffects) return undefined;
  const columns = table.columns.map(({ name }) => name);
  const declaration = JSON.stringify([
    sourceRelation(table, true),
    qualified(table.target),
    table.key,
    timezone,
    rowHash(table.columns, { ...method, seed: 0n }),
  ]);
  // A role that may write the history could forge a state.
  const [target] = await queryFacts(
    session,
    `select facts, pg_catalog.txid_current()::text as xid, ${HORIZON},
       pg_catalog.encode(pg_catalog.sha256(pg_catalog.convert_to(${
      literal(declaration)
    }, 'UTF8')), 'hex') as declaration
     from (${factsSql([{ name: table.name, oid, columns }])}) found
     where not exists (
       select from pg_catalog.pg_class h, lateral (
         select g.grantee as role from (
           select h.relacl as acl union all
           select a.attacl from pg_catalog.pg_attribute a where a.attrelid = h.oid) granted,
           pg_catalog.aclexplode(granted.acl) g
         where g.privilege_type in ('INSERT', 'UPDATE', 'TRIGGER')
         union all
         select m.member from pg_catalog.pg_auth_members m
         where m.roleid = (select r.oid from pg_catalog.pg_roles r where r.rolname = 'pg_write_all_data')) writer
       where h.oid = 'marketing_data_service.table_load'::pg_catalog.regclass
         and writer.role not in (h.relowner, (select r.oid from pg_catalog.pg_roles r where r.rolname = current_user)))`,
  );
  if (!target) return undefined;
  return {
    declaration: target.declaration,
    source,
    target: {
      facts: target.facts,
      horizon: horizonOf(target as { xmin: string; xmax: string }).xmin,
    },
    xid: target.xid,
  };
}

/** Returns the transaction that wrote, or its subtransaction `xid` of 32 bits, if there was one. */
export function writtenBy(
  present: Present,
  xid: string | null | undefined,
): string {
  if (!xid) return present.xid;
  const transaction = BigInt(present.xid);
  const later = BigInt.asUintN(32, BigInt(xid) - transaction);
  return (transaction + later).toString();
}

/**
 * Returns the state that a load leaves behind. `verified` is the fingerprint of both
 * sides with the method of `sides`.
 *
 * @param last the state before, and the transactions that its proof found.
 * @param written the transaction of this load, if it wrote rows.
 */
export function verifiedState(
  { source, target, declaration }: Present,
  { method }: Sides,
  verified: Fingerprint,
  last: VerifiedState | undefined,
  xids: readonly string[],
  written: readonly string[],
): VerifiedState {
  // Rows of earlier loads, where an older transaction still runs.
  const earlier = last?.target.facts === target.facts
    ? last.target.xids.filter((x) => BigInt(x) >= target.horizon)
    : [];
  return {
    declaration,
    seed: method.seed.toString(),
    ...verified,
    source: {
      facts: source.facts,
      horizon: source.horizon.xmin.toString(),
      xids,
    },
    target: {
      facts: target.facts,
      horizon: target.horizon.toString(),
      xids: [...earlier, ...written].slice(-MAX_XIDS),
    },
  };
}
