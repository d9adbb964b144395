/**
 * Checks the Host header. It must be valid. Without a token it must also name this
 * machine, because a foreign name can resolve to it (DNS rebinding).
 */
import type { MiddlewareHandler } from "hono";
import { isLoopback } from "../../config/loopback.ts";
import { ServiceError } from "../../errors.ts";
import { problemDocument } from "../problem.tsx";

/**
 * Refuses a request without a valid Host header. The URL of a request is built from
 * that header and the path, so `x/health?` would lead to another path. HTTP/1.0
 * needs no Host header.
 */
export function validHostOnly(): MiddlewareHandler {
  return (c, next) => {
    const host = c.req.header("host");
    const isOptional = c.env?.incoming?.httpVersion === "1.0";
    if (host === undefined ? isOptional : isHost(host)) return next();
    const given = JSON.stringify(host?.slice(0, 100)) ?? "missing";
    return Promise.resolve(problemDocument(
      c,
      new ServiceError("usage", `The Host header is ${given}`, {
        remedy: "Send one Host header with a host, or with host:port.",
      }),
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
 * Refuses requests for a foreign host. A page of another site can point its name to
 * 127.0.0.1 (DNS rebinding). Browsers then treat the page and this service as one
 * origin, and only the Host header shows the difference. A proxy may forward the
 * host of `publicUrl`.
 */
export function ownHostOnly(publicUrl: string | undefined): MiddlewareHandler {
  const publicHost = publicUrl && new URL(publicUrl).host;
  return (c, next) => {
    const host = c.req.header("host");
    if (!host || isOwnHost(host) || host.toLowerCase() === publicHost) {
      return next();
    }
    throw new ServiceError(
      "foreign_host",
      `The request is for the host ${JSON.stringify(host.slice(0, 100))}`,
    );
  };
}

/** Returns whether a Host header names this machine. */
function isOwnHost(header: string): boolean {
  const [, address, name] = /^(?:\[([^\]]*)\]|([^:]*))(?::\d*)?$/
    .exec(header) ?? [];
  return isLoopback(address ?? name ?? "");
}
