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

/** Headers of a response, by their names. */
type Headers = Record<
  string,
  { description: string; required: boolean; schema: object }
>;

/** A problem document. A browser gets a page instead. */
export const refused = (description: string, headers: Headers = {}) => ({
  content: {
    "application/problem+json": { schema: schemas.Problem },
    "text/html": { schema: z.string() },
  },
  description,
  headers,
});

/** A problem document, also for a browser. */
const forbidden = (description: string) => ({
  content: { "application/problem+json": { schema: schemas.Problem } },
  description,
});

/** A header with the path to continue with. */
export const location = (description: string) => ({
  location: {
    description,
    required: true,
    schema: { type: "string" as const, format: "uri-reference" },
  },
});

/** The response to a request without the token. */
export const unauthorized = (description: string) =>
  refused(description, {
    "www-authenticate": {
      description: "The scheme of the token",
      required: true,
      schema: { type: "string", const: "Bearer" },
    },
  });

/** Any other response, such as 404 for an unknown path, and 405. */
const others = { default: refused("Another failure") };

/** Responses of every route to an invalid or foreign Host header. */
export const ownHost = {
  ...others,
  400: forbidden("The Host header is missing or malformed"),
  403: forbidden("The Host header names another host"),
};

/** Responses of every route that requires the token. */
export const guarded = {
  ...ownHost,
  401: unauthorized("The token is missing or wrong"),
};

/** Responses of every route that queries the warehouse. */
export const stored = {
  ...guarded,
  400: refused("A parameter or the Host header is invalid"),
  500: refused("The warehouse failed"),
  503: refused("The warehouse is unavailable", {
    "retry-after": {
      description: "Seconds to wait before the next request",
      required: true,
      schema: { type: "integer" },
    },
  }),
};

/** Response to a request that a page of another origin sent. */
export const crossOrigin = forbidden(
  "A page of another origin sent the request, or the Host header names another host",
);

/** Responses of every route that reads a body. */
export const posted = (maximum: string) => ({
  ...others,
  403: crossOrigin,
  408: refused("Request body not received in time"),
  413: refused(`The body is larger than ${maximum}`),
});
