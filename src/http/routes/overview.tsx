/** The first thing that is asked: what this is, and how it is. */
import { createRoute, type OpenAPIHono, type z } from "@hono/zod-openapi";
import {
  listOutcomes,
  listRuns,
  listTableHistory,
} from "../../runs/history.ts";
import { TABLE_NAMES } from "../../tables/declaration.ts";
import { VERSION } from "../../identity.ts";
import { hasSession } from "../middleware/auth.ts";
import { guarded, jsonOrPage } from "../openapi/responses.ts";
import type { HttpContext } from "../context.ts";
import { answerPage, prefersHtml } from "../pages/layout.tsx";
import { nextTick } from "../../config/crontab.ts";
import { type Overview, OverviewPage } from "../pages/overview_page.tsx";
import * as schemas from "../openapi/schemas.ts";

/** Runs in the charts. */
const CHARTED = 40;

/** Adds `/`. */
export function addOverviewRoute(
  app: OpenAPIHono,
  context: HttpContext,
): void {
  const { warehouse, config } = context.service;
  app.openapi(
    createRoute({
      method: "get",
      path: "/",
      summary: "What this is; a browser gets the dashboard",
      responses: { 200: jsonOrPage(schemas.Root, "The service"), ...guarded },
    }),
    async (c) => {
      if (prefersHtml(c)) {
        const overview = await lookAround(context);
        const [newest] = overview.runs;
        return answerPage(c, {
          title: "Overview",
          section: "/",
          isSignedIn: await hasSession(c, config.apiToken),
          follow: overview.current,
          // One that is never the newest run's has the page look again soon.
          version: overview.health.status === "unhealthy"
            ? "away"
            : newest
            ? `${newest.run_id} ${newest.status}`
            : "",
          body: <OverviewPage {...overview} />,
        });
      }
      // It says what it can while the warehouse is out of reach.
      const runs = await listRuns(warehouse, { limit: 1 }).catch(() => []);
      c.header("vary", "accept");
      return c.json({
        service: "marketing-data-service",
        version: VERSION,
        tables: [...TABLE_NAMES],
        endpoints: endpointsOf(app),
        last_run: (runs[0] ?? null) as
          | z.infer<typeof schemas.RunSummary>
          | null,
      }, 200);
    },
  );
}

/** Gathers what the dashboard shows, as far as the databases answer. */
async function lookAround(context: HttpContext): Promise<Overview> {
  const { service: { warehouse, config }, live } = context;
  const now = new Date();
  const health = await context.health();
  // Not asked for while the warehouse is out of reach: each answer would take until its time is over.
  const [runs, tables] = health.checks.dwh.status === "healthy" &&
      context.isReady()
    ? await Promise.all([
      listOutcomes(warehouse, { limit: CHARTED }),
      listTableHistory(warehouse, TABLE_NAMES),
    ])
    : [[], []];
  const current = runs.find((run) => run.status === "running") ??
    runs.find((run) => run.status === "queued");
  return {
    now,
    health,
    runs,
    tables,
    current,
    live: current && live.get(current.run_id),
    nextTick: nextTick(config.loadSchedule, now),
    unsupportedReason: obstacleTo(
      context,
      health.checks.dwh.status === "healthy",
    ),
  };
}

/** Why no load can be asked for, or `undefined` when one can. */
function obstacleTo(
  { dispatcher, isReady }: HttpContext,
  hasWarehouse: boolean,
): string | undefined {
  if (dispatcher.isDraining) return "Not now: the service is shutting down.";
  if (!hasWarehouse) return "Not now: the warehouse is out of reach.";
  if (!isReady()) return "Not now: the service is starting.";
  return undefined;
}

/** Returns the operations of the OpenAPI document. */
function endpointsOf(app: OpenAPIHono): string[] {
  return app.openAPIRegistry.definitions.flatMap((definition) =>
    definition.type === "route"
      ? [`${definition.route.method.toUpperCase()} ${definition.route.path}`]
      : []
  );
}
