/** Health checks and metrics. */
import { createRoute, type OpenAPIHono } from "@hono/zod-openapi";
import { VERSION } from "../../identity.ts";
import { isAnonymous } from "../middleware/auth.ts";
import { guarded, json, ownHost, text } from "../openapi/responses.ts";
import type { HttpContext } from "../context.ts";
import * as schemas from "../openapi/schemas.ts";

/** Adds `/health`, `/health/live`, `/health/ready` and `/metrics`. */
export function addHealthRoutes(
  app: OpenAPIHono,
  { health, dispatcher, isReady, metrics }: HttpContext,
): void {
  const startedAt = performance.now();
  app.openapi(
    createRoute({
      method: "get",
      path: "/health",
      operationId: "getHealth",
      security: [],
      summary:
        "Checks whether the source answers and the warehouse accepts writes",
      responses: {
        ...ownHost,
        200: json(
          schemas.Health,
          "Healthy. Callers without the token get the status only",
        ),
        503: json(
          schemas.Health,
          "Unhealthy. Callers without the token get the status only",
        ),
      },
    }),
    async (c) => {
      const state = await health();
      const status = state.status === "healthy" ? 200 : 503;
      // Hosts, roles and versions are for callers that know the token.
      if (isAnonymous(c)) return c.json({ status: state.status }, status);
      const uptime = Math.round(performance.now() - startedAt) / 1000;
      return c.json({ ...state, version: VERSION, uptime }, status);
    },
  );
  app.openapi(
    createRoute({
      method: "get",
      path: "/health/live",
      operationId: "getLiveness",
      security: [],
      summary: "Reports that the process is running. Queries no database",
      responses: {
        ...ownHost,
        200: json(schemas.Status, "The process is running"),
      },
    }),
    (c) => c.json({ status: "live" }, 200),
  );
  app.openapi(
    createRoute({
      method: "get",
      path: "/health/ready",
      operationId: "getReadiness",
      security: [],
      summary: "Reports whether the service accepts loads. Queries no database",
      responses: {
        ...ownHost,
        200: json(schemas.Status, "The service accepts loads"),
        503: json(schemas.Status, "The service is starting or shutting down"),
      },
    }),
    (c) => {
      const status = dispatcher.isDraining
        ? "draining"
        : isReady()
        ? "ready"
        : "starting";
      return c.json({ status }, status === "ready" ? 200 : 503);
    },
  );
  app.openapi(
    createRoute({
      method: "get",
      path: "/metrics",
      operationId: "getMetrics",
      summary: "Returns metrics for Prometheus",
      responses: { ...guarded, 200: text("text/plain", "The metrics") },
    }),
    async (c) => {
      const { body, contentType } = await metrics.text();
      return c.body(body, 200, { "content-type": contentType });
    },
  );
}
