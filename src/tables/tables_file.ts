/**
 * Parses a file that declares tables, in YAML or JSON.
 *
 * Loaded only where such a file is named: its libraries take longer to start
 * than a short command.
 *
 * @module
 */
import {
  Document,
  isAlias,
  isMap,
  isNode,
  isScalar,
  LineCounter,
  type Node,
  parseDocument,
  visit,
} from "yaml";
import { z } from "zod";
import { suggest } from "../suggest.ts";
import { parseTypeName } from "./column_types.ts";
import {
  formatRelation,
  NEW_COLUMNS,
  type RelationName,
  type TableCheck,
  type TableDeclaration,
} from "./declaration.ts";
import { fragmentMistake, queryMistake } from "./sql_fragment.ts";

/** Maximum length of a PostgreSQL identifier, in bytes of UTF-8. */
const MAX_IDENTIFIER_BYTES = 63;

/** Returns a schema of a text for which `parse` returns a value, or throws a plain `Error`. */
function parsed<T>(
  parse: (text: string) => T,
  description: string,
  example: string,
) {
  return z.string().meta({ description, examples: [example] }).transform(
    (text, context): T => {
      try {
        return parse(text);
      } catch (error) {
        context.issues.push({
          code: "custom",
          input: text,
          message: `${JSON.stringify(text)} ${(error as Error).message}`,
        });
        return z.NEVER;
      }
    },
  );
}

/** Returns the identifier. Throws when PostgreSQL would shorten or refuse it. */
function checkedIdentifier(name: string): string {
  if (name === "") throw new Error("is empty");
  if (name.includes("\0")) throw new Error("contains a zero character");
  const bytes = new TextEncoder().encode(name).length;
  if (bytes > MAX_IDENTIFIER_BYTES) {
    throw new Error(
      `has ${bytes} bytes; PostgreSQL shortens names of more than ${MAX_IDENTIFIER_BYTES}`,
    );
  }
  return name;
}

const QUALIFIED =
  /^\s*(?<schema>[\p{L}_][\p{L}\p{N}_$]*|"(?:[^"]|"")+")\s*\.\s*(?<name>[\p{L}_][\p{L}\p{N}_$]*|"(?:[^"]|"")+")\s*$/u;

/** Parses a schema-qualified name, with quotes as in SQL. */
function parseRelation(text: string): RelationName {
  const groups = QUALIFIED.exec(text)?.groups;
  if (!groups) {
    throw new Error(
      "is not a table with its schema, such as marketing.closed_deals; quote other names as in SQL",
    );
  }
  const unquoted = (name: string) =>
    checkedIdentifier(
      name.startsWith('"')
        ? name.slice(1, -1).replaceAll('""', '"')
        // As the server does, which folds ASCII letters only.
        : name.replace(/[A-Z]/g, (letter) => letter.toLowerCase()),
    );
  return { schema: unquoted(groups.schema!), name: unquoted(groups.name!) };
}

/** Schemas whose tables no load may write. */
const RESERVED_SCHEMAS = /^(marketing_data_service|information_schema|pg_.*)$/;

/** Parses the name of a target. */
function parseTarget(text: string): RelationName {
  const target = parseRelation(text);
  if (RESERVED_SCHEMAS.test(target.schema)) {
    throw new Error(`is in the reserved schema ${target.schema}`);
  }
  return target;
}

/** Parses a name that users type, such as after `--table`. */
function parseLabel(text: string): string {
  if (!/^[^\p{C},\s]+(?: [^\p{C},\s]+)*$/u.test(text)) {
    throw new Error("must be a name without commas and control characters");
  }
  return text;
}

function parseFragment(text: string): string {
  const mistake = fragmentMistake(text);
  if (mistake) throw new Error(`is not one SQL expression: it ${mistake}`);
  return text;
}

function parseQuery(text: string): string {
  const mistake = queryMistake(text);
  if (mistake) throw new Error(`is not one SQL query: it ${mistake}`);
  return text;
}

const typeName = parsed(
  parseTypeName,
  "Type of the column in the warehouse",
  "numeric(10,2)",
);

const Column = z.strictObject({
  type: typeName,
  from: parsed(
    checkedIdentifier,
    "Source column, where its name differs",
    "customer_zip_code_prefix",
  ).exactOptional(),
  expression: parsed(
    parseFragment,
    "SQL expression over the source columns",
    "regexp_replace(geolocation_city, ';', '.')",
  ).exactOptional(),
}).refine(({ from, expression }) => !from || !expression, {
  message: "has both from and expression: keep one of them",
});

const columnList = (description: string) =>
  z.array(parsed(checkedIdentifier, "Column of the target", "id")).min(1)
    .meta({ description }).exactOptional();

const Check = z.strictObject({
  not_null: columnList("Columns of the target without NULL"),
  unique: columnList(
    "Columns of the target whose values together occur in one row only",
  ),
  sql: parsed(
    parseQuery,
    "SQL query of the warehouse that returns one row with one boolean. The check holds where it is true",
    "select min(balance) >= 0 from raw.accounts",
  ).exactOptional(),
});

const Declaration = z.strictObject({
  source: parsed(
    parseRelation,
    "Table of the source with its schema, quoted as in SQL where it must be",
    "marketing.closed_deals",
  ),
  target: parsed(
    parseTarget,
    "Table of the warehouse with its schema, quoted as in SQL where it must be",
    "m_data.closed_deal",
  ),
  name: parsed(
    parseLabel,
    "Name for --table, the API, events and metrics. Defaults to the name of the target",
    "closed_deal",
  ).exactOptional(),
  group: parsed(
    parseLabel,
    "Name that selects several tables, as in --group",
    "ecommerce",
  ).exactOptional(),
  columns: z.record(z.string(), z.union([typeName, Column])).meta({
    description:
      "Columns of the target and their types. Without it, every column of the source is loaded",
  }).exactOptional(),
  where: parsed(
    parseFragment,
    "SQL condition over the source columns. Only rows that meet it are loaded",
    "deleted_at is null",
  ).exactOptional(),
  key: columnList(
    "Columns of the target that identify a row. A load checks that no two rows share them",
  ),
  new_columns: z.enum(NEW_COLUMNS).meta({
    description:
      "Treatment of columns that the source has and the target lacks, where columns are not listed. Ignore them with a warning, add them to the target, or fail",
  }).exactOptional(),
  max_shrink: z.number().min(0).max(1).meta({
    description:
      "Maximum share of the target's rows that a load may remove, in place of MAX_SHRINK",
    examples: [0.5],
  }).exactOptional(),
  checks: z.array(Check).meta({
    description:
      "Conditions that the loaded rows must meet before they become visible",
  }).exactOptional(),
}).refine(({ columns, new_columns }) => !columns || !new_columns, {
  path: ["new_columns"],
  message: "has no effect where columns are listed: remove one of them",
});

const TablesFile = z.strictObject({
  tables: z.array(Declaration).min(1),
}).meta({
  title: "Tables of marketing-data-service",
  description: "The file that TABLES_FILE names",
});

/** Returns the JSON Schema of the file, for editors. */
export function tablesFileSchema(): unknown {
  return z.toJSONSchema(TablesFile, { io: "input" });
}

/**
 * Returns the text of a file with these declarations, in YAML. Characters that no
 * terminal prints are escaped.
 */
export function formatTablesFile(tables: readonly unknown[]): string {
  const document = new Document({ tables });
  visit(document, {
    Scalar(_, scalar) {
      const { value } = scalar;
      if (typeof value === "string" && /\p{C}/u.test(value)) {
        scalar.type = "QUOTE_DOUBLE";
      }
    },
  });
  return document.toString({ lineWidth: 0 }).replace(
    /[^\P{C}\n]/gu,
    (character) =>
      `\\U${character.codePointAt(0)!.toString(16).padStart(8, "0")}`,
  );
}

/** The declared tables, or the mistakes of the file. */
export interface DeclaredTables {
  readonly tables: readonly TableDeclaration[];
  /** Each with path, line and column, in the order of the file. */
  readonly problems: readonly string[];
}

/** Parses the text of a file. Reports all mistakes together. */
export function parseTablesFile(path: string, text: string): DeclaredTables {
  const lines = new LineCounter();
  const document = parseDocument(text, {
    lineCounter: lines,
    prettyErrors: false,
  });
  const mistakes: { readonly offset: number; readonly message: string }[] = [];
  const report = (offset: number, message: string) => {
    mistakes.push({ offset, message });
  };
  const result = (tables: readonly TableDeclaration[]): DeclaredTables => ({
    tables,
    problems: mistakes.sort((a, b) => a.offset - b.offset).map(
      ({ offset, message }) => {
        const { line, col } = lines.linePos(offset);
        return `${path}:${line}:${col}: ${message}`;
      },
    ),
  });
  for (const { pos, code, message } of document.errors) {
    report(
      pos[0],
      code === "MULTIPLE_DOCS"
        ? "the file has more than one YAML document: keep one of them"
        : message,
    );
  }
  visit(document, {
    Pair(_, { key }) {
      // The schema would skip it without a mistake.
      if (isScalar(key) && key.value === "__proto__") {
        report(key.range?.[0] ?? 0, 'the name "__proto__" is not supported');
      }
    },
  });
  if (mistakes.length > 0) return result([]);
  if (document.contents === null) {
    report(0, "the file is empty: it must have the key tables");
    return result([]);
  }
  let value: unknown;
  try {
    value = document.toJS({ maxAliasCount: 100 });
  } catch (error) {
    report(0, (error as Error).message);
    return result([]);
  }
  const nodeAt = (place: readonly PropertyKey[]) => {
    let node: unknown = document.contents;
    for (const key of place) {
      if (isAlias(node)) node = node.resolve(document);
      if (isNode(node) && "get" in node) {
        node = (node as { get(k: unknown, keep: true): unknown })
          .get(key, true);
      }
    }
    return isNode(node) ? node : undefined;
  };
  const offsetOf = (place: readonly PropertyKey[]) => {
    for (let length = place.length; length >= 0; length--) {
      const node = nodeAt(place.slice(0, length));
      if (node?.range) return node.range[0];
    }
    return 0;
  };
  const checked = TablesFile.safeParse(value, { reportInput: true });
  if (!checked.success) {
    for (const issue of flatten(checked.error.issues)) {
      if (issue.code === "unrecognized_keys") {
        const map = nodeAt(issue.path);
        for (const key of issue.keys) {
          report(
            keyOffset(map, key) ?? offsetOf(issue.path),
            `unknown key ${JSON.stringify(key)}${
              suggest(key, keysAt(issue.path))
            }; allowed are ${keysAt(issue.path).join(", ")}`,
          );
        }
      } else {
        report(offsetOf(issue.path), messageOf(issue));
      }
    }
    return result([]);
  }
  const tables = checked.data.tables.map((declared, index) =>
    declarationOf(
      declared,
      (message, ...place) =>
        report(offsetOf(["tables", index, ...place]), message),
    )
  );
  reportDoubles(tables, (index, message) => {
    report(offsetOf(["tables", index]), message);
  });
  return result(tables);
}

type Issue = z.core.$ZodIssue;

/** Returns the issues with those of the fitting variant in place of a union. */
function flatten(issues: readonly Issue[]): Issue[] {
  return issues.flatMap((issue) => {
    if (issue.code !== "invalid_union") return [issue];
    // A column is a text with the type, or a map.
    const variant = issue.errors[typeof issue.input === "string" ? 0 : 1] ?? [];
    return flatten(
      variant.map((inner) => ({
        ...inner,
        path: [...issue.path, ...inner.path],
      })),
    );
  });
}

function messageOf(issue: Issue): string {
  const key = issue.path.at(-1);
  const reason = reasonOf(issue);
  return typeof key === "string" ? `${key}: ${reason}` : reason;
}

/** Names of types in the schema and in the file. */
const TYPE_NAMES: Readonly<Record<string, string>> = {
  string: "text",
  array: "a list",
  object: "a map",
  record: "a map",
  number: "a number",
  boolean: "true or false",
  null: "empty",
};

function reasonOf(issue: Issue): string {
  const nameOf = (type: string) => TYPE_NAMES[type] ?? type;
  if (issue.code === "invalid_type") {
    const { expected, input } = issue;
    if (input === undefined) {
      return `is missing and must be ${nameOf(expected)}`;
    }
    const found = input === null
      ? "null"
      : Array.isArray(input)
      ? "array"
      : typeof input;
    return `must be ${nameOf(expected)}, not ${nameOf(found)}`;
  }
  if (issue.code === "too_small" && issue.origin === "array") {
    return "must not be empty";
  }
  if (issue.code === "too_small") {
    return `must be at least ${issue.minimum}, not ${issue.input}`;
  }
  if (issue.code === "too_big") {
    return `must be at most ${issue.maximum}, not ${issue.input}`;
  }
  if (issue.code === "invalid_value") {
    return `must be one of ${issue.values.join(", ")}`;
  }
  return issue.message;
}

/** Returns the allowed keys of the map at this place. */
function keysAt(place: readonly PropertyKey[]): string[] {
  if (place.length === 0) return Object.keys(TablesFile.shape);
  if (place.length === 2) return Object.keys(Declaration.shape);
  return Object.keys(place[2] === "checks" ? Check.shape : Column.shape);
}

function keyOffset(map: Node | undefined, key: string): number | undefined {
  if (!isMap(map)) return undefined;
  const pair = map.items.find((item) =>
    isScalar(item.key) && String(item.key.value) === key
  );
  return isScalar(pair?.key) ? pair.key.range?.[0] : undefined;
}

function declarationOf(
  { columns, new_columns, max_shrink, checks, ...rest }: z.infer<
    typeof Declaration
  >,
  report: (message: string, ...place: PropertyKey[]) => void,
): TableDeclaration {
  if (columns && Object.keys(columns).length === 0) {
    report(
      "columns: is empty; leave the key out to load every column",
      "columns",
    );
  }
  const names = columns && Object.keys(columns);
  const reportColumns = (
    list: readonly string[] | undefined,
    ...place: PropertyKey[]
  ) => {
    for (const [index, column] of list?.entries() ?? []) {
      const mistake = list!.indexOf(column) < index
        ? "is named twice"
        : names && !names.includes(column)
        ? `is not a column of the table${suggest(column, names)}`
        : undefined;
      if (!mistake) continue;
      report(
        `${String(place.at(-1))}: ${JSON.stringify(column)} ${mistake}`,
        ...place,
        index,
      );
    }
  };
  reportColumns(rest.key, "key");
  for (const [index, check] of checks?.entries() ?? []) {
    if (Object.keys(check).length !== 1) {
      report(
        "a check must have exactly one of not_null, unique and sql",
        "checks",
        index,
      );
    }
    for (const kind of ["not_null", "unique"] as const) {
      reportColumns(check[kind], "checks", index, kind);
    }
  }
  return {
    name: rest.target.name,
    ...rest,
    columns: columns &&
      Object.entries(columns).map(([name, column]) => {
        try {
          checkedIdentifier(name);
        } catch (error) {
          report(
            `${JSON.stringify(name)} ${(error as Error).message}`,
            "columns",
            name,
          );
        }
        return "base" in column ? { name, type: column } : { name, ...column };
      }),
    ...(columns ? {} : { newColumns: new_columns ?? NEW_COLUMNS[0] }),
    ...(max_shrink === undefined ? {} : { maxShrink: max_shrink }),
    ...(checks ? { checks: checks.map(checkOf) } : {}),
  };
}

/** Returns the check. It has one key. */
function checkOf(
  { not_null, unique, sql }: z.infer<typeof Check>,
): TableCheck {
  if (sql !== undefined) return { kind: "sql", sql };
  return not_null
    ? { kind: "not_null", columns: not_null }
    : { kind: "unique", columns: unique! };
}

/** Reports names and targets that two declarations share. */
function reportDoubles(
  tables: readonly TableDeclaration[],
  report: (index: number, message: string) => void,
): void {
  const names = new Set<string>();
  const targets = new Set<string>();
  for (const [index, { name, target }] of tables.entries()) {
    const shown = formatRelation(target);
    if (targets.has(shown)) {
      report(index, `two tables have the target ${shown}: remove one of them`);
    } else if (names.has(name)) {
      report(
        index,
        `two tables have the name ${name}: give one of them another name with the key name`,
      );
    }
    names.add(name);
    targets.add(shown);
  }
}
