/**
 * What a request says which host it is for. It must say it well; and where no
 * token is asked for, it must be ours: another name may have been made to lead here.
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
 * What names no host, as HTTP/1.0 does, is let through.
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

/** Whether a Host header is a host and a port as RFC 9110 has them. */
export function isHost(header: string): boolean {
  // The characters first, because the parser of URLs takes a path or a user for what they are.
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

/** Whether a Host header names this machine itself. */
function isOwnHost(header: string): boolean {
  const [, address, name] = /^(?:\[([^\]]*)\]|([^:]*))(?::\d*)?$/
    .exec(header) ?? [];
  return isLoopback(address ?? name ?? "");
}
