/** Continues the trace of a caller, which Deno does not do in a server of `node:http`. */
import { context, propagation } from "@opentelemetry/api";
import type { MiddlewareHandler } from "hono";

/** Makes the runs of a request parts of the trace that its W3C Trace Context names. */
export function continueTrace(): MiddlewareHandler {
  return (c, next) => {
    const parent = propagation.extract(context.active(), c.req.header());
    return context.with(parent, next);
  };
}
