/**
 * Opens and describes both sides of a table.
 *
 * @module
 */
import type { Sides } from "../diff/find_difference.ts";
import type { Session } from "../postgres/session.ts";
import type { Table } from "../tables/declaration.ts";
import type { Snapshot } from "./snapshot.ts";
import { sourceRelation } from "./source_tables.ts";
import type { Target } from "./find_target.ts";

/** Waits for both. When one fails, destroys the reader and throws the failure. */
export async function bothSides<T>(
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

/** Returns both sides of a comparison. */
export function sidesOf(
  table: Table,
  snapshot: Snapshot,
  source: Session,
  warehouse: Session,
  target: Pick<Target, "relation" | "hasStableCtid" | "hashProbe">,
): Sides {
  const hasStableCtid = snapshot.withStableCtid.has(table.name);
  const isComparable = snapshot.hashProbe === target.hashProbe &&
    snapshot.encoding === warehouse.serverEncoding;
  return {
    table,
    source: {
      session: source,
      relation: sourceRelation(table, hasStableCtid),
      hasStableCtid,
    },
    target: {
      session: warehouse,
      relation: target.relation,
      hasStableCtid: target.hasStableCtid,
    },
    method: { kind: isComparable ? "native" : "text", seed: snapshot.seed },
  };
}

/**
 * Runs `work`, in which the servers find many rows by their ctid. They then fetch
 * these rows rather than scan the table. The planner would count each row as a random
 * read from a hard disk, but a server fetches rows in the order of their ctids.
 */
export async function fetchingByCtid<T>(
  { source, target }: Sides,
  work: () => Promise<T>,
): Promise<T> {
  const sides = [source, target].filter(({ hasStableCtid }) => hasStableCtid);
  const setCost = (value: string) =>
    Promise.all(
      sides.map(({ session }) =>
        session.query(`set local random_page_cost ${value}`)
      ),
    );
  await setCost("= 1");
  const result = await work();
  await setCost("to default");
  return result;
}
