/**
 * Compares answers of a service with its OpenAPI document.
 *
 * @module
 */
import { assert } from "@std/assert";
import addFormats from "ajv-formats";
import Ajv from "ajv/2020";
import type { Server } from "./server.ts";

interface DocumentedResponse {
  readonly content?: Readonly<Record<string, unknown>>;
  readonly headers?: Readonly<Record<string, { readonly required?: boolean }>>;
}

/**
 * Returns the same service. Each of its answers must match the document: its path,
 * status and media type, its required headers, and the schema of a JSON body.
 */
export async function documented(
  server: Server,
  headers: Record<string, string> = {},
): Promise<Server> {
  const answer = await server.fetch("/openapi.json", { headers });
  const document = await answer.json();
  const ajv = new Ajv.default({ strict: false, allErrors: true });
  addFormats.default(ajv);
  ajv.addSchema({ $id: "api", ...document });
  const escape = (key: string) =>
    encodeURIComponent(key.replaceAll("~", "~0").replaceAll("/", "~1"));

  /** Returns the template of a path in the document, or `undefined`. */
  const templateOf = (path: string) =>
    Object.keys(document.paths).find((template) =>
      new RegExp(`^${template.replaceAll(/\{\w+\}/g, "[^/]+")}$`).test(path)
    );

  async function check(method: string, path: string, response: Response) {
    const { pathname } = new URL(path, server.url);
    const template = templateOf(pathname);
    const operation = template && document.paths[template][method];
    // The document lists no unknown paths and methods.
    if (!operation) return assert([404, 405].includes(response.status), path);
    const { status } = response;
    const label = `${method} ${path}: ${status}`;
    const key = String(status) in operation.responses
      ? String(status)
      : "default";
    const expected: DocumentedResponse = operation.responses[key];
    assert(expected && (key !== "default" || status >= 400), label);
    for (const [name, { required }] of Object.entries(expected.headers ?? {})) {
      assert(
        !required || response.headers.has(name),
        `${label} has no ${name}`,
      );
    }
    const type = response.headers.get("content-type")?.split(";")[0];
    if (!type) return assert(!expected.content, label);
    assert(expected.content && type in expected.content, `${label} is ${type}`);
    if (!type.endsWith("json")) return;
    const reference = `api#/paths/${
      escape(template)
    }/${method}/responses/${key}/content/${escape(type)}/schema`;
    const validate = ajv.getSchema(reference) ??
      ajv.compile({ $ref: reference });
    assert(
      validate(await response.clone().json()),
      `${label} ${JSON.stringify(validate.errors)}`,
    );
  }

  const get = async (path: string, init?: RequestInit) => {
    const response = await server.fetch(path, init);
    await check((init?.method ?? "GET").toLowerCase(), path, response);
    return response;
  };
  return {
    ...server,
    fetch: get,
    async json(path, init) {
      const response = await get(path, init);
      return { status: response.status, body: await response.json() };
    },
    [Symbol.asyncDispose]: () => server[Symbol.asyncDispose](),
  };
}
