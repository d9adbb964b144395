/** Queries of the history for a request. */
import { asServiceError } from "../../errors.ts";
import type { Pool } from "../../postgres/pool.ts";
import { requireHistory } from "../../runs/schema.ts";

/**
 * Waits for a query of the history and returns its result.
 *
 * @throws {ServiceError} `history_missing` when the schema does not exist yet.
 */
export async function fromHistory<T>(
  warehouse: Pool,
  work: Promise<T>,
): Promise<T> {
  try {
    return await work;
  } catch (error) {
    if (!asServiceError(error).kind.transient) await requireHistory(warehouse);
    throw error;
  }
}
