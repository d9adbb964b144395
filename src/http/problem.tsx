/** Responses to errors: RFC 9457 for programs, a page for browsers. */
import { STATUS_CODES } from "node:http";
import type { Context } from "hono";
import { ServiceError } from "../errors.ts";
import { answerPage, prefersHtml } from "./pages/layout.tsx";
import { ProblemPage } from "./pages/problem_page.tsx";
import { SignInPage } from "./pages/sign_in_page.tsx";

const RETRY_AFTER_SECONDS = 5;

/** Returns a response with an error. */
export function problem(c: Context, error: ServiceError): Response {
  const { status } = error.kind;
  if (status === 503) c.header("retry-after", String(RETRY_AFTER_SECONDS));
  if (status === 401) c.header("www-authenticate", "Bearer");
  // Foreign origins and hosts get no page.
  if (!prefersHtml(c) || status === 403) return problemDocument(c, error);
  if (status === 401) return signIn(c, undefined);
  const title = STATUS_CODES[status]!;
  const requestId = c.get("requestId");
  return answerPage(c, {
    title,
    body: <ProblemPage error={error} title={title} requestId={requestId} />,
  }, status);
}

/** Returns a response with an error as a problem document. */
export function problemDocument(c: Context, error: ServiceError): Response {
  const { status } = error.kind;
  return c.body(
    JSON.stringify({
      type: "about:blank",
      title: STATUS_CODES[status],
      status,
      detail: error.line,
      code: error.code,
      // The path of Hono is decoded.
      instance: encodeURI(c.req.path).replaceAll(/[?#]/g, encodeURIComponent),
      request_id: c.get("requestId"),
    }),
    status,
    { "content-type": "application/problem+json" },
  );
}

/** Returns the sign-in form. It leads to `next` afterwards. */
export function signIn(
  c: Context,
  refusal: string | undefined,
  next = requestedPath(c),
): Response {
  // Browsers send no cookie with a link on another site, but with a refresh of this page.
  if (c.req.header("sec-fetch-site") === "cross-site") c.header("refresh", "0");
  return answerPage(c, {
    title: "Sign in",
    isClosed: true,
    body: <SignInPage next={next} refusal={refusal} />,
  }, 401);
}

function requestedPath(c: Context): string {
  if (c.req.method !== "GET") return "/";
  const { pathname, search } = new URL(c.req.url);
  return pathname + search;
}

/** Returns an error with status 400. */
export function badRequest(message: string): ServiceError {
  return new ServiceError("usage", message, {
    remedy: "See /docs for the valid requests.",
  });
}
