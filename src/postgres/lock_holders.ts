/**
 * Finds the sessions that hold a lock.
 *
 * @module
 */
import { hasSqlstate, ServiceError } from "../errors.ts";
import type { Queryable, Row } from "./sql.ts";

/** A session, or a prepared transaction, that holds a lock on a table. */
interface LockHolder {
  /** The table, without its schema. */
  readonly relation: string;
  /** Null for a prepared transaction. */
  readonly pid: number | null;
  readonly role: string | null;
  readonly application: string;
  /** Mode of the lock, such as `AccessExclusiveLock`. */
  readonly mode: string;
  /** Start of its transaction, UTC. Null where the role may not see it. */
  readonly since: string | null;
}

/**
 * Returns the holders of locks on a table, on the relations with these `oids`, or on all
 * tables of a schema. The strongest lock is first. Omits locks of readers, because only
 * ACCESS EXCLUSIVE waits for them.
 */
export async function findLockHolders(
  queryable: Queryable,
  { schema, name, oids }: {
    readonly schema?: string;
    readonly name?: string;
    readonly oids?: readonly number[];
  },
): Promise<readonly LockHolder[]> {
  return await queryable.query<Row & LockHolder>(
    `select relname::text as relation, lock.pid, usename::text as role,
       coalesce(application_name, '') as application, mode,
       to_char(coalesce(xact_start, backend_start) at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS "UTC"') as since
     from pg_locks lock
       join pg_class on pg_class.oid = relation
       join pg_namespace on pg_namespace.oid = relnamespace
       left join pg_stat_activity activity on activity.pid = lock.pid
     where locktype = 'relation' and granted
       and lock.database = (select oid from pg_database where datname = current_database())
       and ($1::text is null or nspname = $1::text) and ($2::text is null or relname = $2::text)
       and ($3::text is null or relation = any ($3::oid[]))
       and mode <> 'AccessShareLock'
       and lock.pid is distinct from pg_backend_pid()
     order by mode = 'AccessExclusiveLock' desc, mode = 'ExclusiveLock' desc,
       mode in ('ShareRowExclusiveLock', 'ShareLock') desc, xact_start, lock.pid
     limit 100`,
    [schema ?? null, name ?? null, oids ? `{${oids}}` : null],
  );
}

/** Returns a holder as messages name it. */
export function formatHolder(holder: LockHolder): string {
  const { pid, role, application, since } = holder;
  if (pid === null) return "a prepared transaction (see pg_prepared_xacts)";
  const known = [
    role && `role "${role}"`,
    application && `application_name "${application}"`,
    since && `since ${since}`,
  ].filter(Boolean).join(", ");
  return `session ${pid}${known ? ` (${known})` : ""}`;
}

/** Returns the end of a message about a lock. It names the holder, where it is known. */
export async function holderClause(
  ...of: Parameters<typeof findLockHolders>
): Promise<string> {
  const [holder] = await findLockHolders(...of).catch(() => []);
  return holder ? `: ${formatHolder(holder)} holds ${holder.mode}` : "";
}

const SCHEMA = "marketing_data_service";

/**
 * Returns the failure of a statement on the history's tables. The error of a lock
 * timeout names the table and the holder. Any other error is returned unchanged.
 */
export async function nameLockedTable(
  queryable: Queryable,
  error: unknown,
): Promise<unknown> {
  const isLock = hasSqlstate(error, "55P03") && error.code === "serialization";
  if (!isLock) return error;
  const holders = await findLockHolders(queryable, { schema: SCHEMA })
    .catch((): readonly LockHolder[] => []);
  const holder = holders.find(({ relation }) => relation !== "load_lock");
  return new ServiceError("history_locked", reasonOf(holder), {
    cause: error,
    server: error.server,
    sqlstate: error.sqlstate,
  });
}

function reasonOf(holder: LockHolder | undefined): string {
  return holder
    ? `Cannot use the table ${SCHEMA}.${holder.relation}: ${
      formatHolder(holder)
    } holds ${holder.mode}`
    : `Cannot use the tables of ${SCHEMA}: a lock on one of them was not released in time`;
}
