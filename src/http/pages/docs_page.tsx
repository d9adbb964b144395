/** A reader for the API, made on the server from the OpenAPI document: it needs nothing from elsewhere. */

import { Json } from "./components/json.tsx";

// deno-lint-ignore no-explicit-any -- an OpenAPI document, read loosely
type Document = any;

const PROBLEM_TYPE = "application/problem+json";

/** The page's content. */
export function DocsPage({ document }: { document: Document }) {
  const operations = Object.entries<Document>(document.paths).flatMap((
    [path, methods],
  ) =>
    Object.entries<Document>(methods).map(([method, operation]) => ({
      name: `${method.toUpperCase()} ${path}`,
      operation,
    }))
  );
  return (
    <>
      <h1>API</h1>
      <p>
        {document.info.description} For programs:{" "}
        <a href="/openapi.json">openapi.json</a>. A{" "}
        <a href="#Problem">Problem</a> is always <code>{PROBLEM_TYPE}</code>.
      </p>
      {operations.map(({ name, operation }) => (
        <Operation name={name} operation={operation} />
      ))}
      <h2>Schemas</h2>
      {Object.entries<Document>(document.components.schemas).map((
        [name, schema],
      ) => (
        <details class="shape" id={name}>
          <summary>
            <code>{name}</code>
          </summary>
          <Json value={schema} indent={1} />
        </details>
      ))}
    </>
  );
}

function Operation(
  { name, operation }: { name: string; operation: Document },
) {
  const parameters: Document[] = operation.parameters ?? [];
  const bodies = Object.values<Document>(operation.requestBody?.content ?? {});
  return (
    <section class="card operation">
      <h2>
        <code>{name}</code>
      </h2>
      <p>{operation.summary}</p>
      {(parameters.length > 0 || bodies.length > 0) && (
        <ul>
          {parameters.map((p) => (
            <li>
              <code>{p.name}</code> in {p.in}
              {p.required ? ", required" : ""}: {limitsOf(p.schema)}
            </li>
          ))}
          {bodies.map(({ schema }) => (
            <li>
              Body{operation.requestBody.required ? "" : ", optional"}:{" "}
              <Shape schema={schema} />
            </li>
          ))}
        </ul>
      )}
      <table aria-label={name}>
        <thead>
          <tr>
            <th scope="col">Status</th>
            <th scope="col">When</th>
            <th scope="col">Body</th>
          </tr>
        </thead>
        <tbody>
          {Object.entries<Document>(operation.responses).map((
            [status, answer],
          ) => (
            <tr>
              <th scope="row">{status}</th>
              <td>{answer.description}</td>
              <td>
                {Object.entries<Document>(answer.content ?? {}).map((
                  [type, { schema }],
                ) => (
                  <span class="body">
                    {type === PROBLEM_TYPE ? "" : `${type} `}
                    <Shape schema={schema} />
                  </span>
                ))}
              </td>
            </tr>
          ))}
        </tbody>
      </table>
    </section>
  );
}

function Shape({ schema }: { schema: Document }) {
  const name = schema?.$ref?.split("/").at(-1);
  return name ? <a href={`#${name}`}>{name}</a> : null;
}

/** What a parameter may be, in words. */
function limitsOf(schema: Document): string {
  const { type, format, enum: words, minimum, maximum, default: fallback } =
    schema;
  return [
    words ? words.join(", ") : format ?? type,
    minimum !== undefined && `from ${minimum} to ${maximum}`,
    fallback !== undefined && `${fallback} when not given`,
  ].filter(Boolean).join("; ");
}
