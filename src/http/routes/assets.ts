/** The stylesheet and the script of the pages. */
import type { OpenAPIHono } from "@hono/zod-openapi";
import { ASSETS } from "../pages/assets.ts";

/** Adds the paths under `/assets`. */
export function addAssetRoutes(app: OpenAPIHono): void {
  for (const { path, contentType, text } of ASSETS) {
    app.get(path, (c) =>
      c.body(text, 200, {
        "content-type": contentType,
        "cache-control": "public, max-age=31536000, immutable",
      }));
  }
}
