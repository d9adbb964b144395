/** Updates the statistics of the planner after a full load. */
import type { Session } from "../postgres/session.ts";
import { literal, qualified } from "../postgres/sql.ts";
import { formatRelation, type Table } from "../tables/declaration.ts";
import { tableError } from "./table_errors.ts";

/**
 * Updates the statistics of a target, in a separate transaction. Skips a target that
 * another session vacuums or analyzes. The transaction is read-only, so functions of an
 * index cannot write.
 *
 * @throws {ServiceError} `permission_denied`, or the error of the server. The session
 * then has no open transaction, or is destroyed.
 */
export async function analyzeTarget(
  session: Session,
  { name, target }: Table,
  lockTimeoutSeconds: number,
): Promise<void> {
  const relation = qualified(target);
  const isNew = Number.parseInt(session.serverVersion) >= 17;
  let refused: string | undefined;
  try {
    const [row] = await session.begin(
      { mode: "read committed read only", lockTimeoutSeconds },
      // Without the privilege, the server only skips the table.
      `select ${
        isNew
          ? "pg_catalog.has_table_privilege(c.oid, 'MAINTAIN')"
          : "pg_catalog.pg_has_role(c.relowner, 'USAGE')"
      } or pg_catalog.pg_has_role(d.datdba, 'USAGE') as allowed, current_user as role
      from pg_catalog.pg_class c, pg_catalog.pg_database d
      where c.oid = pg_catalog.to_regclass(${literal(relation)})
        and d.datname = pg_catalog.current_database()`,
    );
    if (row?.allowed) await session.query(`analyze (skip_locked) ${relation}`);
    else refused = row?.role;
    await session.commit();
  } catch (error) {
    session.destroy();
    throw error;
  }
  if (refused === undefined) return;
  throw tableError(
    name,
    "permission_denied",
    `role "${refused}" has no privilege to analyze ${formatRelation(target)}`,
  );
}
