/**
 * The HTTP edge: guards in front, routes behind, every error a problem document.
 *
 * @module
 */
import { createRoute, OpenAPIHono, z } from "@hono/zod-openapi";
import type { Context } from "hono";
import { methodNotAllowed } from "hono/method-not-allowed";
import { requestId } from "hono/request-id";
import { routePath } from "hono/route";
import { NONCE, secureHeaders } from "hono/secure-headers";
import type { Pool } from "../db.ts";
import type { Dispatcher } from "../dispatcher.ts";
import { asServiceError, ServiceError } from "../errors.ts";
import { checkHealth } from "../health.ts";
import { findRun, listEvents, listRuns } from "../history.ts";
import type { LiveRuns } from "../live_runs.ts";
import type { Service } from "../load.ts";
import type { Metrics } from "../metrics.ts";
import type { RunOptions } from "../runs.ts";
import { TABLE_NAMES } from "../tables.ts";
import { VERSION } from "../version.ts";
import { readBody } from "./body.ts";
import { dashboard } from "./dashboard.ts";
import { docs } from "./docs.ts";
import { badRequest, problem } from "./problem.ts";
import * as schemas from "./schemas.ts";
import { streamRun } from "./stream.ts";

/** What the edge is handed. */
export interface HttpContext {
  readonly service: Service;
  readonly source: Pool;
  readonly dispatcher: Dispatcher;
  readonly live: LiveRuns;
  readonly metrics: Metrics;
  /** False until the warehouse's schema is up to date. */
  readonly isReady: () => boolean;
  /** Ends what never ends by itself. */
  readonly shutdown: AbortSignal;
}

const DESCRIPTION = {
  openapi: "3.1.0",
  info: {
    title: "marketing-data-service",
    version: VERSION,
    description:
      "Keeps two warehouse tables equal to two source tables and announces each load by an event.",
  },
} as const;

const json = <T>(schema: T, description: string) => ({
  content: { "application/json": { schema } },
  description,
});
const text = (type: string, description: string) => ({
  content: { [type]: { schema: z.string() } },
  description,
});
const refused = (description: string) => ({
  content: { "application/problem+json": { schema: schemas.Problem } },
  description,
});
const guarded = { 401: refused("The token is missing or wrong") };
const stored = {
  ...guarded,
  400: refused("A parameter is not allowed"),
  500: refused("A failure of the warehouse"),
  503: refused(
    "The warehouse is out of reach; Retry-After says when to ask again",
  ),
};
const loadBody = {
  body: {
    required: false,
    content: { "application/json": { schema: schemas.LoadRequest } },
  },
};
const refusedLoad = {
  ...stored,
  400: refused("The body is not allowed; it says why"),
  408: refused("The body came too slowly"),
  413: refused("The body is larger than 64 KiB"),
};

/** The application, for `Deno.serve`. */
export function createApp(context: HttpContext): OpenAPIHono {
  const { service, dispatcher, live, metrics, shutdown } = context;
  const { warehouse, config } = service;
  const startedAt = performance.now();
  const app = new OpenAPIHono({
    defaultHook(result, c) {
      if (!result.success) return problem(c, badRequest(issues(result.error)));
    },
  });
  const nonceOf = (c: Context): string =>
    (c.get as (key: string) => string)("secureHeadersNonce");

  app.use(requestId());
  app.use(async (c, next) => {
    const began = performance.now();
    await next();
    const route =
      c.res.status === 404 || c.res.status === 405 || c.res.status === 401
        ? "none"
        : routePath(c, -1);
    metrics.request(
      c.req.method,
      route,
      c.res.status,
      (performance.now() - began) / 1000,
    );
  });
  app.use(secureHeaders({
    contentSecurityPolicy: {
      defaultSrc: ["'none'"],
      styleSrc: [NONCE],
      scriptSrc: [NONCE],
      connectSrc: ["'self'"],
      imgSrc: ["'self'", "data:"],
      baseUri: ["'none'"],
      formAction: ["'self'"],
      frameAncestors: ["'none'"],
    },
  }));
  if (config.apiToken) {
    const isToken = tokenCheck(config.apiToken);
    app.use(async (c, next) => {
      const isOpen = /^\/health(\/|$)/.test(c.req.path);
      if (isOpen || await isToken(c.req.header("authorization"))) return next();
      return problem(
        c,
        new ServiceError(
          "unauthorized",
          "The bearer token is missing or wrong",
        ),
      );
    });
  }
  app.use(methodNotAllowed({
    app,
    onMethodNotAllowed(c, methods) {
      const answer = problem(
        c,
        new ServiceError(
          "method_not_allowed",
          `${c.req.method} is not allowed on ${c.req.path}`,
        ),
      );
      answer.headers.set("allow", methods.join(", "));
      return answer;
    },
  }));
  app.notFound((c) =>
    problem(c, new ServiceError("not_found", `There is no ${c.req.path}`))
  );
  app.onError((cause, c) => {
    const error = asServiceError(cause);
    if (error.kind.status >= 500 && error.code !== "draining") {
      service.log.error("{method} {path} failed: {error}", {
        method: c.req.method,
        path: c.req.path,
        error: error.line,
        request_id: c.get("requestId" as never),
        ...(error.code === "internal" && cause instanceof Error
          ? { stack: cause.stack }
          : {}),
      });
    }
    return problem(c, error);
  });

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
        service: DESCRIPTION.info.title,
        version: VERSION,
        tables: [...TABLE_NAMES],
        endpoints: endpointsOf(app),
        last_run: (runs[0] ?? null) as
          | z.infer<typeof schemas.RunSummary>
          | null,
      }, 200);
    },
  );
  app.openapi(
    createRoute({
      method: "get",
      path: "/health",
      summary: "Whether both databases answer",
      responses: {
        200: json(schemas.Health, "Both answer"),
        503: json(schemas.Health, "One does not"),
      },
    }),
    async (c) => {
      const health = await checkHealth(context.source, warehouse);
      const uptime = Math.round(performance.now() - startedAt) / 1000;
      return c.json(
        { ...health, version: VERSION, uptime },
        health.status === "healthy" ? 200 : 503,
      );
    },
  );
  app.openapi(
    createRoute({
      method: "get",
      path: "/health/live",
      summary: "Whether the process answers; touches no database",
      responses: { 200: json(schemas.Status, "It does") },
    }),
    (c) => c.json({ status: "live" }, 200),
  );
  app.openapi(
    createRoute({
      method: "get",
      path: "/health/ready",
      summary: "Whether loads are taken; touches no database",
      responses: {
        200: json(schemas.Status, "They are"),
        503: json(schemas.Status, "Starting up, or shutting down"),
      },
    }),
    (c) => {
      const status = dispatcher.isDraining
        ? "draining"
        : context.isReady()
        ? "ready"
        : "starting";
      return c.json({ status }, status === "ready" ? 200 : 503);
    },
  );

  const optionsOf = async (c: Context): Promise<RunOptions> => {
    const body = await readBody(c.req.raw);
    const { tables, mode } = parseLoadRequest(body);
    return {
      tables: tables
        ? TABLE_NAMES.filter((name) => tables.some((t) => t === name))
        : TABLE_NAMES,
      mode: mode ?? config.loadMode,
      atomic: config.loadAtomic,
      recreate: false,
    };
  };
  // Registered by hand: the body is JSON whatever content type it has, or empty.
  app.openAPIRegistry.registerPath(createRoute({
    method: "post",
    path: "/load",
    summary:
      "Runs a load that begins after this request, and waits for its end",
    request: loadBody,
    responses: {
      ...refusedLoad,
      200: json(schemas.LoadedEvent, "The load is committed"),
      500: {
        content: {
          "application/json": { schema: schemas.FailedEvent },
          "application/problem+json": { schema: schemas.Problem },
        },
        description: "The load failed: the event names table, cause and remedy",
      },
    },
  }));
  app.post("/load", async (c) => {
    const event = await dispatcher.load("http", await optionsOf(c));
    return c.json(event, event.status === "success" ? 200 : 500);
  });
  app.openAPIRegistry.registerPath(createRoute({
    method: "post",
    path: "/load-async",
    summary: "Queues a load, which is run also if the service is restarted",
    request: loadBody,
    responses: { ...refusedLoad, 202: json(schemas.Accepted, "It is queued") },
  }));
  app.post("/load-async", async (c) => {
    const run_id = await dispatcher.submit("http", await optionsOf(c));
    return c.json({ run_id, status: "queued" }, 202, {
      location: `/runs/${run_id}`,
    });
  });

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
  const found = async (id: string) => {
    const run = await findRun(warehouse, id);
    if (!run) throw new ServiceError("not_found", `There is no run ${id}`);
    return run;
  };
  const missing = { 404: refused("There is no such run") };
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
  let document: ReturnType<typeof app.getOpenAPI31Document> | undefined;
  const openapi = () => document ??= app.getOpenAPI31Document(DESCRIPTION);
  app.openapi(
    createRoute({
      method: "get",
      path: "/openapi.json",
      summary: "This document",
      responses: {
        ...guarded,
        200: json(z.looseObject({ openapi: z.string() }), "OpenAPI 3.1"),
      },
    }),
    (c) => c.json(openapi() as unknown as { openapi: string }, 200),
  );
  app.openapi(
    createRoute({
      method: "get",
      path: "/docs",
      summary: "A reader for this document",
      responses: { ...guarded, 200: text("text/html", "The reader") },
    }),
    (c) => c.html(docs(openapi(), nonceOf(c))),
  );
  return app;
}

/** @throws {ServiceError} `usage`, naming what is not allowed. */
function parseLoadRequest(body: string): z.infer<typeof schemas.LoadRequest> {
  if (body.trim() === "") return {};
  let value: unknown;
  try {
    value = JSON.parse(body);
  } catch (error) {
    throw badRequest(`The body is not JSON: ${(error as Error).message}`);
  }
  const result = schemas.LoadRequest.safeParse(value, { reportInput: true });
  if (!result.success) throw badRequest(issues(result.error));
  return result.data;
}

/** What a schema found, in one line that names each place. */
function issues(error: z.ZodError): string {
  return error.issues.map(({ path, message, input }) => {
    const given = typeof input === "string"
      ? `, not ${JSON.stringify(input.slice(0, 80))}`
      : "";
    return `${path.length > 0 ? `${path.join(".")}: ` : ""}${message}${given}`;
  }).join("; ");
}

function endpointsOf(app: OpenAPIHono): string[] {
  return [
    ...new Set(
      app.routes.filter((route) => route.method !== "ALL")
        .map(({ method, path }) => `${method} ${path}`),
    ),
  ];
}

/** Compares digests, so that the time it takes says nothing about the token. */
function tokenCheck(token: string) {
  const digest = async (text: string) =>
    new Uint8Array(
      await crypto.subtle.digest("SHA-256", new TextEncoder().encode(text)),
    );
  const expected = digest(token);
  return async (header: string | undefined): Promise<boolean> => {
    const given = await digest(/^Bearer +(.*)$/i.exec(header ?? "")?.[1] ?? "");
    const right = await expected;
    return given.reduce((sum, byte, i) => sum | (byte ^ right[i]!), 0) === 0;
  };
}
