/**
 * Spans for run, table and phase. Deno exports them when OTEL_DENO=true. The
 * service loads this module only then.
 */
import { context, type Span, SpanStatusCode, trace } from "@opentelemetry/api";
import { VERSION } from "../identity.ts";
import type { LoadEvent } from "../runs/event.ts";
import type { Run } from "../runs/run.ts";
import type { RunObserver } from "../runs/run_observer.ts";
import type { Progress } from "../sync/progress.ts";

interface Traced {
  readonly run: Span;
  readonly tables: Map<string, { span: Span; phase: Span; name: string }>;
}

/** Turns runs into spans. */
export class RunTracer implements RunObserver {
  readonly #tracer = trace.getTracer("marketing-data-service", VERSION);
  readonly #traced = new Map<string, Traced>();

  runStarted(run: Run): void {
    const span = this.#tracer.startSpan("run", {
      attributes: {
        "run.id": run.id,
        "run.trigger": run.trigger,
        "run.mode": run.mode,
      },
    });
    this.#traced.set(run.id, { run: span, tables: new Map() });
  }

  progress(runId: string, progress: Progress): void {
    const parent = this.#traced.get(runId);
    if (!parent) return;
    const known = parent.tables.get(progress.table);
    if (known?.name === progress.phase) return;
    known?.phase.end();
    const span = known?.span ??
      this.#child(`table ${progress.table}`, parent.run);
    parent.tables.set(progress.table, {
      span,
      phase: this.#child(`phase ${progress.phase}`, span),
      name: progress.phase,
    });
  }

  /** Logs of the work have the ids of the trace. */
  within<T>(runId: string, work: () => T): T {
    const span = this.#traced.get(runId)?.run;
    return span
      ? context.with(trace.setSpan(context.active(), span), work)
      : work();
  }

  traceparent(runId: string): string | undefined {
    const span = this.#traced.get(runId)?.run.spanContext();
    if (!span) return undefined;
    const flags = span.traceFlags.toString(16).padStart(2, "0");
    return `00-${span.traceId}-${span.spanId}-${flags}`;
  }

  runEnded(event: LoadEvent): void {
    const parent = this.#traced.get(event.run_id);
    this.#traced.delete(event.run_id);
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
  }

  #child(name: string, parent: Span): Span {
    return this.#tracer.startSpan(
      name,
      {},
      trace.setSpan(context.active(), parent),
    );
  }
}
