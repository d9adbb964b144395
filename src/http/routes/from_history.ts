/** Queries of the history for a request. */
import { asServiceError, hasCode, ServiceError } from "../../errors.ts";
import { requireHistory } from "../../runs/schema.ts";
import type { HttpContext } from "../context.ts";

/**
 * Waits for a query of the history and returns its result.
 *
 * @throws {ServiceError} `history_missing` when the schema does not exist yet. It
 *   contains the reason for which the service could not create it.
 */
export async function fromHistory<T>(
  { warehouse, startFailure }: HttpContext,
  work: Promise<T>,
): Promise<T> {
  try {
    return await work;
  } catch (error) {
    if (asServiceError(error).kind.transient) throw error;
    try {
      await requireHistory(warehouse);
    } catch (missing) {
      const cause = startFailure();
      if (!cause || !hasCode(missing, "history_missing")) throw missing;
      throw new ServiceError(
        "history_missing",
        `${missing.message}. ${cause.message}`,
        { cause, remedy: cause.remedy },
      );
    }
    throw error;
  }
}
