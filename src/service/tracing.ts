/**
 * Spans for run, table and phase. Deno exports them by itself where
 * OTEL_DENO=true; elsewhere this module is not loaded.
 *
 * @module
 */
import { context, type Span, SpanStatusCode, trace } from "@opentelemetry/api";
import type { LoadEvent } from "../runs/event.ts";
import type { Run } from "../runs/queue.ts";
import type { Progress } from "../sync/progress.ts";

interface Traced {
  readonly run: Span;
  readonly tables: Map<string, { span: Span; phase: Span; name: string }>;
}

/** A listener to runs that turns what it hears into spans. */
export function traceRuns(version: string) {
  const tracer = trace.getTracer("marketing-data-service", version);
  const traced = new Map<string, Traced>();
  const child = (name: string, parent: Span) =>
    tracer.startSpan(name, {}, trace.setSpan(context.active(), parent));
  return {
    onStart(run: Run): void {
      const span = tracer.startSpan("run", {
        attributes: {
          "run.id": run.id,
          "run.trigger": run.trigger,
          "run.mode": run.mode,
        },
      });
      traced.set(run.id, { run: span, tables: new Map() });
    },
    onProgress(runId: string, progress: Progress): void {
      const parent = traced.get(runId);
      if (!parent) return;
      const known = parent.tables.get(progress.table);
      if (known?.name === progress.phase) return;
      known?.phase.end();
      const span = known?.span ?? child(`table ${progress.table}`, parent.run);
      parent.tables.set(progress.table, {
        span,
        phase: child(`phase ${progress.phase}`, span),
        name: progress.phase,
      });
    },
    onEnd(event: LoadEvent): void {
      const parent = traced.get(event.run_id);
      traced.delete(event.run_id);
      for (const { span, phase } of parent?.tables.values() ?? []) {
        phase.end();
        span.end();
      }
      if (event.status === "failure") {
        parent?.run.setStatus({
          code: SpanStatusCode.ERROR,
          message: event.error,
        });
      }
      parent?.run.end();
    },
  };
}
