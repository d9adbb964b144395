/** Refuses requests that another site makes a browser send. */
import type { MiddlewareHandler } from "hono";
import { ServiceError } from "../../errors.ts";

/** Read-only methods. */
const SAFE = new Set(["GET", "HEAD", "OPTIONS"]);

/**
 * Accepts requests that change something only from the service's own pages and
 * from programs. Programs do not send the headers of browsers. Behind a proxy, the
 * pages have the origin of `publicUrl`.
 */
export function sameOriginOnly(
  publicUrl: string | undefined,
): MiddlewareHandler {
  const publicOrigin = publicUrl && new URL(publicUrl).origin;
  return (c, next) => {
    const origin = c.req.header("origin");
    const fetchSite = c.req.header("sec-fetch-site");
    const isAllowed = SAFE.has(c.req.method) ||
      (fetchSite === undefined && origin === publicOrigin) ||
      isSameOrigin(fetchSite, origin, c.req.header("host"));
    if (isAllowed) return next();
    throw new ServiceError(
      "cross_origin",
      `${c.req.method} ${c.req.path} was requested by a page of another origin`,
    );
  };
}

/**
 * Returns whether the service's own page or a program sent a request. No page can
 * change `Sec-Fetch-Site`. Browsers omit it over plain HTTP to other machines.
 * Then `Origin` is compared with `Host`.
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
  // A sandboxed page sends "null", which is not a URL.
  return URL.parse(origin)?.host === host?.toLowerCase();
}
