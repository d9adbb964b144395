/** Who may come in: whoever has the token. */
import type { MiddlewareHandler } from "hono";
import { ServiceError } from "../errors.ts";
import { problem } from "./problem.ts";

/** Lets nobody through without the token, except to the health checks. */
export function tokenRequired(token: string): MiddlewareHandler {
  const isToken = tokenCheck(token);
  return async (c, next) => {
    const isOpen = /^\/health(\/|$)/.test(c.req.path);
    const bearer = /^Bearer +(.*)$/i.exec(c.req.header("authorization") ?? "");
    if (isOpen || await isToken(bearer?.[1] ?? "")) return next();
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
