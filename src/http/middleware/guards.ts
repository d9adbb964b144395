/** What stands around every route: measures, headers, and errors as problem documents. */
import type { OpenAPIHono } from "@hono/zod-openapi";
import type { Context, MiddlewareHandler } from "hono";
import { methodNotAllowed } from "hono/method-not-allowed";
import { routePath } from "hono/route";
import { NONCE, secureHeaders } from "hono/secure-headers";
import type { Logger } from "@logtape/logtape";
import { asServiceError, ServiceError } from "../../errors.ts";
import type { Metrics } from "../../service/metrics.ts";
import { isAnonymous } from "./auth.ts";
import { problem } from "../problem.tsx";

/** Counts and times requests by route pattern. */
export function measured(metrics: Metrics): MiddlewareHandler {
  return async (c, next) => {
    const began = performance.now();
    await next();
    const route =
      c.res.status === 404 || c.res.status === 405 || c.res.status === 401
        ? "none"
        : routePath(c, -1);
    metrics.request(
      c.req.method,
      route,
      c.res.status,
      (performance.now() - began) / 1000,
    );
  };
}

/** Headers that keep pages to themselves: nothing is loaded from, framed by or sent to elsewhere. */
export function headers(): MiddlewareHandler {
  return secureHeaders({
    contentSecurityPolicy: {
      defaultSrc: ["'none'"],
      styleSrc: [NONCE],
      scriptSrc: [NONCE],
      connectSrc: ["'self'"],
      imgSrc: ["'self'", "data:"],
      baseUri: ["'none'"],
      formAction: ["'self'"],
      frameAncestors: ["'none'"],
    },
  });
}

/** What the content security policy lets the styles and scripts of this answer through by. */
export function nonceOf(c: Context): string {
  return (c.get as (key: string) => string)("secureHeadersNonce");
}

/** Answers 405 with what is allowed. */
export function allowedMethods(app: OpenAPIHono): MiddlewareHandler {
  return methodNotAllowed({
    app,
    onMethodNotAllowed(c, methods) {
      const answer = problem(
        c,
        new ServiceError(
          "method_not_allowed",
          `${c.req.method} is not allowed on ${c.req.path}`,
        ),
      );
      answer.headers.set("allow", methods.join(", "));
      return answer;
    },
  });
}

/** Answers what no route has answered, and logs failures of ours. */
export function answerErrors(app: OpenAPIHono, log: Logger): void {
  app.notFound((c) =>
    problem(c, new ServiceError("not_found", `There is no ${c.req.path}`))
  );
  app.onError((cause, c) => {
    // The client has gone: no answer reaches it, and nothing failed here.
    if (c.req.raw.signal.aborted) return c.body(null);
    const error = asServiceError(cause);
    if (error.kind.status >= 500 && error.code !== "draining") {
      log.error("{method} {path} failed: {error}", {
        method: c.req.method,
        path: c.req.path,
        error: error.line,
        request_id: c.get("requestId" as never),
        ...(error.code === "internal" && cause instanceof Error
          ? { stack: cause.stack }
          : {}),
      });
    }
    return problem(c, isAnonymous(c) ? withoutDetails(error) : error);
  });
}

/** Returns the error without the words of a database, for callers without the token. */
function withoutDetails(error: ServiceError): ServiceError {
  if (error.kind.status < 500) return error;
  return new ServiceError(error.code, "The service cannot answer now", {
    remedy: "Send the token to see the cause.",
  });
}

/** Keeps answers out of caches, unless a route says otherwise. */
export function noStore(): MiddlewareHandler {
  return async (c, next) => {
    await next();
    if (!c.res.headers.has("cache-control")) {
      c.res.headers.set("cache-control", "no-store");
    }
  };
}
