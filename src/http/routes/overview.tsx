/** The root: the dashboard for browsers, a description for programs. */
import { createRoute, type OpenAPIHono, type z } from "@hono/zod-openapi";
import {
  listOutcomes,
  listRuns,
  listTableHistory,
} from "../../runs/history.ts";
import { namesOf } from "../../tables/declaration.ts";
import { VERSION } from "../../identity.ts";
import { guarded, jsonOrPage } from "../openapi/responses.ts";
import type { Health } from "../../service/health.ts";
import type { HttpContext } from "../context.ts";
import { answerPage, prefersHtml } from "../pages/layout.tsx";
import { nextTick } from "../../config/crontab.ts";
import { MAX_POINTS } from "../pages/components/sparkline.tsx";
import { MAX_CARDS } from "../pages/components/table_list.tsx";
import {
  LISTED,
  type Overview,
  OverviewPage,
} from "../pages/overview_page.tsx";
import * as schemas from "../openapi/schemas.ts";

/** Maximum number of runs in the charts. */
const CHARTED = 40;

/** Adds `/`. */
export function addOverviewRoute(
  app: OpenAPIHono,
  context: HttpContext,
): void {
  const { warehouse, config } = context;
  app.openapi(
    createRoute({
      method: "get",
      path: "/",
      operationId: "getService",
      summary: "Describes the service. A browser gets the dashboard",
      responses: { 200: jsonOrPage(schemas.Root, "The service"), ...guarded },
    }),
    async (c) => {
      if (prefersHtml(c)) {
        const overview = await gatherOverview(context);
        const [newest] = overview.runs;
        return answerPage(c, {
          title: "Overview",
          section: "/",
          follow: overview.current,
          // No run has this version, so the page refreshes soon.
          version: overview.health.status === "unhealthy" ||
              overview.startFailure
            ? "unhealthy"
            : newest
            ? `${newest.run_id} ${newest.status}`
            : "",
          hasList: config.tables.length > MAX_CARDS,
          body: <OverviewPage {...overview} />,
        });
      }
      // The response leaves out the last run while the warehouse is unavailable.
      const runs = await listRuns(warehouse, { limit: 1 }).catch(() => []);
      return c.json({
        service: "marketing-data-service",
        version: VERSION,
        tables: [...namesOf(config.tables)],
        endpoints: endpointsOf(app),
        last_run: (runs[0] ?? null) as
          | z.infer<typeof schemas.RunSummary>
          | null,
      }, 200);
    },
  );
}

/** Gathers the data of the dashboard, as far as the databases answer. */
async function gatherOverview(context: HttpContext): Promise<Overview> {
  const { warehouse, config, live } = context;
  const now = new Date();
  const health = await context.health();
  // Each query would wait until its timeout while the warehouse is unavailable.
  const isReady = health.checks.dwh.status === "healthy" && context.isReady();
  const names = namesOf(config.tables);
  const isLong = names.length > MAX_CARDS;
  const [runs, charted, histories] = isReady
    ? await Promise.all([
      // Only cards chart each table of each run.
      listOutcomes(warehouse, { limit: isLong ? LISTED : CHARTED }),
      listRuns(warehouse, { limit: CHARTED }),
      listTableHistory(warehouse, names, isLong ? MAX_POINTS : 0),
    ])
    : [[], [], []];
  const current = charted.find((run) => run.status === "running") ??
    charted.find((run) => run.status === "queued");
  return {
    now,
    health,
    runs,
    charted,
    tables: config.tables,
    histories,
    current,
    live: current && live.get(current.run_id),
    nextTick: nextTick(config.loadSchedule, now),
    startFailure: context.startFailure()?.line,
    notReadyReason: notReadyReason(context, health),
  };
}

/** Returns why the service accepts no load, or `undefined`. */
function notReadyReason(
  { dispatcher, isReady, startFailure }: HttpContext,
  { checks }: Health,
): string | undefined {
  if (dispatcher.isDraining) return "The service is shutting down.";
  if (checks.dwh.status === "unhealthy") return "The warehouse is unhealthy.";
  if (isReady()) return undefined;
  return startFailure()
    ? "The warehouse is not prepared."
    : "The service is starting.";
}

/** Returns the operations of the OpenAPI document. */
function endpointsOf(app: OpenAPIHono): string[] {
  return app.openAPIRegistry.definitions.flatMap((definition) =>
    definition.type === "route"
      ? [`${definition.route.method.toUpperCase()} ${definition.route.path}`]
      : []
  );
}
