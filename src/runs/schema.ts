/**
 * Migrates the schema of the service in the warehouse.
 *
 * @module
 */
import { identifier, type Queryable } from "../postgres/sql.ts";
import { nameLockedTable } from "../postgres/lock_holders.ts";
import type { Pool } from "../postgres/pool.ts";
import { type ConnectionOptions, Session } from "../postgres/session.ts";
import { hasCode, hasSqlstate, ServiceError } from "../errors.ts";
import { eventTriggerRemedy } from "../sync/target.ts";

/** The migrations in order. The version is the position, from 1. */
const MIGRATIONS = [
  "0001_initial.sql",
  "0002_deliveries.sql",
  "0003_last_change.sql",
  "0004_askers.sql",
  "0005_source_mark.sql",
  "0006_locks.sql",
  "0007_many_tables.sql",
  "0008_last_failure.sql",
  "0009_allow_shrink.sql",
  "0010_alerts.sql",
  "0011_differing_rows.sql",
] as const;

/** Seconds to wait for another process that migrates, and for locks on the history's tables. */
const LOCK_TIMEOUT_SECONDS = 60;

/** SQLSTATEs of two processes that create the same schema or table at the same moment. */
const CREATED_MEANWHILE = ["23505", "42P06", "42P07"];

/**
 * Applies the missing migrations.
 *
 * @throws {ServiceError} `schema_too_new`, `permission_denied`, `read_only`, or
 * `history_locked` when another session locks its tables.
 */
export async function migrate(
  pool: Pool,
  connection: ConnectionOptions,
): Promise<void> {
  const version = await currentVersion(pool);
  if (version === MIGRATIONS.length) return;
  refuseNewer(version);
  await pool.checkWritable();
  try {
    await applyMissing(pool, connection, version === 0).catch((error) => {
      if (!hasSqlstate(error, ...CREATED_MEANWHILE)) throw error;
      return applyMissing(pool, connection, false);
    });
  } catch (error) {
    throw await withRemedy(await nameLockedTable(pool, error), pool);
  }
}

/**
 * Applies the missing migrations in one transaction, under a lock that requires a
 * privilege. `isNew` also creates the schema.
 */
async function applyMissing(
  pool: Pool,
  connection: ConnectionOptions,
  isNew: boolean,
): Promise<void> {
  await using session = await Session.open(pool.config, connection);
  await session.begin({
    mode: "read committed",
    lockTimeoutSeconds: LOCK_TIMEOUT_SECONDS,
  });
  if (isNew) await session.query(BOOTSTRAP);
  await session.query(
    "lock table marketing_data_service.migration in exclusive mode",
  );
  // Look again under the lock: another process may have migrated.
  const from = await currentVersion(session);
  refuseNewer(from);
  for (const [index, file] of MIGRATIONS.entries()) {
    if (index < from) continue;
    await session.query(await migrationText(file));
    await session.query(
      "insert into marketing_data_service.migration (version, name) values ($1, $2)",
      [index + 1, file],
    );
  }
  await session.commit();
}

/**
 * Checks that the history exists.
 *
 * @throws {ServiceError} `history_missing`, `schema_too_new`.
 */
export async function requireHistory(pool: Pool): Promise<void> {
  const version = await currentVersion(pool);
  refuseNewer(version);
  if (version === MIGRATIONS.length) return;
  throw new ServiceError(
    "history_missing",
    version === 0
      ? `Cannot read the history: no load has created it in database "${pool.config.database}"`
      : `Cannot read the history: database "${pool.config.database}" has version ${version}, not ${MIGRATIONS.length}`,
  );
}

/** An administrator may have created the schema for a role without CREATE. */
const BOOTSTRAP = `
  do $$ begin
    if to_regnamespace('marketing_data_service') is null then
      create schema marketing_data_service;
    end if;
  end $$;
  create table if not exists marketing_data_service.migration (
    version int primary key,
    name text not null,
    applied_at timestamptz not null default clock_timestamp()
  )`;

/** Returns the number of migrations that are applied. */
async function currentVersion(queryable: Queryable): Promise<number> {
  try {
    const [row] = await queryable.query(
      "select coalesce(max(version), 0) as version from marketing_data_service.migration",
    );
    return row!.version;
  } catch (error) {
    // 42P01: no process has created the table.
    if (hasSqlstate(error, "42P01")) return 0;
    throw error;
  }
}

function refuseNewer(version: number): void {
  if (version > MIGRATIONS.length) {
    throw new ServiceError(
      "schema_too_new",
      `Cannot use schema marketing_data_service of the warehouse: it has version ${version}, and this program supports up to ${MIGRATIONS.length}`,
    );
  }
}

async function withRemedy(error: unknown, pool: Pool): Promise<unknown> {
  if (!hasCode(error, "permission_denied")) return error;
  const { database, user } = pool.config;
  const grant =
    `Grant CREATE on database ${identifier(database)} to ${
      identifier(user)
    }, ` +
    `or create the schemas marketing_data_service and m_data owned by it.`;
  const eventTrigger = await eventTriggerRemedy(pool, user);
  return new ServiceError(
    "permission_denied",
    `Cannot set up schema marketing_data_service: ${error.message}`,
    {
      cause: error,
      remedy: eventTrigger ? `${grant} ${eventTrigger}` : grant,
    },
  );
}

function migrationText(file: string): Promise<string> {
  return Deno.readTextFile(new URL(`./migrations/${file}`, import.meta.url));
}
