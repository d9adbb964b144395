/** Refuses what another site has a browser do in its user's name. */
import type { MiddlewareHandler } from "hono";
import { ServiceError } from "../../errors.ts";
import { problem } from "../problem.tsx";

/** Methods that change nothing. */
const SAFE = new Set(["GET", "HEAD", "OPTIONS"]);

/**
 * Lets a request that changes something through only from our own pages, and
 * from programs, which send none of the headers that browsers do.
 */
export function sameOriginOnly(): MiddlewareHandler {
  return (c, next) => {
    const isOurs = SAFE.has(c.req.method) || isSameOrigin(
      c.req.header("sec-fetch-site"),
      c.req.header("origin"),
      c.req.header("host"),
    );
    if (isOurs) return next();
    return Promise.resolve(problem(
      c,
      new ServiceError(
        "cross_origin",
        `${c.req.method} ${c.req.path} was asked for by a page of another origin`,
      ),
    ));
  };
}

/**
 * Whether no other site is behind a request. `Sec-Fetch-Site` is the browser's
 * own word, which no page can change; only where it is missing, as it is on
 * plain http beyond loopback, `Origin` is compared with `Host`.
 */
function isSameOrigin(
  fetchSite: string | undefined,
  origin: string | undefined,
  host: string | undefined,
): boolean {
  if (fetchSite !== undefined) {
    return fetchSite === "same-origin" || fetchSite === "none";
  }
  if (origin === undefined) return true;
  // "null", of a sandboxed page, is no URL and equals no host.
  return URL.parse(origin)?.host === host?.toLowerCase();
}
