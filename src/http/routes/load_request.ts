/** Parses requests for loads. */
import type { z } from "@hono/zod-openapi";
import type { Config } from "../../config/config.ts";
import type { RunOptions } from "../../runs/run.ts";
import { defaultOptions } from "../../service/dispatcher.ts";
import { namesOf, NO_GROUP, selectTables } from "../../tables/declaration.ts";
import { BodyReader } from "../body_limits.ts";
import { badRequest } from "../problem.tsx";
import type { loadRequest } from "../openapi/schemas.ts";

type RequestSchema = ReturnType<typeof loadRequest>;

const bodies = new BodyReader(64 * 1024);

/** Maximum number of validation errors in a response. */
const MAX_ISSUES = 5;

/** Maximum length of a validation error, which can quote a key of the request. */
const MAX_ISSUE_LENGTH = 500;

/**
 * Returns the options of the requested load. The body is JSON or empty. Its
 * content type does not matter.
 *
 * @throws {ServiceError} `usage` with the invalid field, `body_too_large`,
 * `body_too_slow`.
 */
export async function readLoadRequest(
  request: Request,
  config: Config,
  schema: RequestSchema,
): Promise<RunOptions> {
  if (new URL(request.url).search) {
    throw badRequest("Options of a load belong in the body, not in the URL");
  }
  const { tables, group, mode, allow_shrink } = parseLoadRequest(
    await bodies.read(request),
    schema,
  );
  const defaults = defaultOptions(config);
  const groups = typeof group === "string" ? [group] : [];
  return {
    ...defaults,
    tables: namesOf(selectTables(config.tables, tables ?? [], groups)),
    mode: mode ?? defaults.mode,
    allowShrink: allow_shrink ?? defaults.allowShrink,
  };
}

function parseLoadRequest(
  body: string,
  schema: RequestSchema,
): z.infer<RequestSchema> {
  if (body.trim() === "") return {};
  let value: unknown;
  try {
    value = JSON.parse(body);
  } catch (error) {
    throw badRequest(
      `The body is not valid JSON: ${(error as Error).message}`,
    );
  }
  const result = schema.safeParse(value, { reportInput: true });
  if (!result.success) {
    // Only the schema of a service without groups has no such field.
    const isGroup = result.error.issues.some((issue) =>
      issue.code === "unrecognized_keys" && issue.keys.includes("group")
    );
    throw badRequest(
      issues(result.error) + (isGroup ? `, because ${NO_GROUP}` : ""),
    );
  }
  return result.data;
}

/** Returns the first validation errors as one line that names each field. */
export function issues(error: z.ZodError): string {
  return error.issues.slice(0, MAX_ISSUES).map((issue) => {
    const { path, input } = issue;
    const given = typeof input === "string"
      ? `, not ${JSON.stringify(input.slice(0, 80))}`
      : "";
    return describeIssue(path.join(".") || "The body", issue)
      .slice(0, MAX_ISSUE_LENGTH) + given;
  }).join("; ");
}

/** Types of JSON in words. A parameter of a URL is a string, and an array if it is repeated. */
const TYPES: Readonly<Record<string, string>> = {
  string: "one value",
  array: "an array",
  object: "a JSON object",
  boolean: "true or false",
};

function describeIssue(field: string, issue: z.core.$ZodIssue): string {
  const listed = (values: readonly unknown[]) =>
    values.map((value) => JSON.stringify(value)).join(", ");
  switch (issue.code) {
    case "invalid_type":
      return `${field} must be ${TYPES[issue.expected] ?? issue.expected}`;
    case "invalid_value":
      return `${field} must be one of ${listed(issue.values)}`;
    case "too_small":
      return issue.origin === "array"
        ? `${field} must not be empty`
        : `${field} must be at least ${issue.minimum}`;
    case "too_big":
      return `${field} must be at most ${issue.maximum}`;
    case "unrecognized_keys":
      return `${listed(issue.keys)} ${
        issue.keys.length === 1 ? "is" : "are"
      } not known`;
    case "invalid_format":
      return `${field} must be ${
        issue.format === "uuid" ? "a UUID" : "a whole number"
      }`;
    default:
      return `${field}: ${issue.message}`;
  }
}
