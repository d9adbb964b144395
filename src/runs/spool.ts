/**
 * The spool: a file of failures that the warehouse did not record. A later load
 * records them.
 *
 * @module
 */
import type { Queryable } from "../postgres/sql.ts";
import type { Logger } from "@logtape/logtape";
import { asServiceError, type ErrorCode } from "../errors.ts";
import { formatQuantity } from "../format.ts";
import {
  failedEntry,
  type FailedEvent,
  failedEvent,
  failureLine,
  subjectOf,
  timestampOf,
} from "./event.ts";
import type { AppContext } from "../context.ts";
import { closeRun, IS_UNWANTED, loadedByRun } from "./record.ts";
import { endBackends } from "../postgres/backends.ts";
import type { QueuedRun, Run } from "./run.ts";
import { withdrawWait } from "./queue.ts";
import {
  type AppendFile,
  appendLine,
  keepOnly,
  NEWLINE,
  readLines,
  withFile,
} from "../append_file.ts";

/** A failed run and its event: one line of the spool. */
interface SpooledFailure {
  readonly run: Run;
  readonly event: FailedEvent;
  readonly code: ErrorCode;
  /** The process that requested the run. Lines of version 0.1 lack it. */
  readonly runner?: string;
  /** The end of the wait of that process, see `QueuedRun`. */
  readonly deadline?: number | null | undefined;
}

/** Returns the spool at the path. */
export function spoolFile(path: string): AppendFile {
  return { path, label: "spool", variable: "EVENT_SPOOL_FILE" };
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
  await appendLine(spoolFile(path), JSON.stringify(failure), "keep");
}

/**
 * Spools a failure that the warehouse did not record. The next load records it
 * there. Never throws.
 */
export async function spoolUnrecorded(
  { config, log, workerId: runner }: AppContext,
  { deadline, ...run }: Run & Partial<QueuedRun>,
  cause: unknown,
): Promise<void> {
  const error = asServiceError(cause);
  const entries = run.tables.map((table) =>
    failedEntry(config.tables, table, error, 1)
  );
  const timestamp = timestampOf(new Date());
  const event = failedEvent(
    subjectOf(config, run, { timestamp, sourceSnapshotAt: null }),
    error.line,
    entries,
  );
  const failure = { run, event, code: error.code, runner, deadline };
  try {
    await spoolFailure(config.eventSpoolFile, failure);
  } catch (reason) {
    log.error("Cannot record the failure of run {run_id}: {reason}", {
      run_id: run.id,
      reason: asServiceError(reason).line,
    });
  }
}

/**
 * Records the spooled failures, each once, and removes them from the spool. The
 * caller holds the service's lock. A run that has already ended keeps its end. Other
 * lines stay, because the file may contain other data. Never throws, because an
 * unrecorded failure must not prevent a load.
 */
export async function drainSpool(
  queryable: Queryable,
  path: string,
  log: Logger,
): Promise<void> {
  try {
    await withFile(spoolFile(path), { create: false }, async (file) => {
      // The lock is held until the spool is empty, so that no line is lost.
      await file.lock(true);
      await drain(queryable, file, path, log);
    });
  } catch (error) {
    const { cause, line } = asServiceError(error);
    // Without access to the spool, this process has no lines in it.
    if (cause instanceof Deno.errors.NotCapable) return;
    log.error("Failures stay in the spool {path}: {reason}", {
      path,
      reason: line,
    });
  }
}

async function drain(
  queryable: Queryable,
  file: Deno.FsFile,
  path: string,
  log: Logger,
): Promise<void> {
  const rest: { start: number; end: number }[] = [];
  let drained = 0;
  let foreign = 0;
  for await (const { bytes, start, end } of readLines(file)) {
    // A line without a text is a hole after a crash.
    if (bytes?.every((byte) => byte === 0 || byte === NEWLINE)) continue;
    const failure = bytes && parseFailure(bytes);
    const result = failure && await record(queryable, failure, log);
    if (result === "recorded") drained++;
    else {
      const last = rest.at(-1);
      if (last?.end === start) last.end = end;
      else rest.push({ start, end });
      if (result !== "waiting") foreign++;
    }
  }
  if (foreign > 0) {
    log.warn(
      "Cannot read {lines} of the spool {path}: only failures of runs belong there. Other lines stay. Remove them, or name another file in EVENT_SPOOL_FILE.",
      { path, lines: formatQuantity(foreign, "line"), count: foreign },
    );
  }
  if (drained > 0) await keepOnly(file, rest);
}

/** Returns the failure in a line, or `undefined` for a torn or foreign line. */
function parseFailure(line: Uint8Array): SpooledFailure | undefined {
  // Parsing each line of a large file of other data takes long.
  if (line[0] !== "{".charCodeAt(0)) return undefined;
  try {
    const text = new TextDecoder().decode(line);
    const failure = JSON.parse(text) as SpooledFailure;
    const { run, event } = failure;
    return run.id === event.run_id ? failure : undefined;
  } catch {
    return undefined;
  }
}

/**
 * Records a failure. It waits while its run is queued and a caller may still start it.
 * Returns `undefined` when the line is not a failure.
 */
async function record(
  queryable: Queryable,
  failure: SpooledFailure,
  log: Logger,
): Promise<"recorded" | "waiting" | undefined> {
  try {
    return await insertClosed(queryable, failure) ? "recorded" : "waiting";
  } catch (error) {
    const { code, message } = asServiceError(error);
    // Another process has closed the run.
    if (code === "run_lost") return "recorded";
    if (code !== "value_invalid" && code !== "constraint_violated") throw error;
    log.error("Cannot read a line of the spool: {reason}", {
      reason: message,
    });
    return undefined;
  }
}

/** Closes the run of a failure. Returns whether it has an end. */
async function insertClosed(
  queryable: Queryable,
  { run, event, code, runner, deadline }: SpooledFailure,
): Promise<boolean> {
  await queryable.query(
    `insert into marketing_data_service.run
       (id, state, trigger, tables, mode, atomic, recreate, allow_shrink, started_at)
     values ($1::uuid, 'running', $2, $3::text[], $4, $5, $6, $7, clock_timestamp())
     on conflict (id) do nothing`,
    [
      run.id,
      run.trigger,
      run.tables,
      run.mode,
      run.atomic,
      run.recreate,
      // Versions before 0.2 spooled runs without it.
      run.allowShrink ?? false,
    ],
  );
  if (runner) {
    const { id } = run;
    await withdrawWait(queryable, { id, deadline: deadline ?? null }, runner);
  }
  const [row] = await queryable.query(
    `select state, ${IS_UNWANTED} as is_unwanted
     from marketing_data_service.run where id = $1::uuid`,
    [run.id],
  );
  if (row?.state !== "running" && row?.state !== "queued") return true;
  if (row.state === "queued" && !row.is_unwanted) return false;
  // Its process may have committed a table without an answer.
  await endBackends(queryable, run.id);
  const loaded = await loadedByRun(queryable, run.id);
  const entries = event.details.results.map((entry) =>
    loaded.find(({ table }) => table === entry.table) ?? entry
  );
  const { timestamp, started_at: startedAt, run_url: runUrl } = event;
  const subject = {
    runId: run.id,
    trigger: event.trigger,
    timestamp,
    sourceSnapshotAt: null,
    startedAt,
    runUrl,
  };
  const known = loaded.length === 0
    ? event
    : failedEvent(subject, failureLine(entries), entries);
  await closeRun(queryable, run.id, row.state, known, code);
  return true;
}
