/** What has been, and what is going on: runs and events. */
import { createRoute, type OpenAPIHono, type z } from "@hono/zod-openapi";
import { ServiceError } from "../errors.ts";
import { findRun, listEvents, listRuns } from "../history.ts";
import { json, refused, stored, text } from "./answers.ts";
import type { HttpContext } from "./context.ts";
import * as schemas from "./schemas.ts";
import { streamRun } from "./stream.ts";

const missing = { 404: refused("There is no such run") };

/** Adds `/runs`, `/runs/{id}`, its stream, and `/events`. */
export function addHistoryRoutes(
  app: OpenAPIHono,
  { service: { warehouse }, live, shutdown }: HttpContext,
): void {
  const found = async (id: string) => {
    const run = await findRun(warehouse, id);
    if (!run) throw new ServiceError("not_found", `There is no run ${id}`);
    return run;
  };
  app.openapi(
    createRoute({
      method: "get",
      path: "/runs",
      summary: "Runs, newest first",
      request: { query: schemas.RunsQuery },
      responses: { ...stored, 200: json(schemas.RunList, "The runs") },
    }),
    async (c) =>
      c.json({
        runs: await listRuns(warehouse, c.req.valid("query")) as z.infer<
          typeof schemas.RunSummary
        >[],
      }, 200),
  );
  app.openapi(
    createRoute({
      method: "get",
      path: "/runs/{id}",
      summary: "One run with its tables and its event",
      request: { params: schemas.RunId },
      responses: {
        ...stored,
        ...missing,
        200: json(schemas.RunDetails, "The run"),
      },
    }),
    async (c) =>
      c.json(
        await found(c.req.valid("param").id) as unknown as z.infer<
          typeof schemas.RunDetails
        >,
        200,
      ),
  );
  app.openapi(
    createRoute({
      method: "get",
      path: "/runs/{id}/stream",
      summary: "The run's state, progress and end as server-sent events",
      request: { params: schemas.RunId },
      responses: {
        ...stored,
        ...missing,
        200: text(
          "text/event-stream",
          "state, progress, then end with the event",
        ),
      },
    }),
    async (c) => {
      const { id } = c.req.valid("param");
      await found(id);
      return c.body(streamRun(warehouse, live, id, shutdown), 200, {
        "content-type": "text/event-stream",
        "cache-control": "no-store",
        "x-accel-buffering": "no",
      });
    },
  );
  app.openapi(
    createRoute({
      method: "get",
      path: "/events",
      summary: "Events, oldest first, after a cursor",
      request: { query: schemas.EventsQuery },
      responses: { ...stored, 200: json(schemas.EventList, "The events") },
    }),
    async (c) => {
      const { after, limit } = c.req.valid("query");
      const events = await listEvents(warehouse, after, limit);
      return c.json({
        events: events as z.infer<typeof schemas.EventList>["events"],
        next: events.at(-1)?.seq ?? after,
      }, 200);
    },
  );
}
