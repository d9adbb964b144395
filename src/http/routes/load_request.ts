/** What a request for a load may say. */
import type { z } from "@hono/zod-openapi";
import type { Config } from "../../config/config.ts";
import type { RunOptions } from "../../runs/queue.ts";
import { TABLE_NAMES } from "../../tables/declaration.ts";
import { readBody } from "../body.ts";
import { badRequest } from "../problem.tsx";
import * as schemas from "../openapi/schemas.ts";

/**
 * The options of the load that a request asks for. The body is JSON whatever
 * content type it has, or empty.
 *
 * @throws {ServiceError} `usage`, naming what is not allowed, `body_too_large`,
 * `body_too_slow`.
 */
export async function readLoadRequest(
  request: Request,
  config: Config,
): Promise<RunOptions> {
  const { tables, mode } = parseLoadRequest(await readBody(request));
  return {
    tables: tables
      ? TABLE_NAMES.filter((name) => tables.some((t) => t === name))
      : TABLE_NAMES,
    mode: mode ?? config.loadMode,
    atomic: config.loadAtomic,
    recreate: false,
  };
}

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
export function issues(error: z.ZodError): string {
  return error.issues.map(({ path, message, input }) => {
    const given = typeof input === "string"
      ? `, not ${JSON.stringify(input.slice(0, 80))}`
      : "";
    return `${path.length > 0 ? `${path.join(".")}: ` : ""}${message}${given}`;
  }).join("; ");
}
