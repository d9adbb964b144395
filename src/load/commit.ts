/**
 * The commit of a run: its tables become visible, and its event exists with them.
 *
 * @module
 */
import { APPLICATION_NAME } from "../identity.ts";
import { asServiceError, type ErrorCode } from "../errors.ts";
import {
  type FailedEntry,
  failedEvent,
  failureLine,
  integrityCheck,
  loadedEntry,
  loadedEvent,
  type LoadEvent,
} from "../runs/event.ts";
import { insistently } from "./retry.ts";
import type { RunContext } from "./run_context.ts";
import {
  closeRun,
  committedTables,
  confirmRun,
  databaseTime,
  endBackend,
  eventOf,
  type RunEnd,
} from "../runs/queue.ts";
import { failedUnit, type PreparedUnits, type Unit } from "./prepare.ts";

/**
 * Commits the prepared units back to back; the last of these transactions also
 * closes the run and writes its event, so that neither exists without the other.
 */
export async function commitUnits(
  context: RunContext,
  units: PreparedUnits,
): Promise<LoadEvent> {
  const outcomes = [...units.outcomes];
  const closing: Promise<void>[] = [];
  try {
    let last = outcomes.findLastIndex((unit) => unit.session);
    for (const [index, prepared] of outcomes.entries()) {
      if (!prepared.session) continue;
      let unit = prepared;
      while (unit.session) {
        const isLast = index === last;
        outcomes[index] = unit;
        try {
          const now = await confirmRun(unit.session, context.run.id);
          const end = isLast
            ? runEnd(context, units.snapshotAt, outcomes, now)
            : undefined;
          if (end) await closeRun(unit.session, context.run.id, "running", end);
          await unit.session.commit();
          closing.push(unit.session.close());
          if (end) return end.event;
          break;
        } catch (error) {
          unit.session.destroy();
          const settled = await settleCommit(context, unit);
          if (settled.event) return settled.event;
          if (settled.isCommitted) break;
          const failed = failedUnit(unit.tables, error, unit.attempts);
          const mayTryAgain = asServiceError(error).kind.transient &&
            unit.attempts < context.service.config.retryAttempts &&
            !context.signal?.aborted;
          unit = mayTryAgain ? await units.again(unit) : failed;
          outcomes[index] = unit;
        }
      }
      if (index === last) last = -1;
    }
    return await closeWithoutTables(context, units.snapshotAt, outcomes);
  } finally {
    // What is not committed by now never will be.
    for (const unit of outcomes) unit.session?.destroy();
    await Promise.all([...closing, units.release()]);
  }
}

/** Settles a commit whose outcome is unknown: what it would have written is there or not. */
async function settleCommit(
  context: RunContext,
  unit: Unit,
): Promise<{ isCommitted: boolean; event: LoadEvent | undefined }> {
  const { service: { warehouse }, run } = context;
  return await insistently(context, async () => {
    // The backend may still be committing: after this it is certainly over.
    await endBackend(
      warehouse,
      unit.session!.pid,
      `${APPLICATION_NAME}/${run.id}`,
    );
    const committed = await committedTables(warehouse, run.id);
    return {
      isCommitted: unit.tables.every(({ name }) => committed.includes(name)),
      event: await eventOf(warehouse, run.id),
    };
  });
}

/** Closes a run of which no transaction is left that could do it: its tables failed, or their commits did. */
async function closeWithoutTables(
  context: RunContext,
  snapshotAt: string | null,
  outcomes: readonly Unit[],
): Promise<LoadEvent> {
  const { service: { warehouse }, run } = context;
  return await insistently(context, async () => {
    const end = runEnd(
      context,
      snapshotAt,
      outcomes,
      await databaseTime(warehouse),
    );
    try {
      await closeRun(warehouse, run.id, "running", end);
      return end.event;
    } catch (error) {
      const event = await eventOf(warehouse, run.id);
      if (event) return event;
      throw error;
    }
  });
}

/** The run's end and its event, from what became of its units. */
function runEnd(
  { run }: RunContext,
  sourceSnapshotAt: string | null,
  outcomes: readonly Unit[],
  timestamp: string,
): RunEnd {
  const subject = {
    runId: run.id,
    trigger: run.trigger,
    timestamp,
    sourceSnapshotAt,
  };
  const failed = outcomes.flatMap((unit) => unit.failures);
  const loaded = outcomes.flatMap((unit) =>
    unit.results.map((result) => loadedEntry(result, unit.attempts))
  );
  if (failed.length === 0) {
    const checks = outcomes.flatMap((unit) => unit.results.map(integrityCheck));
    return {
      state: "succeeded",
      event: loadedEvent(subject, loaded, checks),
      code: null,
      failed,
      sourceSnapshotAt,
    };
  }
  const entries = outcomes.flatMap((unit) => [
    ...unit.results.map((result) => loadedEntry(result, unit.attempts)),
    ...unit.failures,
  ]);
  const code = codeOf(failed);
  return {
    state: code === "terminated" ? "interrupted" : "failed",
    event: failedEvent(subject, failureLine(entries), entries),
    code,
    failed,
    sourceSnapshotAt,
  };
}

/** The code of the run: the first table's that failed by itself. */
function codeOf(failed: readonly FailedEntry[]): ErrorCode {
  return (failed.find((f) => f.code !== "rolled_back") ?? failed[0]!).code;
}
