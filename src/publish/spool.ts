/**
 * The spool: failures that could not be put on record because the warehouse
 * was out of reach, kept in a file until it is back.
 *
 * @module
 */
import { type ErrorCode, ServiceError } from "../errors.ts";
import type { FailedEvent } from "../events.ts";
import { closeRun, type Executor, type Run } from "../runs.ts";
import { appendLine } from "./file.ts";

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
 * and empties the spool. The caller holds the service's lock. A run that has
 * an end by now, such as one that was found dead, keeps it.
 */
export async function drainSpool(
  executor: Executor,
  path: string,
): Promise<void> {
  for (const failure of await readSpool(path)) await record(executor, failure);
  await Deno.truncate(path).catch(ignoreMissing);
}

async function readSpool(path: string): Promise<SpooledFailure[]> {
  const text = await Deno.readTextFile(path).catch(ignoreMissing);
  return (text ?? "").split("\n").flatMap((line) => {
    try {
      return [JSON.parse(line)];
    } catch {
      return []; // Empty, or torn by a crash that also kept its process from telling.
    }
  });
}

function ignoreMissing(error: unknown): undefined {
  if (error instanceof Deno.errors.NotFound) return undefined;
  // The spool of another setup, or none that we may see: nothing of ours is in it.
  if (error instanceof Deno.errors.NotCapable) return undefined;
  throw error;
}

async function record(
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
  try {
    await closeRun(executor, run.id, row.state, {
      state: "failed",
      event,
      code,
      failed: event.details.results.filter((entry) =>
        entry.status === "failure"
      ),
      sourceSnapshotAt: null,
    });
  } catch (error) {
    if (!(error instanceof ServiceError) || error.code !== "run_lost") {
      throw error;
    }
  }
}
