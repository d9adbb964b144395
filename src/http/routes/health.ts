/** How the service is: health checks and metrics. */
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
      summary: "Checks whether both databases answer",
      responses: {
        ...ownHost,
        200: json(
          schemas.Health,
          "Both databases answer. Without the token, only the status",
        ),
        503: json(
          schemas.Health,
          "A database does not answer. Without the token, only the status",
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
      summary: "Whether the process answers; touches no database",
      responses: { ...ownHost, 200: json(schemas.Status, "It does") },
    }),
    (c) => c.json({ status: "live" }, 200),
  );
  app.openapi(
    createRoute({
      method: "get",
      path: "/health/ready",
      summary: "Whether loads are taken; touches no database",
      responses: {
        ...ownHost,
        200: json(schemas.Status, "They are"),
        503: json(schemas.Status, "Starting up, or shutting down"),
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
      summary: "Metrics for Prometheus",
      responses: { ...guarded, 200: text("text/plain", "The metrics") },
    }),
    async (c) => {
      const { body, contentType } = await metrics.text();
      return c.body(body, 200, { "content-type": contentType });
    },
  );
}
