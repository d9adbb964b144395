/** How every error is answered: RFC 9457 for programs, a page for browsers. */
import type { Context } from "hono";
import { type ErrorKind, ServiceError } from "../errors.ts";
import { answerPage, prefersHtml } from "./pages/layout.tsx";
import { ProblemPage } from "./pages/problem_page.tsx";
import { SignInPage } from "./pages/sign_in_page.tsx";

/** Seconds after which a client that was sent away should ask again. */
const RETRY_AFTER_SECONDS = 5;

/** Answers with what went wrong. */
export function problem(c: Context, error: ServiceError): Response {
  const { status } = error.kind;
  if (status === 503) c.header("retry-after", String(RETRY_AFTER_SECONDS));
  if (status === 401) c.header("www-authenticate", "Bearer");
  if (prefersHtml(c)) {
    if (status === 401) return signIn(c, undefined);
    // A page of another origin gets no details.
    if (status !== 403 && status !== 409 && status !== 422) {
      return answerPage(c, {
        title: TITLES[status],
        body: (
          <ProblemPage
            error={error}
            title={TITLES[status]}
            requestId={c.get("requestId")}
          />
        ),
      }, status);
    }
  }
  return problemDocument(c, error);
}

/** Answers with the failure as a problem document. */
export function problemDocument(c: Context, error: ServiceError): Response {
  const { status } = error.kind;
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
    { "content-type": "application/problem+json" },
  );
}

const TITLES: Readonly<Record<ErrorKind["status"], string>> = {
  400: "Bad Request",
  401: "Unauthorized",
  403: "Forbidden",
  404: "Not Found",
  405: "Method Not Allowed",
  408: "Request Timeout",
  409: "Conflict",
  413: "Content Too Large",
  422: "Unprocessable Content",
  500: "Internal Server Error",
  503: "Service Unavailable",
};

/** Answers with the form that asks for the token, and afterwards leads to `next`. */
export function signIn(
  c: Context,
  refusal: string | undefined,
  next = pageAsked(c),
): Response {
  // A link from elsewhere comes without the cookie; asked again by our own page, the browser sends it.
  if (c.req.header("sec-fetch-site") === "cross-site") c.header("refresh", "0");
  return answerPage(c, {
    title: "Sign in",
    isClosed: true,
    body: <SignInPage next={next} refusal={refusal} />,
  }, 401);
}

/** Path of the page that was asked for. */
function pageAsked(c: Context): string {
  if (c.req.method !== "GET") return "/";
  const { pathname, search } = new URL(c.req.url);
  return pathname + search;
}

/** A 400 that says what is wrong with the request. */
export function badRequest(message: string): ServiceError {
  return new ServiceError("usage", message, {
    remedy: "See /docs for what is allowed.",
  });
}
