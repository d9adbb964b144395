/** The first thing that is asked: what this is. */
import { createRoute, type OpenAPIHono, z } from "@hono/zod-openapi";
import { listRuns } from "../history.ts";
import { TABLE_NAMES } from "../tables.ts";
import { VERSION } from "../version.ts";
import { guarded } from "./answers.ts";
import type { HttpContext } from "./context.ts";
import { dashboard } from "./dashboard.ts";
import { nonceOf } from "./guards.ts";
import * as schemas from "./schemas.ts";

/** Adds `/`. */
export function addOverviewRoute(
  app: OpenAPIHono,
  { service: { warehouse } }: HttpContext,
): void {
  app.openapi(
    createRoute({
      method: "get",
      path: "/",
      summary: "What this is; a browser gets the dashboard",
      responses: {
        200: {
          content: {
            "application/json": { schema: schemas.Root },
            "text/html": { schema: z.string() },
          },
          description: "The service",
        },
        ...guarded,
      },
    }),
    async (c) => {
      const isBrowser = c.req.header("accept")?.includes("text/html");
      // It says what it can while the warehouse is out of reach.
      const runs = await listRuns(warehouse, { limit: isBrowser ? 20 : 1 })
        .catch(() => []);
      if (isBrowser) return c.html(dashboard(runs, nonceOf(c)));
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

function endpointsOf(app: OpenAPIHono): string[] {
  return [
    ...new Set(
      app.routes.filter((route) => route.method !== "ALL")
        .map(({ method, path }) => `${method} ${path}`),
    ),
  ];
}
