/** Server-sent events of one run. */
import { delay } from "@std/async/delay";
import { printableJson } from "../../format.ts";
import type { RunDetails } from "../../runs/history.ts";
import type { LiveRuns } from "../../service/live_runs.ts";
import type { Progress } from "../../sync/progress.ts";
import type { StoredRuns } from "./stored_runs.ts";

/** Minimum milliseconds between two messages. Changes in between are combined. */
const PACE_MILLISECONDS = 100;

/** Milliseconds without a message after which a comment keeps proxies from closing the stream. */
const KEEPALIVE_MILLISECONDS = 15_000;

/** Maximum number of tables that every message repeats. A message about more tables has those that changed. */
const MAX_REPEATED = 10;

/**
 * Sends the state of a run at once, after each change, and at its end. Creates a
 * message only after the client has read the previous one. The stream ends with
 * the run, or when the run is deleted.
 */
export function streamRun(runId: string, { live, stored, shutdown }: {
  readonly live: LiveRuns;
  readonly stored: StoredRuns;
  readonly shutdown: AbortSignal;
}): ReadableStream<Uint8Array> {
  const encoder = new TextEncoder();
  const closed = new AbortController();
  const signal = AbortSignal.any([shutdown, closed.signal]);
  let last = "";
  const sent = new Map<string, string>();
  /** Returns the tables whose state the client does not have. */
  const news = (tables: readonly { readonly table: string }[]) =>
    tables.length <= MAX_REPEATED ? tables : tables.filter((state) => {
      const text = JSON.stringify(state);
      const isNew = sent.get(state.table) !== text;
      sent.set(state.table, text);
      return isNew;
    });
  let sentAt = performance.now();
  return new ReadableStream({
    async pull(controller) {
      const send = (event: string, data: unknown) =>
        controller.enqueue(
          encoder.encode(
            `event: ${event}\ndata: ${printableJson(JSON.stringify(data))}\n\n`,
          ),
        );
      while (true) {
        const run = live.get(runId);
        const found = run ? undefined : await stored.next(runId, signal);
        if (found === "deleted") break;
        const state = run
          ? {
            run_id: runId,
            status: "running",
            tables: [...run.tables.values()].map(tableState),
            event: run.event,
          }
          : found && storedState(found);
        if (state?.event) {
          // The event has no state `interrupted`. The history has it.
          const record = run ? await stored.find(runId) : undefined;
          const ended = record ? storedState(record) : run ? undefined : state;
          if (ended) send("state", { ...ended, event: undefined });
          send("end", state.event);
          break;
        }
        // A run that ended at the same moment is sent first.
        if (signal.aborted) break;
        const text = JSON.stringify(state);
        if (state && text !== last) {
          last = text;
          sentAt = performance.now();
          send(
            state.status === "queued" ? "state" : "progress",
            { ...state, tables: news(state.tables) },
          );
          await delay(PACE_MILLISECONDS, { signal }).catch(() => {});
          return;
        }
        if (performance.now() - sentAt > KEEPALIVE_MILLISECONDS) {
          sentAt = performance.now();
          controller.enqueue(encoder.encode(": keepalive\n\n"));
          return;
        }
        if (run) {
          const timer = new AbortController();
          await Promise.race([
            run.changed,
            delay(KEEPALIVE_MILLISECONDS, {
              signal: AbortSignal.any([signal, timer.signal]),
            }).catch(() => {}),
          ]);
          timer.abort();
        }
      }
      controller.close();
    },
    cancel: () => closed.abort(),
  }, { highWaterMark: 1 });
}

/** Returns the progress of a table in the format of the API. */
function tableState({ table, phase, rows, bytes, totalRows }: Progress) {
  return { table, phase, rows, bytes, total_rows: totalRows };
}

/** Returns the state of a stored run, such as a run of another process. */
function storedState(run: RunDetails) {
  return {
    run_id: run.run_id,
    status: run.status,
    tables: run.table_loads.map(({ table, result }) => ({
      table,
      phase: "commit",
      rows: result.status === "success" ? result.records_loaded : 0,
      bytes: result.status === "success" ? result.bytes_copied : 0,
      total_rows: null,
    })),
    event: run.event ?? undefined,
  };
}
