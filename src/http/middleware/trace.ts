/** Continues the trace of a caller, which Deno does not do in a server of `node:http`. */
import {
  context,
  isSpanContextValid,
  type SpanContext,
  trace,
} from "@opentelemetry/api";
import type { MiddlewareHandler } from "hono";

/** Makes the runs of a request parts of the trace that its W3C Trace Context names. */
export function continueTrace(): MiddlewareHandler {
  return (c, next) => {
    const parent = parseTraceparent(c.req.header("traceparent") ?? "");
    return parent
      ? context.with(trace.setSpanContext(context.active(), parent), next)
      : next();
  };
}

function parseTraceparent(header: string): SpanContext | undefined {
  const [, traceId = "", spanId = "", flags = ""] =
    /^00-([\da-f]{32})-([\da-f]{16})-([\da-f]{2})$/.exec(header) ?? [];
  const traceFlags = parseInt(flags, 16) & 1;
  const parent = { traceId, spanId, traceFlags, isRemote: true };
  return isSpanContextValid(parent) ? parent : undefined;
}
