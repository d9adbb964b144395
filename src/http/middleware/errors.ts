/** Turns errors into responses and logs the failures of the service. */
import type { OpenAPIHono } from "@hono/zod-openapi";
import type { Context, MiddlewareHandler } from "hono";
import { methodNotAllowed } from "hono/method-not-allowed";
import type { Logger } from "@logtape/logtape";
import { asServiceError, ServiceError } from "../../errors.ts";
import { problem } from "../problem.tsx";
import { isAnonymous } from "./auth.ts";

/** Answers 405 with the allowed methods. */
export function allowedMethods(app: OpenAPIHono): MiddlewareHandler {
  return methodNotAllowed({
    app,
    onMethodNotAllowed(c, methods) {
      const response = problem(
        c,
        new ServiceError(
          "method_not_allowed",
          `${c.req.method} is not allowed on ${c.req.path}`,
        ),
      );
      response.headers.set("allow", methods.join(", "));
      return response;
    },
  });
}

/** Answers unknown paths and thrown errors. Logs errors with status 500 or more. */
export function answerErrors(app: OpenAPIHono, log: Logger): void {
  app.notFound((c) =>
    problem(
      c,
      new ServiceError("not_found", `The path ${c.req.path} does not exist`),
    )
  );
  app.onError((cause, c) => {
    // The client closed the connection. This is not a failure of the service.
    if (hasLeft(c)) return c.body(null);
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

/** Returns whether the client closed the connection before its request was complete or answered. */
function hasLeft(c: Context): boolean {
  // The error of a body comes before the signal.
  return c.req.raw.signal.aborted || Boolean(c.env?.incoming?.errored);
}

/** Returns the error without the messages of a database, for callers without the token. */
function withoutDetails(error: ServiceError): ServiceError {
  if (error.kind.status < 500) return error;
  return new ServiceError(error.code, "The service cannot answer now", {
    remedy: "Send the token to see the cause.",
  });
}
