/** The documentation of the API, for programs and people. */
import { createRoute, type OpenAPIHono, z } from "@hono/zod-openapi";
import { VERSION } from "../../identity.ts";
import { guarded, json, text } from "../openapi/responses.ts";
import { DocsPage } from "../pages/docs_page.tsx";
import { answerPage } from "../pages/layout.tsx";

const DESCRIPTION = {
  openapi: "3.1.0",
  info: {
    title: "marketing-data-service",
    version: VERSION,
    description:
      "Keeps warehouse tables equal to source tables. Publishes an event for each load.",
  },
} as const;

/** Adds `/openapi.json` and `/docs`. */
export function addDocumentRoutes(app: OpenAPIHono): void {
  let document: ReturnType<typeof app.getOpenAPI31Document> | undefined;
  const openapi = () => document ??= app.getOpenAPI31Document(DESCRIPTION);
  app.openapi(
    createRoute({
      method: "get",
      path: "/openapi.json",
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
