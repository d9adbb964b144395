/** Runs and events. */
import { createRoute, type OpenAPIHono, type z } from "@hono/zod-openapi";
import { ServiceError } from "../../errors.ts";
import {
  findRun,
  listDifferingRows,
  listEvents,
  listOutcomes,
  listRuns,
} from "../../runs/history.ts";
import {
  json,
  jsonOrPage,
  refused,
  stored,
  text,
} from "../openapi/responses.ts";
import type { HttpContext } from "../context.ts";
import { answerPage, prefersHtml } from "../pages/layout.tsx";
import { MAX_CARDS } from "../pages/components/table_list.tsx";
import { RunPage } from "../pages/run_page.tsx";
import { RunsPage } from "../pages/runs_page.tsx";
import * as schemas from "../openapi/schemas.ts";
import { fromHistory } from "./from_history.ts";
import { StoredRuns } from "./stored_runs.ts";
import { streamRun } from "./run_stream.ts";

const missing = { 404: refused("The run does not exist") };

/** Adds `/runs`, `/runs/{id}`, its stream, and `/events`. */
export function addHistoryRoutes(
  app: OpenAPIHono,
  context: HttpContext,
): void {
  const { warehouse, config, live, shutdown } = context;
  const sources = { live, stored: new StoredRuns(warehouse), shutdown };
  const read = <T,>(work: Promise<T>) => fromHistory(context, work);
  const found = async (id: string) => {
    const run = await read(findRun(warehouse, id));
    if (!run) {
      throw new ServiceError("not_found", `Run ${id} does not exist`, {
        remedy: "See /runs for the runs.",
      });
    }
    return run;
  };
  app.openapi(
    createRoute({
      method: "get",
      path: "/runs",
      operationId: "listRuns",
      summary: "Lists runs, newest first",
      request: { query: schemas.RunsQuery },
      responses: { ...stored, 200: jsonOrPage(schemas.RunList, "The runs") },
    }),
    async (c) => {
      const query = c.req.valid("query");
      if (prefersHtml(c)) {
        const { limit, before, status } = query;
        // One more than the page shows reveals whether older runs exist.
        const runs = await read(listOutcomes(warehouse, {
          ...query,
          limit: limit + 1,
        }));
        const shown = runs.slice(0, limit);
        return answerPage(c, {
          title: "Runs",
          section: "/runs",
          body: (
            <RunsPage
              now={new Date()}
              runs={shown}
              status={status}
              limit={limit}
              isPast={before !== undefined}
              older={runs.length > limit ? shown.at(-1)?.run_id : undefined}
            />
          ),
        });
      }
      return c.json({
        runs: await read(listRuns(warehouse, query)) as z.infer<
          typeof schemas.RunSummary
        >[],
      }, 200);
    },
  );
  app.openapi(
    createRoute({
      method: "get",
      path: "/runs/{id}",
      operationId: "getRun",
      summary: "Returns a run with its tables and its event",
      request: { params: schemas.RunId },
      responses: {
        ...stored,
        ...missing,
        200: jsonOrPage(schemas.RunDetails, "The run"),
      },
    }),
    async (c) => {
      const run = await found(c.req.valid("param").id);
      if (prefersHtml(c)) {
        const isOver = run.finished_at !== null;
        const rows = config.showRows
          ? await read(listDifferingRows(warehouse, run.run_id, MAX_CARDS))
          : new Map();
        return answerPage(c, {
          title: `Run ${run.run_id.slice(0, 8)}`,
          section: "/runs",
          follow: isOver ? undefined : run,
          hasList: run.tables.length > MAX_CARDS,
          body: (
            <RunPage
              now={new Date()}
              run={run}
              live={live.get(run.run_id)}
              tables={config.tables}
              rows={rows}
            />
          ),
        });
      }
      return c.json(
        run as unknown as z.infer<typeof schemas.RunDetails>,
        200,
      );
    },
  );
  app.openapi(
    createRoute({
      method: "get",
      path: "/runs/{id}/stream",
      operationId: "streamRun",
      summary:
        "Streams the state, the progress and the end of a run as server-sent events",
      request: { params: schemas.RunId },
      responses: {
        ...stored,
        ...missing,
        200: text(
          "text/event-stream",
          "The messages `state` and `progress`, the last `state`, then `end` with the event",
        ),
      },
    }),
    async (c) => {
      const { run_id } = await found(c.req.valid("param").id);
      return c.body(streamRun(run_id, sources), 200, {
        "content-type": "text/event-stream",
        "x-accel-buffering": "no",
      });
    },
  );
  app.openapi(
    createRoute({
      method: "get",
      path: "/events",
      operationId: "listEvents",
      summary: "Lists events after a cursor, oldest first",
      request: { query: schemas.EventsQuery },
      responses: { ...stored, 200: json(schemas.EventList, "The events") },
    }),
    async (c) => {
      const { after, limit } = c.req.valid("query");
      const events = await read(listEvents(warehouse, after, limit));
      return c.json({
        events: events as z.infer<typeof schemas.EventList>["events"],
        next: events.at(-1)?.seq ?? after,
      }, 200);
    },
  );
}
