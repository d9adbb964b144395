/** Refuses requests for another host: where no token is asked for, its name may have been made to lead here. */
import type { MiddlewareHandler } from "hono";
import { ServiceError } from "../errors.ts";
import { problem } from "./problem.tsx";

/** Whether only this machine reaches a listener on that address. */
export function isLoopback(host: string): boolean {
  return /^(127\.\d+\.\d+\.\d+|::1|localhost)$/i.test(host);
}

/**
 * Lets through what is asked of this machine by a name of its own, on any
 * port, and what names no host, as HTTP/1.0 does.
 *
 * A page of another site whose name leads to 127.0.0.1 (DNS rebinding) is of
 * our origin to the browser: only the name that it sends tells it apart.
 */
export function ownHostOnly(): MiddlewareHandler {
  return (c, next) => {
    const host = c.req.header("host");
    if (!host || isOwnHost(host)) return next();
    return Promise.resolve(problem(
      c,
      new ServiceError(
        "foreign_host",
        `The request is for the host ${JSON.stringify(host.slice(0, 100))}`,
      ),
    ));
  };
}

/** Whether a Host header names this machine itself. */
export function isOwnHost(header: string): boolean {
  const [, address, name] = /^(?:\[([^\]]*)\]|([^:]*))(?::\d*)?$/
    .exec(header) ?? [];
  return isLoopback(address ?? name ?? "");
}
