/** The API as a page, rendered from the OpenAPI document. It loads nothing from other hosts. */
import { Json } from "./components/json.tsx";

// deno-lint-ignore no-explicit-any -- an OpenAPI document of any shape
type Document = any;

const PROBLEM_TYPE = "application/problem+json";

/** The content of the page. */
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
        {document.info.description} Programs can read{" "}
        <a href="/openapi.json">openapi.json</a>. An error without a body in
        these tables is a <a href="#Problem">Problem</a> with the type{" "}
        <code>{PROBLEM_TYPE}</code>.
      </p>
      {operations.map(({ name, operation }) => (
        <Operation name={name} operation={operation} />
      ))}
      <h2>Schemas</h2>
      {Object.entries<Document>(document.components.schemas).map((
        [name, schema],
      ) => (
        <details id={name}>
          <summary>
            <code>{name}</code>
          </summary>
          <Json value={schema} isDense />
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
            [status, response],
          ) => (
            <tr>
              <th scope="row">{status}</th>
              <td>{response.description}</td>
              <td>
                {Object.entries<Document>(response.content ?? {}).map((
                  [type, { schema }],
                ) => (
                  // The introduction explains it.
                  type === PROBLEM_TYPE ? null : (
                    <span class="body">
                      {type} <Shape schema={schema} />
                    </span>
                  )
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

/** Returns the valid values of a parameter as text. */
function limitsOf(schema: Document): string {
  const { type, format, enum: values, minimum, maximum, default: fallback } =
    schema;
  return [
    values ? values.join(", ") : format ?? type,
    minimum !== undefined && `from ${minimum} to ${maximum}`,
    fallback !== undefined && `default ${fallback}`,
  ].filter(Boolean).join(", ");
}
