/** Signs browsers in and out. */
import type { OpenAPIHono } from "@hono/zod-openapi";
import { deleteCookie } from "hono/cookie";
import { ServiceError } from "../../errors.ts";
import { isToken, openSession, SESSION_COOKIE } from "../middleware/auth.ts";
import {
  crossOrigin,
  guarded,
  location,
  posted,
  unauthorized,
} from "../openapi/responses.ts";
import { BodyReader } from "../body_limits.ts";
import type { HttpContext } from "../context.ts";
import type { FailedTokens } from "../middleware/failed_tokens.ts";
import { prefersHtml } from "../pages/layout.tsx";
import { signIn } from "../problem.tsx";
import * as schemas from "../openapi/schemas.ts";

/** Reads sign-in forms. A token and a path are short. */
const forms = new BodyReader(4 * 1024);

/** Adds `/session` and `/session/end`. */
export function addSessionRoutes(
  app: OpenAPIHono,
  { config: { apiToken } }: HttpContext,
  failures: FailedTokens,
): void {
  app.openAPIRegistry.registerPath({
    method: "post",
    path: "/session",
    operationId: "signIn",
    security: [],
    summary: "Signs a browser in with the token and sets a cookie",
    request: {
      body: {
        required: true,
        content: {
          "application/x-www-form-urlencoded": { schema: schemas.SignIn },
        },
      },
    },
    responses: {
      303: {
        description: "Signed in",
        headers: {
          ...location("The requested page"),
          "set-cookie": {
            description:
              "The session, which ends after 12 hours. Absent without API_TOKEN",
            schema: { type: "string" },
          },
        },
      },
      401: unauthorized("The token is wrong"),
      ...posted("4 KiB"),
    },
  });
  app.post("/session", async (c) => {
    const form = new URLSearchParams(await forms.read(c.req.raw));
    const next = ownPath(form.get("next"));
    if (apiToken === undefined) return c.redirect(`.${next}`, 303);
    if (isToken(form.get("token") ?? "", apiToken)) {
      await openSession(c, apiToken);
      return c.redirect(`.${next}`, 303);
    }
    await failures.delay(c);
    const refusal = "The token is wrong. Enter the value of API_TOKEN.";
    if (prefersHtml(c)) return signIn(c, refusal, next);
    throw new ServiceError("unauthorized", "The token is wrong", {
      remedy: "Send the value of API_TOKEN in the field `token`.",
    });
  });
  app.openAPIRegistry.registerPath({
    method: "post",
    path: "/session/end",
    operationId: "signOut",
    summary: "Signs a browser out",
    responses: {
      ...guarded,
      303: { description: "Signed out", headers: location("The dashboard") },
      401: unauthorized("The browser is not signed in"),
      403: crossOrigin,
    },
  });
  app.post("/session/end", (c) => {
    deleteCookie(c, SESSION_COOKIE, { path: "/" });
    return c.redirect("../", 303);
  });
}

/** Returns the path to redirect to, or `/` for a path that leads to another host. */
function ownPath(next: string | null): string {
  const here = "http://here.invalid";
  const url = next?.startsWith("/") ? URL.parse(next, here) : null;
  // "/.//elsewhere.example" is a path. Without the dot it is another host.
  return url?.origin === here && !url.pathname.startsWith("//")
    ? url.pathname + url.search
    : "/";
}
