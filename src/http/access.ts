/** Who may come in: programs by the token itself, browsers by a session that the token was once given for. */
import type { Context, MiddlewareHandler } from "hono";
import { deleteCookie, getSignedCookie, setSignedCookie } from "hono/cookie";
import { ServiceError } from "../errors.ts";
import { problem } from "./problem.tsx";

const COOKIE = "marketing_data_session";

/** Seconds for which a browser stays signed in. */
const SESSION_SECONDS = 12 * 3600;

/** Paths that are open: the health checks, and the way in. */
const OPEN = /^\/health(\/|$)|^\/session$/;

/** Lets nobody through without the token or a session. */
export function tokenRequired(token: string): MiddlewareHandler {
  const isToken = tokenCheck(token);
  return async (c, next) => {
    const bearer = /^Bearer +(.*)$/i.exec(c.req.header("authorization") ?? "");
    const isIn = OPEN.test(c.req.path) || await isToken(bearer?.[1] ?? "") ||
      await hasSession(c, token);
    if (isIn) return next();
    return problem(
      c,
      new ServiceError("unauthorized", "The bearer token is missing or wrong"),
    );
  };
}

/** Compares digests, so that the time it takes says nothing about the token. */
export function tokenCheck(token: string) {
  const digest = async (text: string) =>
    new Uint8Array(
      await crypto.subtle.digest("SHA-256", new TextEncoder().encode(text)),
    );
  const expected = digest(token);
  return async (given: string): Promise<boolean> => {
    const wanted = await expected;
    return (await digest(given)).reduce(
      (sum, byte, i) => sum | (byte ^ wanted[i]!),
      0,
    ) === 0;
  };
}

/** Signs a browser in. The cookie holds when it ends, signed: it does not tell the token, and dies with it. */
export async function openSession(c: Context, token: string): Promise<void> {
  const isSecure = new URL(c.req.url).protocol === "https:" ||
    c.req.header("x-forwarded-proto") === "https";
  const end = Math.floor(Date.now() / 1000) + SESSION_SECONDS;
  await setSignedCookie(c, COOKIE, String(end), secretOf(token), {
    httpOnly: true,
    sameSite: "Strict",
    path: "/",
    secure: isSecure,
    maxAge: SESSION_SECONDS,
  });
}

/** Signs a browser out. */
export function closeSession(c: Context): void {
  deleteCookie(c, COOKIE, { path: "/" });
}

/** Whether a browser is signed in. */
export async function hasSession(
  c: Context,
  token: string | undefined,
): Promise<boolean> {
  if (token === undefined) return false;
  const end = await getSignedCookie(c, secretOf(token), COOKIE);
  return typeof end === "string" && Number(end) > Date.now() / 1000;
}

/** What sessions are signed with: nothing else that the token may sign is taken for one. */
function secretOf(token: string): string {
  return `session of marketing-data-service: ${token}`;
}
