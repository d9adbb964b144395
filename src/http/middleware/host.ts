/**
 * Checks the Host header. It must be valid. Without a token it must also name this
 * machine, because a foreign name can resolve to it (DNS rebinding).
 */
import type { MiddlewareHandler } from "hono";
import { isLoopback } from "../../config/loopback.ts";
import { ServiceError } from "../../errors.ts";
import { problem, problemDocument } from "../problem.tsx";

/**
 * Refuses a Host that is none. The address of a request is put together from
 * it and the path, so that one that holds more, such as `x/health?`, would ask
 * for another path than the request line does.
 *
 * Accepts a request without a Host header, as HTTP/1.0 sends it.
 */
export function validHostOnly(): MiddlewareHandler {
  return (c, next) => {
    const host = c.req.header("host");
    if (host === undefined || isHost(host)) return next();
    return Promise.resolve(problemDocument(
      c,
      new ServiceError(
        "usage",
        `The Host header is ${JSON.stringify(host.slice(0, 100))}`,
        { remedy: "Send one Host header that holds a host, or host:port." },
      ),
    ));
  };
}

/** Returns whether a Host header is valid by RFC 9110. */
export function isHost(header: string): boolean {
  // The URL parser accepts paths and users, so the characters are checked first.
  return /^(?:\[[\da-f:.]+\]|(?:[\w.~!$&'()*+,;=-]|%[\da-f]{2})+)(?::\d*)?$/i
    .test(header) && URL.parse(`http://${header}/`) !== null;
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

/** Returns whether a Host header names this machine. */
function isOwnHost(header: string): boolean {
  const [, address, name] = /^(?:\[([^\]]*)\]|([^:]*))(?::\d*)?$/
    .exec(header) ?? [];
  return isLoopback(address ?? name ?? "");
}
