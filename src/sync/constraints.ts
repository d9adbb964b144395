/**
 * Fires the deferred constraints and triggers of a transaction.
 *
 * @module
 */
import { ServiceError } from "../errors.ts";
import type { Session } from "../postgres/session.ts";

/** The maximum number of times that deferred triggers may defer further ones. */
const MAX_DEFERRALS = 10;

/**
 * Fires deferred constraints and triggers now. So a comparison sees their effects, and
 * none fires at the commit.
 *
 * A trigger can defer others again while it is fired. Only a command that writes can
 * defer one. So none is left after a turn in which no command wrote.
 *
 * @throws {ServiceError} `target_incompatible` when triggers defer each other without
 * end.
 */
export async function settleConstraints(warehouse: Session): Promise<void> {
  const first = await commandId(warehouse);
  let before = await commandId(warehouse);
  const own = before - first;
  for (let turn = 0; turn <= MAX_DEFERRALS; turn++) {
    await warehouse.withOwnSearchPath(() =>
      warehouse.query("set constraints all immediate")
    );
    const after = await commandId(warehouse);
    if (after - before === own) return;
    before = after;
  }
  throw new ServiceError(
    "target_incompatible",
    "deferred triggers defer each other without end, so that they would change rows after the verification",
    { remedy: "Make the constraint triggers of the target NOT DEFERRABLE." },
  );
}

/**
 * Returns the number of the transaction's current command. Every command that
 * writes raises it, also one that is undone, and nothing lowers it.
 *
 * The server shows the number only in a row that the command wrote. A large
 * object is such a row that needs neither a table nor a privilege.
 */
async function commandId(warehouse: Session): Promise<number> {
  const [made] = await warehouse.query("select lo_create(0) as oid");
  const [row] = await warehouse.query(
    `select cmin::text as command from pg_catalog.pg_largeobject_metadata where oid = ${
      made!.oid
    }`,
  );
  await warehouse.query(`select lo_unlink(${made!.oid})`);
  return Number(row!.command);
}
