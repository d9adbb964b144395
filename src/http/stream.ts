/** Server-sent events of one run. */
import { delay } from "@std/async/delay";
import type { Pool } from "../postgres/pool.ts";
import { findRun } from "../runs/history.ts";
import type { LiveRuns } from "../service/live_runs.ts";

/** Milliseconds between two looks at a run of another process. */
const POLL_MILLISECONDS = 1000;

/** Milliseconds between two messages at least: what happens in between is folded into one. */
const PACE_MILLISECONDS = 100;

/** Milliseconds of silence after which a comment keeps proxies from closing. */
const KEEPALIVE_MILLISECONDS = 15_000;

/**
 * The run's state now, at every change, and at its end. A message is only made
 * when the client has taken the one before it, from what is the state then.
 */
export function streamRun(
  warehouse: Pool,
  live: LiveRuns,
  runId: string,
  shutdown: AbortSignal,
): ReadableStream<Uint8Array> {
  const encoder = new TextEncoder();
  const closed = new AbortController();
  const signal = AbortSignal.any([shutdown, closed.signal]);
  let last = "";
  let sentAt = performance.now();
  let hasEnded = false;
  return new ReadableStream({
    async pull(controller) {
      const send = (event: string, data: unknown) =>
        controller.enqueue(
          encoder.encode(`event: ${event}\ndata: ${JSON.stringify(data)}\n\n`),
        );
      while (!signal.aborted && !hasEnded) {
        const run = live.get(runId);
        const state = run
          ? {
            run_id: runId,
            status: "running",
            tables: [...run.tables.values()],
            event: run.event,
          }
          : await storedState(warehouse, runId);
        if (state?.event) {
          hasEnded = true;
          // The event only tells success from failure; the history has the word for it.
          const ended = run ? await storedState(warehouse, runId) : state;
          if (ended) send("state", { ...ended, event: undefined });
          send("end", state.event);
          break;
        }
        const text = JSON.stringify(state);
        if (state && text !== last) {
          last = text;
          sentAt = performance.now();
          send(state.status === "queued" ? "state" : "progress", state);
          await delay(PACE_MILLISECONDS, { signal }).catch(() => {});
          return;
        }
        if (performance.now() - sentAt > KEEPALIVE_MILLISECONDS) {
          sentAt = performance.now();
          controller.enqueue(encoder.encode(": still here\n\n"));
          return;
        }
        const pause = delay(POLL_MILLISECONDS, { signal }).catch(() => {});
        await (run ? Promise.race([run.changed, pause]) : pause);
      }
      controller.close();
    },
    cancel: () => closed.abort(),
  }, { highWaterMark: 1 });
}

/** What the warehouse knows of a run, such as one of another process; nothing while it is out of reach. */
async function storedState(warehouse: Pool, runId: string) {
  const run = await findRun(warehouse, runId).catch(() => undefined);
  return run && {
    run_id: runId,
    status: run.status,
    tables: run.table_loads.map(({ table, result }) => ({
      table,
      phase: "commit",
      rows: result.status === "success" ? result.records_loaded : 0,
      bytes: result.status === "success" ? result.bytes_copied : 0,
      totalRows: null,
    })),
    event: run.event ?? undefined,
  };
}
