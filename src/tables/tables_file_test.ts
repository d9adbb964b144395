import { assertEquals, assertMatch } from "@std/assert";
import { formatCheck } from "./declaration.ts";
import { parseTablesFile } from "./tables_file.ts";

Deno.test("parseTablesFile() returns the declared tables", () => {
  const { tables, problems } = parseTablesFile(
    "tables.yaml",
    `tables:
  - source: ecommerce.customers
    target: ec_data."Order"
    group: ecommerce
    columns:
      customer_id: text
      zip: { type: int, from: customer_zip }
      city: { type: varchar(20), expression: "upper(city)" }
    where: "city <> ';'"
    key: [customer_id, zip]
    max_shrink: 0.25
    checks:
      - not_null: [customer_id, zip]
      - unique: [customer_id]
      - sql: |
          select count(*) > 0
          from ec_data."Order"
  - source: CRM.Accounts
    target: raw.accounts
    name: crm accounts
`,
  );
  assertEquals(problems, []);
  assertEquals(tables.map(({ name }) => name), ["Order", "crm accounts"]);
  assertEquals(tables[0]!.columns!.map(({ type }) => type.base), [
    "text",
    "integer",
    "character varying",
  ]);
  assertEquals(tables[0]!.maxShrink, 0.25);
  assertEquals(tables[0]!.checks!.map(formatCheck), [
    "not_null (customer_id, zip)",
    "unique (customer_id)",
    'sql (select count(*) > 0 from ec_data."Order")',
  ]);
  assertEquals(tables[1]!.source, { schema: "crm", name: "accounts" });
  assertEquals(tables[1]!.columns, undefined);
  assertEquals(tables.map(({ key }) => key), [
    ["customer_id", "zip"],
    undefined,
  ]);
});

Deno.test("parseTablesFile() reports all mistakes with line and column", () => {
  const { problems } = parseTablesFile(
    "tables.yaml",
    `tables:
  - source: customers
    target: ec_data.customer
    colums: {}
  - target: a.b
    columns:
      x: te xt
      y: { typ: text }
      z: { type: text, from: a, expression: b }
      w: { type: text, expression: "1; drop table x" }
  - source: a.b
    target: a.c
    max_shrink: 1.5
    name: "a,b"
    checks:
      - uniqe: [id]
      - { unique: [id], not_null: [] }
      - sql: "select true; drop table a.c"
      - sql: min(x) > 0
`,
  );
  const expected = [
    /^tables\.yaml:2:13: source: "customers" is not a table with its schema/,
    /^tables\.yaml:4:5: unknown key "colums"; did you mean columns\?; allowed are source, target/,
    /^tables\.yaml:5:5: source: /,
    /^tables\.yaml:7:10: x: "te xt" is not the name of a type/,
    /^tables\.yaml:8:10: type: /,
    /^tables\.yaml:8:12: unknown key "typ"; did you mean type\?/,
    /^tables\.yaml:9:10: z: has both from and expression/,
    /^tables\.yaml:10:36: expression: .*semicolon/,
    /^tables\.yaml:13:17: max_shrink: must be at most 1, not 1\.5$/,
    /^tables\.yaml:14:11: name: "a,b" must be a name without commas/,
    /^tables\.yaml:16:9: unknown key "uniqe"; did you mean unique\?; allowed are not_null, unique, sql/,
    /^tables\.yaml:17:35: not_null: /,
    /^tables\.yaml:18:14: sql: .* is not one SQL query: it contains a semicolon/,
    /^tables\.yaml:19:14: sql: .* does not begin with SELECT/,
  ];
  assertEquals(problems.length, expected.length, problems.join("\n"));
  // In the order of the file.
  for (const [index, pattern] of expected.entries()) {
    assertMatch(problems[index]!, pattern);
  }
});

Deno.test("parseTablesFile() names missing keys and wrong types in words", () => {
  const text = `tables:
  - { source: a.b, target: 3, key: id, new_columns: ad }
  - { target: a.b, columns: { c: {} }, checks: [{ sql: null }] }
  - 3
`;
  const { problems } = parseTablesFile("t", text);
  assertEquals(problems.map((problem) => problem.replace(/^[^ ]+ /, "")), [
    "target: must be text, not a number",
    "key: must be a list, not text",
    "new_columns: must be one of ignore, add, fail",
    "source: is missing and must be text",
    "type: is missing and must be text",
    "sql: must be text, not empty",
    "must be a map, not a number",
  ]);
});

Deno.test("parseTablesFile() reports the mistakes of a key with line and column", () => {
  const { problems } = parseTablesFile(
    "t",
    `tables:
  - { source: a.b, target: a.c, columns: { code: text }, key: [coed, code, code] }
  - { source: a.b, target: a.d, key: [x, x] }
`,
  );
  assertEquals(problems, [
    't:2:64: key: "coed" is not a column of the table; did you mean code?',
    't:2:76: key: "code" is named twice',
    't:3:42: key: "x" is named twice',
  ]);
  const malformed = parseTablesFile(
    "t",
    `tables:
  - { source: a.b, target: a.c, key: [] }
  - { source: a.b, target: a.d, key: id }
  - { source: a.b, target: a.e, key: [1, ""] }
`,
  );
  assertEquals(malformed.problems.map((line) => line.slice(0, 11)), [
    "t:2:38: key",
    "t:3:38: key",
    "t:4:39: mus",
    't:4:42: "" ',
  ]);
});

Deno.test("parseTablesFile() refuses a file that is not YAML, is empty or has doubles", () => {
  const first = (text: string) => parseTablesFile("t", text).problems[0]!;
  assertMatch(first("tables: [\n"), /^t:\d+:\d+: /);
  assertMatch(first(""), /^t:1:1: the file is empty/);
  assertMatch(first("just text"), /^t:1:1: /);
  assertMatch(first("tables: []"), /^t:1:9: tables: /);
  assertMatch(first('{"tables": 5}'), /^t:1:12: tables: /);
  const table = "  - source: a.b\n    target: a.c\n";
  assertMatch(
    first(`tables:\n${table}${table}`),
    /^t:4:5: two tables have the target a\.c/,
  );
  assertMatch(
    first(`tables:\n${table}${table.replace("a.c", "d.c")}`),
    /^t:4:5: two tables have the name c/,
  );
  assertMatch(
    first("tables:\n  - source: a.b\n    target: marketing_data_service.run\n"),
    /^t:3:13: target: .* reserved schema marketing_data_service/,
  );
  const check = `${table}    columns: { id: int }\n    checks:\n`;
  assertMatch(
    first(`tables:\n${check}      - unique: [id, di]\n`),
    /^t:6:22: unique: "di" is not a column of the table; did you mean id\?/,
  );
  assertMatch(
    first(`tables:\n${check}      - { unique: [id], sql: select true }\n`),
    /^t:6:9: a check must have exactly one of/,
  );
  assertMatch(
    first(`tables:\n  - source: a.${"x".repeat(64)}\n    target: a.c\n`),
    /64 bytes/,
  );
  assertMatch(
    first(`tables:\n${table}---\ntables: []\n`),
    /^t:4:1: the file has more than one YAML document/,
  );
  assertMatch(
    first(`tables:\n${table}    columns: { id: int, __proto__: text }\n`),
    /^t:4:25: the name "__proto__" is not supported/,
  );
});

Deno.test("README.md and docs/tables.md show valid files", async () => {
  for (const name of ["README.md", "docs/tables.md"]) {
    const page = await Deno.readTextFile(
      new URL(`../../${name}`, import.meta.url),
    );
    const [example] = /(?<=```yaml\n)[\s\S]*?(?=```)/.exec(page)!;
    const { tables, problems } = parseTablesFile(name, example);
    assertEquals(problems, []);
    assertEquals(tables.length, 2);
  }
});
