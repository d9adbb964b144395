/** Requests for loads. */
import type { OpenAPIHono } from "@hono/zod-openapi";
import {
  json,
  location,
  posted,
  refused,
  stored,
} from "../openapi/responses.ts";
import type { HttpContext } from "../context.ts";
import { prefersHtml } from "../pages/layout.tsx";
import { readLoadRequest } from "./load_request.ts";
import { groupsOf, namesOf } from "../../tables/declaration.ts";
import * as schemas from "../openapi/schemas.ts";

const refusals = {
  ...stored,
  400: refused("The body, the URL or the Host header is invalid"),
  503: {
    ...stored[503],
    description:
      "The load did not begin: another load runs, the service stops, or the warehouse is unavailable",
  },
  ...posted("64 KiB"),
};

/** Adds `/load` and `/load-async`. They parse a body of any content type as JSON. */
export function addLoadRoutes(
  app: OpenAPIHono,
  { config, dispatcher }: HttpContext,
): void {
  const schema = schemas.loadRequest(
    namesOf(config.tables),
    groupsOf(config.tables),
  );
  const request = {
    body: { required: false, content: { "application/json": { schema } } },
  };
  app.openAPIRegistry.registerPath({
    method: "post",
    path: "/load",
    operationId: "load",
    summary:
      "Runs a load that starts after this request, and waits until it has finished",
    request,
    responses: {
      ...refusals,
      200: json(schemas.LoadedEvent, "The load succeeded and is committed"),
      500: {
        content: {
          "application/json": { schema: schemas.FailedEvent },
          "application/problem+json": { schema: schemas.Problem },
        },
        description:
          "The load failed. The event names the table, the cause and the remedy",
      },
    },
  });
  app.post("/load", async (c) => {
    const options = await readLoadRequest(c.req.raw, config, schema);
    const event = await dispatcher.load("http", options);
    return c.json(event, event.status === "success" ? 200 : 500);
  });

  app.openAPIRegistry.registerPath({
    method: "post",
    path: "/load-async",
    operationId: "queueLoad",
    summary:
      "Queues a load and returns at once. The load survives a restart of the service",
    request,
    responses: {
      ...refusals,
      202: {
        ...json(schemas.Accepted, "The load is queued"),
        headers: location("The run"),
      },
      303: {
        description: "The load is queued. A browser is redirected to the run",
        headers: location("The page of the run"),
      },
    },
  });
  app.post("/load-async", async (c) => {
    const options = await readLoadRequest(c.req.raw, config, schema);
    const run_id = await dispatcher.submit("http", options);
    if (prefersHtml(c)) return c.redirect(`./runs/${run_id}`, 303);
    return c.json({ run_id, status: "queued" }, 202, {
      location: `/runs/${run_id}`,
    });
  });
}
