/** The documentation of the API, for programs and people. */
import { createRoute, type OpenAPIHono, z } from "@hono/zod-openapi";
import type { Config } from "../../config/config.ts";
import { VERSION } from "../../identity.ts";
import { EVENT_SCHEMA_PATH } from "../../runs/event.ts";
import type { HttpContext } from "../context.ts";
import { SESSION_COOKIE } from "../middleware/auth.ts";
import { guarded, json, ownHost, text } from "../openapi/responses.ts";
import { CloudEvent, LoadEvent } from "../openapi/schemas.ts";
import { DocsPage } from "../pages/docs_page.tsx";
import { answerPage } from "../pages/layout.tsx";

/** Returns the parts of the document that belong to no route. */
const describe = ({ publicUrl, apiToken }: Config) => ({
  openapi: "3.1.0",
  info: {
    title: "marketing-data-service",
    version: VERSION,
    description:
      "Keeps warehouse tables equal to source tables. Publishes an event for each load.",
    license: { name: "MIT", identifier: "MIT" },
  },
  servers: [{ url: publicUrl ?? "/" }],
  // Without a token, every client on loopback may do everything.
  security: [{ token: [] }, { session: [] }, ...(apiToken ? [] : [{}])],
});

/** Adds `/openapi.json`, `/docs`, the schema of events, and the webhook. */
export function addDocumentRoutes(
  app: OpenAPIHono,
  { config }: HttpContext,
): void {
  app.openAPIRegistry.registerComponent("securitySchemes", "token", {
    type: "http",
    scheme: "bearer",
    description: "The value of API_TOKEN",
  });
  app.openAPIRegistry.registerComponent("securitySchemes", "session", {
    type: "apiKey",
    in: "cookie",
    name: SESSION_COOKIE,
    description: "A browser that signed in at /session",
  });
  app.openAPIRegistry.registerWebhook({
    method: "post",
    path: "event",
    operationId: "receiveEvent",
    security: [],
    summary: "Receives each event at EVENT_WEBHOOK_URL",
    description:
      "Signed as Standard Webhooks specify. Each event arrives at least once, in order.",
    request: {
      headers: z.object({
        "webhook-id": z.uuid(),
        "webhook-timestamp": z.string(),
        "webhook-signature": z.string(),
      }),
      body: {
        content: { "application/cloudevents+json": { schema: CloudEvent } },
      },
    },
    responses: {
      "2XX": { description: "The event is delivered" },
      410: { description: "No further event is sent" },
      default: { description: "The event is sent again later" },
    },
  });
  const schema = {
    ...z.toJSONSchema(LoadEvent),
    title: "Event of a run of marketing-data-service",
  };
  app.openapi(
    createRoute({
      method: "get",
      path: EVENT_SCHEMA_PATH,
      operationId: "getEventSchema",
      security: [],
      summary: "Returns the JSON Schema of every event",
      responses: {
        ...ownHost,
        200: json(
          z.looseObject({ $schema: z.string() }),
          "JSON Schema 2020-12",
        ),
      },
    }),
    (c) => c.json(schema as unknown as { $schema: string }, 200),
  );
  let document: ReturnType<typeof app.getOpenAPI31Document> | undefined;
  const openapi = () => document ??= app.getOpenAPI31Document(describe(config));
  app.openapi(
    createRoute({
      method: "get",
      path: "/openapi.json",
      operationId: "getDocument",
      summary: "Returns this document",
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
      operationId: "showDocument",
      summary: "Shows this document as a page",
      responses: { ...guarded, 200: text("text/html", "The page") },
    }),
    (c) =>
      answerPage(c, {
        title: "API",
        section: "/docs",
        body: <DocsPage document={openapi()} />,
      }),
  );
}
