/** Responses to errors: RFC 9457 for programs, a page for browsers. */
import type { Context } from "hono";
import { type ErrorKind, ServiceError } from "../errors.ts";
import { answerPage, prefersHtml } from "./pages/layout.tsx";
import { ProblemPage } from "./pages/problem_page.tsx";
import { SignInPage } from "./pages/sign_in_page.tsx";

/** Seconds in the Retry-After header. */
const RETRY_AFTER_SECONDS = 5;

/** Returns a response with an error. */
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

/** Returns the sign-in form. It leads to `next` afterwards. */
export function signIn(
  c: Context,
  refusal: string | undefined,
  next = pageAsked(c),
): Response {
  // A link on another site sends no cookie. A refresh by our own page sends it.
  if (c.req.header("sec-fetch-site") === "cross-site") c.header("refresh", "0");
  return answerPage(c, {
    title: "Sign in",
    isClosed: true,
    body: <SignInPage next={next} refusal={refusal} />,
  }, 401);
}

/** Returns the path of the requested page. */
function pageAsked(c: Context): string {
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
