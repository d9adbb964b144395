/** RFC 9457: how every error is answered. */
import type { Context } from "hono";
import { type ErrorKind, ServiceError } from "../errors.ts";

/** Seconds after which a client that was sent away should ask again. */
const RETRY_AFTER_SECONDS = 5;

/** Answers with a problem document. */
export function problem(c: Context, error: ServiceError): Response {
  const { status } = error.kind;
  const headers: Record<string, string> = {
    "content-type": "application/problem+json",
  };
  if (status === 503) headers["retry-after"] = String(RETRY_AFTER_SECONDS);
  if (status === 401) headers["www-authenticate"] = "Bearer";
  return c.body(
    JSON.stringify({
      type: "about:blank",
      title: TITLES[status],
      status,
      detail: error.line,
      code: error.code,
      instance: c.req.path,
      request_id: c.get("requestId"),
    }),
    status,
    headers,
  );
}

const TITLES: Readonly<Record<ErrorKind["status"], string>> = {
  400: "Bad Request",
  401: "Unauthorized",
  404: "Not Found",
  405: "Method Not Allowed",
  408: "Request Timeout",
  409: "Conflict",
  413: "Content Too Large",
  422: "Unprocessable Content",
  500: "Internal Server Error",
  503: "Service Unavailable",
};

/** A 400 that says what is wrong with the request. */
export function badRequest(message: string): ServiceError {
  return new ServiceError("usage", message, {
    remedy: "See /docs for what is allowed.",
  });
}
