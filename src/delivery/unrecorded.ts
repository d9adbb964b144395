/**
 * Requests outside of traces. With OTEL_DENO=true, Deno records the URL of each
 * request, and the URLs of the webhook and of alerts are secrets.
 */
import { ServiceError } from "../errors.ts";

/** Returns whether Deno has registered with OpenTelemetry. Its library is loaded only then. */
function isTraced(): boolean {
  return Symbol.for("opentelemetry.js.api.1") in globalThis;
}

/** Returns a parent that is not sampled. The sampler then drops its children. */
async function openTelemetry() {
  const { context, ROOT_CONTEXT, trace, TraceFlags } = await import(
    "@opentelemetry/api"
  );
  const parent = trace.setSpanContext(ROOT_CONTEXT, {
    traceId: "f".repeat(32),
    spanId: "f".repeat(16),
    traceFlags: TraceFlags.NONE,
  });
  return { context, trace, parent, TraceFlags };
}

/** Does the work outside of any trace. */
export async function unrecorded<T>(work: () => Promise<T>): Promise<T> {
  if (!isTraced()) return await work();
  const { context, parent } = await openTelemetry();
  return await context.with(parent, work);
}

/**
 * Checks that {@linkcode unrecorded} works.
 *
 * @throws {ServiceError} `configuration` when the sampler ignores the parent.
 */
export async function checkUnrecorded(): Promise<void> {
  if (!isTraced()) return;
  const { trace, parent, TraceFlags } = await openTelemetry();
  const tracer = trace.getTracer("marketing-data-service");
  // This span never ends, so it is not exported.
  const { traceFlags } = tracer.startSpan("check", {}, parent).spanContext();
  if ((traceFlags & TraceFlags.SAMPLED) === 0) return;
  throw new ServiceError(
    "configuration",
    "Cannot start: traces would contain the secret URLs of the webhook and of alerts",
    {
      remedy:
        "Set OTEL_TRACES_SAMPLER=parentbased_always_on, which needs Deno 2.9, or unset OTEL_DENO.",
    },
  );
}
