/** Metrics of requests. */
import type { MiddlewareHandler } from "hono";
import { routePath } from "hono/route";
import type { Metrics } from "../../service/metrics.ts";

/** Counts and times requests by route pattern. */
export function measure(metrics: Metrics): MiddlewareHandler {
  return async (c, next) => {
    const startedAt = performance.now();
    await next();
    const { status } = c.res;
    const isRoute = ![401, 404, 405].includes(status);
    metrics.request(
      c.req.method,
      isRoute ? routePath(c, -1) : "none",
      status,
      (performance.now() - startedAt) / 1000,
    );
  };
}
