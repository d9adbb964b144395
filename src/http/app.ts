/** The HTTP application: middleware, then routes. Every error is a problem document. */
import { OpenAPIHono } from "@hono/zod-openapi";
import { requestId } from "hono/request-id";
import { tokenRequired } from "./middleware/auth.ts";
import type { HttpContext } from "./context.ts";
import { addDocumentRoutes } from "./routes/docs.tsx";
import { printableBodies } from "./middleware/printable.ts";
import { allowedMethods, answerErrors } from "./middleware/errors.ts";
import { noStore, securityHeaders } from "./middleware/headers.ts";
import { measure } from "./middleware/measure.ts";
import { FailedTokens } from "./middleware/failed_tokens.ts";
import { addAssetRoutes } from "./routes/assets.ts";
import { addHealthRoutes } from "./routes/health.ts";
import { addHistoryRoutes } from "./routes/runs.tsx";
import { issues } from "./routes/load_request.ts";
import { addLoadRoutes } from "./routes/load.ts";
import { addOverviewRoute } from "./routes/overview.tsx";
import { ownHostOnly, validHostOnly } from "./middleware/host.ts";
import { isLoopback } from "../config/loopback.ts";
import { badRequest, problem } from "./problem.tsx";
import { continueTrace } from "./middleware/trace.ts";
import { sameOriginOnly } from "./middleware/csrf.ts";
import { addTableRoutes } from "./routes/tables.ts";
import { addSessionRoutes } from "./routes/session.ts";

/** Returns the application for `listen`. */
export function createApp(context: HttpContext): OpenAPIHono {
  const { config, log } = context;
  const app = new OpenAPIHono({
    defaultHook(result, c) {
      if (!result.success) return problem(c, badRequest(issues(result.error)));
    },
  });
  app.use(requestId());
  app.use(continueTrace());
  app.use(measure(context.metrics));
  app.use(securityHeaders());
  app.use(noStore());
  app.use(printableBodies());
  app.use(validHostOnly());
  if (!config.apiToken && isLoopback(config.host)) {
    app.use(ownHostOnly(config.publicUrl));
  }
  app.use(sameOriginOnly(config.publicUrl));
  const failures = new FailedTokens(log);
  if (config.apiToken) app.use(tokenRequired(config.apiToken, failures));
  app.use(allowedMethods(app));
  answerErrors(app, log);

  addOverviewRoute(app, context);
  addHealthRoutes(app, context);
  addLoadRoutes(app, context);
  addHistoryRoutes(app, context);
  addTableRoutes(app, context);
  addDocumentRoutes(app, context);
  addSessionRoutes(app, context, failures);
  addAssetRoutes(app);
  return app;
}
