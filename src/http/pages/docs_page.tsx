/** The API as a page, rendered from the OpenAPI document. It does not load from other hosts. */
import { Json } from "./components/json.tsx";

// deno-lint-ignore no-explicit-any -- an OpenAPI document of any shape
type Document = any;

const PROBLEM_TYPE = "application/problem+json";

/** Number of operations from which a response is shown once for all of them. */
const MIN_COMMON = 6;

type Answer = [status: string, response: Document];

export function DocsPage({ document }: { document: Document }) {
  const operations = Object.entries<Document>(document.paths).flatMap((
    [path, methods],
  ) =>
    Object.entries<Document>(methods).map(([method, operation]) => ({
      name: `${method.toUpperCase()} ${path}`,
      operation,
    }))
  );
  const answers = operations.flatMap(({ operation }) =>
    Object.entries<Document>(operation.responses)
  );
  const common = [...Map.groupBy(answers, keyOf).values()]
    .filter((alike) => alike.length >= MIN_COMMON)
    .map(([first]) => first!);
  const commonKeys = new Set(common.map(keyOf));
  return (
    <>
      <h1>API</h1>
      <p>
        {document.info.description} Programs can read{" "}
        <a href="/openapi.json">openapi.json</a>. An error without a body in
        these tables is a <a href="#Problem">Problem</a> with the type{" "}
        <code>{PROBLEM_TYPE}</code>.
      </p>
      <section class="card operation">
        <h2>Responses of most requests</h2>
        <Answers name="Responses of most requests" answers={common} />
      </section>
      {operations.map(({ name, operation }) => (
        <Operation
          name={name}
          operation={operation}
          answers={Object.entries<Document>(operation.responses)
            .filter((answer) => !commonKeys.has(keyOf(answer)))}
        />
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

function keyOf([status, { description }]: Answer): string {
  return `${status} ${description}`;
}

function Operation(
  { name, operation, answers }: {
    name: string;
    operation: Document;
    answers: readonly Answer[];
  },
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
      <Answers name={name} answers={answers} />
    </section>
  );
}

function Answers(
  { name, answers }: { name: string; answers: readonly Answer[] },
) {
  return (
    <table aria-label={name}>
      <thead>
        <tr>
          <th scope="col">Status</th>
          <th scope="col">When</th>
          <th scope="col">Body</th>
        </tr>
      </thead>
      <tbody>
        {answers.map(([status, response]) => (
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
