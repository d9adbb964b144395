/** Responses of the OpenAPI document. */
import { z } from "@hono/zod-openapi";
import * as schemas from "./schemas.ts";

/** A JSON response. */
export const json = <T>(schema: T, description: string) => ({
  content: { "application/json": { schema } },
  description,
});

/** A response of another media type. */
export const text = (type: string, description: string) => ({
  content: { [type]: { schema: z.string() } },
  description,
});

/** A JSON response. A browser gets a page instead. */
export const jsonOrPage = <T>(schema: T, description: string) => ({
  content: {
    "application/json": { schema },
    "text/html": { schema: z.string() },
  },
  description,
});

/** A problem document. */
export const refused = (description: string) => ({
  content: { "application/problem+json": { schema: schemas.Problem } },
  description,
});

/** Responses of every route to an invalid or foreign Host header. */
export const ownHost = {
  400: refused("The Host header is missing or malformed"),
  403: refused("The Host header names another host"),
};

/** Responses of every route that requires the token. */
export const guarded = {
  ...ownHost,
  401: refused("The token is missing or wrong"),
};

/** Responses of every route that queries the warehouse. */
export const stored = {
  ...guarded,
  400: refused("A parameter or the Host header is invalid"),
  500: refused("The warehouse failed"),
  503: refused(
    "The warehouse is unavailable. Retry-After contains the seconds to wait",
  ),
};

/** Response to a request that a page of another origin sent. */
export const crossOrigin = refused(
  "A page of another origin sent the request, or the Host header names another host",
);

/** Responses of every route that reads a body. */
export const posted = (maximum: string) => ({
  403: crossOrigin,
  408: refused("Request body not received in time"),
  413: refused(`The body is larger than ${maximum}`),
});
