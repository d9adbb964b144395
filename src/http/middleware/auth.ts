/** Authenticates callers: programs by the token, browsers by a session. */
import { createHash, timingSafeEqual } from "node:crypto";
import type { Context, MiddlewareHandler } from "hono";
import { getSignedCookie, setSignedCookie } from "hono/cookie";
import { ServiceError } from "../../errors.ts";
import type { FailedTokens } from "./failed_tokens.ts";

/** Name of the cookie of a browser that signed in. */
export const SESSION_COOKIE = "marketing_data_session";

/** Seconds for which a browser stays signed in. */
const SESSION_SECONDS = 12 * 3600;

/** Paths that need no token: health checks, the sign-in form and its assets, and schemas, which hold no data. */
const OPEN = /^\/health(\/|$)|^\/session$|^\/assets\/|^\/schemas\//;

/** Requires the token or a session, except on the open paths. */
export function tokenRequired(
  token: string,
  failures: FailedTokens,
): MiddlewareHandler {
  return async (c, next) => {
    const [, given] = /^Bearer +(.*)$/i.exec(
      c.req.header("authorization") ?? "",
    ) ?? [];
    if (given !== undefined && isToken(given, token)) return next();
    if (await hasSession(c, token)) {
      c.set("isSignedIn", true);
      return next();
    }
    // A wrong token is slow on open paths too. Otherwise callers could guess it there.
    if (given !== undefined) await failures.delay(c);
    if (OPEN.test(c.req.path)) {
      c.set("isAnonymous", true);
      return next();
    }
    throw new ServiceError(
      "unauthorized",
      "The bearer token is missing or wrong",
    );
  };
}

/** Returns whether the caller uses an open path without the required token. */
export function isAnonymous(c: Context): boolean {
  return c.get("isAnonymous") === true;
}

/** Returns whether a token is the expected one. The duration does not depend on it. */
export function isToken(given: string, expected: string): boolean {
  const digest = (text: string) => createHash("sha256").update(text).digest();
  return timingSafeEqual(digest(given), digest(expected));
}

/**
 * Signs a browser in. The cookie contains the signed time of its end, not the
 * token. A new token invalidates it.
 */
export async function openSession(c: Context, token: string): Promise<void> {
  const end = Math.floor(Date.now() / 1000) + SESSION_SECONDS;
  await setSignedCookie(c, SESSION_COOKIE, String(end), secretOf(token), {
    httpOnly: true,
    sameSite: "Strict",
    path: "/",
    secure: isHttps(c.req.header("x-forwarded-proto")),
    maxAge: SESSION_SECONDS,
  });
}

/**
 * Returns whether the browser uses HTTPS, by `X-Forwarded-Proto`. The first of
 * several values is the protocol of the browser.
 */
export function isHttps(forwardedProto: string | undefined): boolean {
  const [first] = (forwardedProto ?? "").split(",");
  return first?.trim().toLowerCase() === "https";
}

/** Returns whether a browser is signed in. */
async function hasSession(c: Context, token: string): Promise<boolean> {
  const end = await getSignedCookie(c, secretOf(token), SESSION_COOKIE);
  return typeof end === "string" && Number(end) > Date.now() / 1000;
}

/** Returns the key for signing sessions. No other use of the token shares it. */
function secretOf(token: string): string {
  return `session of marketing-data-service: ${token}`;
}
