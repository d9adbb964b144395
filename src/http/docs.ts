/** A reader for the API, made on the server from the OpenAPI document: it needs nothing from elsewhere. */
import { escapeHtml, page } from "./page.ts";

// deno-lint-ignore no-explicit-any -- an OpenAPI document, read loosely
type Document = any;

/** The document as HTML. */
export function docs(document: Document, nonce: string): string {
  const operations = Object.entries<Document>(document.paths).flatMap(
    ([path, methods]) =>
      Object.entries<Document>(methods).map(([method, operation]) =>
        operationHtml(method, path, operation)
      ),
  );
  const schemas = Object.entries<Document>(document.components.schemas).map(
    ([name, schema]) =>
      `<h3 id="${escapeHtml(name)}">${escapeHtml(name)}</h3><pre>${
        escapeHtml(JSON.stringify(schema, null, 2))
      }</pre>`,
  );
  return page(
    `${document.info.title} ${document.info.version}`,
    nonce,
    `<p>${
      escapeHtml(document.info.description)
    } <a href="/openapi.json">openapi.json</a></p>` +
      `${operations.join("")}<h2>Schemas</h2>${schemas.join("")}`,
  );
}

function operationHtml(method: string, path: string, operation: Document) {
  const parameters = (operation.parameters ?? []).map((p: Document) =>
    `<li><code>${escapeHtml(p.name)}</code> in ${escapeHtml(p.in)}${
      p.required ? ", required" : ""
    }: <code>${escapeHtml(JSON.stringify(p.schema))}</code></li>`
  );
  const body = Object.values<Document>(operation.requestBody?.content ?? {})
    .map((content) => `<p>Body, optional: ${schemaHtml(content.schema)}</p>`);
  const answers = Object.entries<Document>(operation.responses).map(
    ([status, answer]) =>
      `<tr><td>${status}</td><td>${escapeHtml(answer.description)}</td><td>${
        Object.entries<Document>(answer.content ?? {}).map(([type, content]) =>
          `${escapeHtml(type)} ${schemaHtml(content.schema)}`
        ).join("<br>")
      }</td></tr>`,
  );
  return `<h2><code>${method.toUpperCase()} ${escapeHtml(path)}</code></h2><p>${
    escapeHtml(operation.summary ?? "")
  }</p><ul>${parameters.join("")}</ul>${body.join("")}<table>${
    answers.join("")
  }</table>`;
}

function schemaHtml(schema: Document): string {
  const name = schema?.$ref?.split("/").at(-1);
  return name ? `<a href="#${escapeHtml(name)}">${escapeHtml(name)}</a>` : "";
}
