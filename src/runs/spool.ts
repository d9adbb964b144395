/**
 * The spool: failures that could not be put on record because the warehouse
 * was out of reach, kept in a file until it is back.
 *
 * @module
 */
import type { Logger } from "@logtape/logtape";
import { asServiceError, type ErrorCode } from "../errors.ts";
import { type FailedEvent, failedEvent, failureLine } from "./event.ts";
import {
  closeRun,
  endBackends,
  type Executor,
  loadedByRun,
  type Run,
} from "./queue.ts";
import { appendLine, readAll } from "../delivery/file.ts";

/** A failed run and its event; one line of the spool. */
export interface SpooledFailure {
  readonly run: Run;
  readonly event: FailedEvent;
  readonly code: ErrorCode;
}

/**
 * Appends a failure, synced to disk.
 *
 * @throws {ServiceError} `event_file_unwritable`.
 */
export async function spoolFailure(
  path: string,
  failure: SpooledFailure,
): Promise<void> {
  await appendLine(path, JSON.stringify(failure));
}

/**
 * Puts the spooled failures on record, each once however often it is tried,
 * and takes them out of the spool. The caller holds the service's lock. A run
 * that has an end by now, such as one that was found dead, keeps it.
 *
 * Never throws: a failure that is not on record yet is no reason not to load.
 */
export async function drainSpool(
  executor: Executor,
  path: string,
  log: Logger,
): Promise<void> {
  try {
    using file = await openSpool(path);
    if (!file) return;
    // Held until the spool is empty, so that no line is added unseen.
    await file.lock(true);
    const text = new TextDecoder().decode(await readAll(file));
    if (text === "") return;
    for (const line of text.split("\n")) {
      const failure = parseFailure(line);
      if (failure) await record(executor, failure, log);
    }
    await file.truncate(0);
  } catch (error) {
    log.error("Failures stay in the spool {path}: {reason}", {
      path,
      reason: asServiceError(error).message,
    });
  }
}

async function openSpool(path: string): Promise<Deno.FsFile | undefined> {
  try {
    return await Deno.open(path, { read: true, write: true });
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return undefined;
    // The spool of another setup, or none that we may see: nothing of ours is in it.
    if (error instanceof Deno.errors.NotCapable) return undefined;
    throw error;
  }
}

/** The failure in a line; none in an empty one, nor in one that a crash has torn. */
function parseFailure(line: string): SpooledFailure | undefined {
  try {
    const failure = JSON.parse(line) as SpooledFailure;
    const { run, event } = failure;
    return run.id === event.run_id ? failure : undefined;
  } catch {
    return undefined;
  }
}

async function record(
  executor: Executor,
  failure: SpooledFailure,
  log: Logger,
): Promise<void> {
  try {
    await insertClosed(executor, failure);
  } catch (error) {
    const { code, message } = asServiceError(error);
    // Closed by somebody else in the meantime.
    if (code === "run_lost") return;
    if (code !== "value_invalid" && code !== "constraint_violated") throw error;
    log.error("A line of the spool is no failure of a run: {reason}", {
      reason: message,
    });
  }
}

async function insertClosed(
  executor: Executor,
  { run, event, code }: SpooledFailure,
): Promise<void> {
  await executor.query(
    `insert into marketing_data_service.run
       (id, state, trigger, tables, mode, atomic, recreate, started_at)
     values ($1::uuid, 'running', $2,
       (select array_agg(t) from json_array_elements_text($3::text::json) t), $4, $5, $6,
       clock_timestamp())
     on conflict (id) do nothing`,
    [
      run.id,
      run.trigger,
      JSON.stringify(run.tables),
      run.mode,
      run.atomic,
      run.recreate,
    ],
  );
  const [row] = await executor.query(
    "select state from marketing_data_service.run where id = $1::uuid",
    [run.id],
  );
  if (row?.state !== "running" && row?.state !== "queued") return;
  // Its process may have committed a table and not have learned of it.
  await endBackends(executor, run.id);
  const loaded = await loadedByRun(executor, run.id);
  const entries = event.details.results.map((entry) =>
    loaded.find(({ table }) => table === entry.table) ?? entry
  );
  await closeRun(executor, run.id, row.state, {
    state: "failed",
    event: loaded.length === 0
      ? event
      : failedEvent(subjectOf(event), failureLine(entries), entries),
    code,
    failed: entries.filter((entry) => entry.status === "failure"),
    sourceSnapshotAt: null,
  });
}

/** What an event told of its run, for another event of the same run. */
function subjectOf({ run_id, trigger, timestamp }: FailedEvent) {
  return { runId: run_id, trigger, timestamp, sourceSnapshotAt: null };
}
