/** How the OpenAPI document describes answers. */
import { z } from "@hono/zod-openapi";
import * as schemas from "./schemas.ts";

/** An answer in JSON. */
export const json = <T>(schema: T, description: string) => ({
  content: { "application/json": { schema } },
  description,
});

/** An answer of any other type. */
export const text = (type: string, description: string) => ({
  content: { [type]: { schema: z.string() } },
  description,
});

/** An answer in JSON, for which a browser gets a page. */
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

/** What every route may answer to a Host header that it does not take. */
export const ownHost = {
  400: refused("The Host header is malformed"),
  403: refused("The Host header names another host, and no token is set"),
};

/** What every route that needs the token may answer. */
export const guarded = {
  ...ownHost,
  401: refused("The token is missing or wrong; a browser gets a form for it"),
};

/** What every route that asks the warehouse may answer. */
export const stored = {
  ...guarded,
  400: refused("A parameter is not allowed, or the Host header is malformed"),
  500: refused("A failure of the warehouse"),
  503: refused(
    "The warehouse is out of reach; Retry-After says when to ask again",
  ),
};
