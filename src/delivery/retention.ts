/** Removes old runs, unless their events still wait for a delivery. */
import type { AppContext } from "../context.ts";
import { asServiceError } from "../errors.ts";
import { pruneHistory } from "../runs/history.ts";
import { publisherNames } from "./deliverer.ts";

/** Removes runs older than RUN_RETENTION_DAYS. Never throws: the next run retries. */
export async function prune(
  { config, warehouse, log }: Pick<AppContext, "config" | "warehouse" | "log">,
): Promise<void> {
  const names = publisherNames(config);
  try {
    await pruneHistory(warehouse, config.runRetentionDays, names);
  } catch (error) {
    log.warn("Cannot remove old runs: {error}", {
      error: asServiceError(error).line,
    });
  }
}
