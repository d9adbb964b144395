import {
  assert,
  assertEquals,
  assertMatch,
  assertStringIncludes,
} from "@std/assert";
import { findInstalledPostgres } from "../../demo/postgres.ts";
import { startPostgres } from "../support/own_server.ts";
import {
  createDatabases,
  type Databases,
  type Sql,
} from "../support/databases.ts";
import { runJson, runProgram } from "../support/program_here.ts";
import { writeTablesFile } from "../support/tables_file.ts";

/** Types that are not those without the words or quotes: texts and bits of any length, and intervals of some fields. */
const FORMS = [
  '"bit"',
  '"bit"[]',
  "bpchar",
  "bpchar[]",
  "interval day to second(2)",
  "interval year to month",
];

/** Values in which equal texts, hashes or operators hide different bytes, by type. */
const VALUES: Readonly<Record<string, readonly string[]>> = {
  '"char"': ["a", "\\377"],
  '"bit"': ["101", "1", ""],
  bit: ["1", "0"],
  "bit varying": ["10", "100", ""],
  boolean: ["t", "f"],
  box: ["(1,1),(0,0)", "(2,2),(0,0)"],
  bpchar: ["ab  ", "ab", ""],
  "bpchar[]": ["{abc}", "{NULL,a}"],
  bytea: ["\\x00ff00", "\\x", "\\x00"],
  character: ["a", " "],
  "character varying": ["a", "a ", ""],
  cidr: ["10.0.0.0/8", "::/0"],
  circle: ["<(0,0),1>", "<(0,0),2>"],
  date: ["infinity", "-infinity", "4713-01-01 BC", "5874897-12-31"],
  datemultirange: ["{}", "{[2020-01-01,2020-02-01),[2021-01-01,)}"],
  daterange: ["empty", "[2020-01-01,)"],
  "double precision": ["0", "-0", "NaN", "Infinity", "5e-324", "0.1"],
  inet: ["10.0.0.1/8", "10.0.0.1", "::1"],
  integer: ["0", "-2147483648", "2147483647"],
  bigint: ["0", "-9223372036854775808", "9223372036854775807"],
  int2vector: ["", "1 2"],
  "integer[]": ["{}", "{1,NULL}", "{{1,2},{3,4}}", "[0:1]={1,2}"],
  interval: ["1 mon", "30 days", "720:00", "-178000000 years"],
  "interval day to second(2)": ["1 day 0.25", "1 day 0.24"],
  "interval year to month": ["1 year 1 month", "1 year"],
  json: ['{"a": 1}', '{"a":1}', '{"b":1,"a":1}', "null"],
  jsonb: ['{"a": 1}', '{"a": 1.0}', '"\\u0001"', "null"],
  jsonpath: ["$.a", "$.b"],
  macaddr: ["00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff"],
  macaddr8: ["00:00:00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff:ff:ff"],
  money: ["0", "-92233720368547758.08"],
  name: ["a", "A"],
  numeric: ["1.0", "1.00", "NaN", "1e400", "0.000", "-0.1", "1e-400"],
  "numeric[]": ["{1.0}", "{1.00}"],
  numrange: ["[1.0,2)", "[1.00,2)"],
  oid: ["0", "4294967295"],
  oidvector: ["", "1 2"],
  path: ["((0,0),(1,1))", "[(0,0),(1,1)]"],
  pg_lsn: ["0/0", "FFFFFFFF/FFFFFFFF"],
  point: ["(0,0)", "(-0,0)", "(NaN,Infinity)"],
  polygon: ["((0,0),(1,1),(1,0))", "((0,0),(1,1))"],
  real: ["0", "-0", "1e-45", "3.4028235e38"],
  smallint: ["-32768", "32767"],
  text: ["", " ", "é", "\u00e9", "e\u0301", "\\N", "a\tb\nc\\", "🚀"],
  "text[]": ['{""}', "{NULL}", '{"NULL"}', '{"a,b","c\\"d"}'],
  tid: ["(0,1)", "(4294967295,65535)"],
  "time without time zone": ["00:00", "24:00"],
  "time with time zone": ["12:00+00", "13:00+01"],
  "timestamp without time zone": ["infinity", "4713-01-01 BC"],
  "timestamp with time zone": ["-infinity", "294276-12-31 23:59:59.999999+00"],
  tsquery: ["'a' & 'b'", "!'a'", ""],
  "tsquery[]": ['{""}', "{'a'}"],
  tsvector: ["'a':1 'b':2", "'a':1A"],
  uuid: [
    "00000000-0000-0000-0000-000000000000",
    "ffffffff-ffff-ffff-ffff-ffffffffffff",
  ],
  xml: ["<a/>", "<a></a>"],
};

/** Types with a text form that no server accepts, or whose values mean something on one server only. */
const REFUSED =
  /^(aclitem|gtsvector|pg_(brin_.*|dependencies|mcv_list|ndistinct|node_tree)|reg\w+)(\[\])?$/;

/** Types with an empty value that no server accepts in binary. A table that has one is copied as text. */
const COPIED_AS_TEXT = /^(tsquery|oidvector|int2vector)(\[\])?$/;

/** Returns the types of PostgreSQL that a column can have. */
async function columnTypes(source: Sql): Promise<string[]> {
  const rows = await source.unsafe(
    `select pg_catalog.format_type(t.oid, null) as name from pg_catalog.pg_type t
     where typnamespace = 'pg_catalog'::regnamespace and typtype in ('b', 'r', 'm')
       and t.oid < 10000 and not exists (
         select from pg_catalog.pg_type e where e.oid = t.typelem and e.typtype not in ('b', 'r', 'm'))
     order by 1`,
  );
  return rows.map(({ name }) => name);
}

/** Returns the bytes that binary COPY sends, in hexadecimal digits, row by row. */
async function bytesOf(
  sql: Sql,
  table: string,
  columns: readonly string[],
): Promise<string[]> {
  const rows = await sql.unsafe(
    `select id, ${
      columns.map((name) =>
        `substr(record_send(row("${name}")), 9)::text as "${name}"`
      )
    } from ${table} order by id`,
  );
  return rows.map((row) => JSON.stringify({ ...row }));
}

async function grant(db: Databases, schema: string): Promise<void> {
  await db.source.unsafe(
    `grant usage on schema ${schema} to "${db.reader}";
     grant select on all tables in schema ${schema} to "${db.reader}"`,
  );
}

/** Loads a table with a column of every type, in binary and as text, and checks it to the byte. */
async function testEveryType(
  t: Deno.TestContext,
  db: Databases,
): Promise<void> {
  const all = await columnTypes(db.source);
  const types = [...FORMS, ...all.filter((name) => !REFUSED.test(name))];
  const binary = types.filter((name) => !COPIED_AS_TEXT.test(name));
  assert(binary.length > 100, binary.join());
  await db.source.unsafe("create schema ty");
  await testTypes(t, db, "binary", binary);
  await testTypes(t, db, "text", types);
  const vectors = types.filter((name) => /^(oid|int2)vector/.test(name));
  await testTypes(t, db, "vectors", vectors);
}

/** Loads a table with a column of each type into `raw.<name>`, and checks it to the byte. */
async function testTypes(
  t: Deno.TestContext,
  db: Databases,
  name: string,
  types: readonly string[],
): Promise<void> {
  const table = `ty.${name}`;
  const column = (index: number) => `c${index}`;
  const rows = Math.max(...Object.values(VALUES).map((v) => v.length)) + 1;
  await db.source.unsafe(
    `create table ${table} (id int, ${
      types.map((type, i) => `${column(i)} ${type}`)
    })`,
  );
  const literalOf = (type: string, row: number) => {
    const value = VALUES[type]?.[row];
    return value === undefined ? "null" : `$v$${value}$v$`;
  };
  for (let row = 0; row < rows; row++) {
    await db.source.unsafe(
      `insert into ${table} values (${row}, ${
        types.map((type) => literalOf(type, row))
      })`,
    );
  }
  // A load in which most rows differ copies all rows.
  await db.source.unsafe(
    `insert into ${table} (id) select generate_series(2000, 3000)`,
  );
  await grant(db, "ty");
  await using file = await writeTablesFile(
    `tables:\n  - { source: ${table}, target: raw.${name} }\n`,
  );
  const environment = { ...db.environment, ...file.variables };
  const names = types.map((_, i) => column(i));
  const load = async () => {
    const { code, json, stderr } = await runJson(["load"], environment);
    assertEquals(code, 0, stderr);
    assertEquals(
      await bytesOf(db.warehouse, `raw.${name}`, names),
      await bytesOf(db.source, table, names),
    );
    return json.results.results[0];
  };

  await t.step(`${name}: the first load`, async () => {
    assertEquals((await load()).mode, "full");
  });
  await t.step(`${name}: the second load writes nothing`, async () => {
    assertEquals((await load()).mode, "unchanged");
  });
  await t.step(`${name}: a changed value of each type is found`, async () => {
    // Each row differs in one column only.
    const tried = [...types.entries()].filter(([, type]) => VALUES[type]);
    assertEquals(
      tried.length,
      Object.keys(VALUES).filter((type) => types.includes(type)).length,
    );
    for (const [index, type] of tried) {
      await db.source.unsafe(
        `insert into ${table} (id, ${column(index)})
         values (${1000 + index}, ${literalOf(type, 0)})`,
      );
    }
    await load();
    for (const [index, type] of tried) {
      await db.source.unsafe(
        `update ${table} set ${column(index)} = ${literalOf(type, 1)}
         where id = ${1000 + index}`,
      );
    }
    const { mode, rows_inserted, rows_deleted } = await load();
    assertEquals([mode, rows_inserted, rows_deleted], [
      "delta",
      tried.length,
      tried.length,
    ]);
  });
}

Deno.test("load copies every type of PostgreSQL to the byte, and finds each change", async (t) => {
  await using db = await createDatabases({ withoutTables: true });
  await testEveryType(t, db);
});

/** Loads values that only PostgreSQL 17 has. An older warehouse reads infinite intervals as finite ones. */
async function testNewValues(
  t: Deno.TestContext,
  db: Databases,
): Promise<void> {
  const isNew = async (sql: Sql) => {
    const [row] = await sql.unsafe(
      "select current_setting('server_version_num')::int >= 170000 as yes",
    );
    return row!.yes;
  };
  if (!await isNew(db.source) || await isNew(db.warehouse)) return;
  await t.step(
    "an infinite interval and a new path are refused where the warehouse has none",
    async () => {
      await db.source.unsafe(
        `create table ty.span (a interval); insert into ty.span values ('infinity'), ('1 day');
         create table ty.path (a jsonpath); insert into ty.path values ('$.a.bigint()');
         create table ty.spans (a interval[]); insert into ty.spans values ('{infinity}');
         create type ty.stay as (a interval); create table ty.stays (a ty.stay);
         insert into ty.stays values ('(-infinity)')`,
      );
      await db.warehouse.unsafe(
        `create schema if not exists ty; create type ty.stay as (a interval);
         grant usage on schema ty to public`,
      );
      await grant(db, "ty");
      await using file = await writeTablesFile(
        `tables:\n${
          ["span", "path", "spans", "stays"].map((name) =>
            `  - { source: ty.${name}, target: raw.${name} }\n`
          ).join("")
        }`,
      );
      const { json } = await runJson(["load"], {
        ...db.environment,
        ...file.variables,
      });
      const [span, path, ...inside] = json.details.results;
      assertEquals(span.code, "verification_failed");
      assertStringIncludes(
        span.error,
        'Correct the infinite intervals of "a" in the source.',
      );
      assertEquals(path.code, "value_invalid");
      assertStringIncludes(path.error, "Declare the column as text");
      for (const entry of inside) {
        assertEquals(entry.code, "value_invalid");
        assertStringIncludes(entry.error, 'type interval: "');
      }
    },
  );
}

const installed = findInstalledPostgres();
for (const direction of ["to", "from"]) {
  const name =
    `load copies every type ${direction} an installed PostgreSQL to the byte`;
  Deno.test({
    name: installed
      ? name
      : `SKIPPED, install the Debian package postgresql: ${name}`,
    ignore: !installed,
    async fn(t) {
      await using other = await startPostgres({ binDirectory: installed! });
      const given = Deno.env.get("TEST_DATABASE_URL")!;
      await using db = await createDatabases({
        withoutTables: true,
        servers: direction === "to"
          ? { source: given, warehouse: other.url() }
          : { source: other.url(), warehouse: given },
      });
      await testEveryType(t, db);
      if (direction === "to") await testNewValues(t, db);
    },
  });
}

Deno.test("load refuses types whose values no other server accepts", async () => {
  await using db = await createDatabases({ withoutTables: true });
  await db.source.unsafe(
    `create schema ty; create type ty.grants as (a int, grants aclitem[]);
     create type ty.place as (a regclass); create domain ty.places as ty.place[]`,
  );
  const refused = [
    ...(await columnTypes(db.source)).filter((name) => REFUSED.test(name)),
    "ty.grants",
    "ty.place",
    "ty.places",
  ];
  for (const [index, type] of refused.entries()) {
    await db.source.unsafe(`create table ty.t${index} (a ${type})`);
  }
  await grant(db, "ty");
  await using file = await writeTablesFile(
    `tables:\n${
      refused.map((_, i) => `  - { source: ty.t${i}, target: raw.t${i} }\n`)
        .join("")
    }`,
  );
  const { json } = await runJson(["load"], {
    ...db.environment,
    ...file.variables,
  });
  for (const [index, type] of refused.entries()) {
    const entry = json.details.results[index];
    assertEquals(
      [type, entry.code],
      [type, "source_column_incompatible"],
      entry.error,
    );
  }
});

Deno.test("load copies types of users, whose OIDs differ between the servers", async (t) => {
  await using db = await createDatabases({ withoutTables: true });
  const types = (labels: string) =>
    `create schema ty;
     create type ty.mood as enum (${labels});
     create domain ty.email as text check (value like '%@%');
     create type ty.plain as (a int, b text);
     create type ty.nested as (m ty.mood, p ty.plain, l ty.email);
     create type ty.span as range (subtype = float8)`;
  await db.warehouse.unsafe(
    `create table shift_oids (a int); ${types("'sad', 'ok', 'happy'")}`,
  );
  await db.source.unsafe(
    `${types("'happy', 'sad', 'ok'")};
     create table ty.t (id int, mood ty.mood, moods ty.mood[], email ty.email, plain ty.plain,
       plains ty.plain[], nested ty.nested, span ty.span, spans ty.span[]);
     insert into ty.t values
       (1, 'happy', '{happy,null,sad}', 'a@b', '(1,)', '{"(1,x)",null}', '(ok,"(2,\\"a,b\\")",c@d)', '[0,1]', '{empty,"[1,)"}'),
       (2, null, '{}', null, '(,)', '{}', '(,,)', null, null),
       (3, 'sad', null, '@', null, null, null, 'empty', '{}')`,
  );
  await db.warehouse.unsafe(
    `grant usage on schema ty to "${db.loader}"`,
  );
  await grant(db, "ty");
  await using file = await writeTablesFile(
    "tables:\n  - { source: ty.t, target: raw.t }\n",
  );
  const environment = { ...db.environment, ...file.variables };
  const texts = async (sql: Sql, table: string) =>
    (await sql.unsafe(
      `select id, mood::text, moods::text, email::text, plain::text, plains::text,
         nested::text, span::text, spans::text from ${table} order by id`,
    )).map((row) => ({ ...row }));
  const load = async (mode: string) => {
    const { code, json, stderr } = await runJson(["load"], environment);
    assertEquals(code, 0, stderr);
    assertEquals(json.results.results[0].mode, mode);
    assertEquals(
      await texts(db.warehouse, "raw.t"),
      await texts(db.source, "ty.t"),
    );
  };

  await t.step("the first load", () => load("full"));
  await t.step("the second load writes nothing", () => load("unchanged"));
  for (
    const [column, value] of [
      ["mood", "ok"],
      ["moods", "{sad}"],
      ["email", "x@y"],
      ["plain", '(1,"")'],
      ["plains", '{"(1,y)"}'],
      ["nested", '(happy,"(3,)",)'],
      ["span", "[0,2]"],
      ["spans", "{}"],
    ]
  ) {
    await t.step(`a changed ${column} is found`, async () => {
      await db.source.unsafe(
        `update ty.t set ${column} = $v$${value}$v$ where id = 1`,
      );
      await load("delta");
    });
  }
  await t.step(
    "a domain that is declared as the type of its column is refused with its base type",
    async () => {
      await using declared = await writeTablesFile(
        "tables:\n  - { source: ty.t, target: raw.mail, columns: { email: ty.email } }\n",
      );
      const { json } = await runJson(["load"], {
        ...environment,
        ...declared.variables,
      });
      assertStringIncludes(
        json.details.results[0].error,
        "Declare the type text in TABLES_FILE, also where ty.email is a domain.",
      );
    },
  );
  await t.step("a type that the warehouse lacks is named", async () => {
    await db.source.unsafe(
      `create type ty.only_here as enum ('a'); create table ty.u (a ty.only_here);
       create table ty.blank (a ty.plain); insert into ty.blank values ('(,)'), (null)`,
    );
    await grant(db, "ty");
    await using other = await writeTablesFile(
      "tables:\n  - { source: ty.u, target: raw.u }\n",
    );
    for (const words of [["load", "--dry-run"], ["load"]]) {
      const { code, stdout, stderr } = await runProgram(words, {
        ...environment,
        ...other.variables,
      });
      assertEquals(code, 1);
      const told = stdout + stderr;
      assertMatch(told, /type ty\.only_here, which column "a" of raw\.u needs/);
      assertMatch(told, /CREATE TYPE or CREATE EXTENSION/);
    }
    await using asText = await writeTablesFile(
      `tables:
  - { source: ty.u, target: raw.u, columns: { a: text } }
  - { source: ty.blank, target: raw.blank, columns: { a: text } }
`,
    );
    const loaded = await runProgram(["load"], {
      ...environment,
      ...asText.variables,
    });
    assertEquals(loaded.code, 0, loaded.stderr);
  });
  await t.step(
    "what the warehouse refuses is named with a remedy",
    async () => {
      await db.source.unsafe(
        `create type ty.wide as (a int, b int);
       create table ty.refused (a ty.wide); insert into ty.refused values ('(1,2)');
       create type ty.other as enum ('a');
       create table ty.short (a ty.other); insert into ty.short values ('a');
       create type ty.pair as (a int, b int); create domain ty.pairs as ty.pair[];
       create type ty.house as (p ty.pairs);
       create table ty.moved (a ty.house[]); insert into ty.moved values (array[row(array[row(1, 2)::ty.pair])::ty.house]);
       create type ty.bound as range (subtype = float8);
       create table ty.bounded (a ty.bound); insert into ty.bounded values ('[1,2]');
       create type ty.words as range (subtype = text, collation = "C");
       create table ty.sorted (a ty.words); insert into ty.sorted values ('[B,a]');
       create type ty.level as enum ('low', 'high');
       create table ty.levels (a ty.level); insert into ty.levels values ('high');
       create view ty.named as select 1 as ctid;
       create table ty.sent (a int, b int); insert into ty.sent values (1, 2)`,
      );
      await db.warehouse.unsafe(
        `create type ty.wide as (a int); create type ty.other as (a int);
       create type ty.pair as (b int, a int); create domain ty.pairs as ty.pair[];
       create type ty.house as (p ty.pairs);
       create type ty.bound as range (subtype = int8);
       create type ty.words as range (subtype = text, collation = "und-x-icu"); create type ty.level as enum ('low');
       create table raw.sent (a int primary key, b int); insert into raw.sent values (1, 3);
       alter table raw.sent owner to "${db.loader}";
       create publication sent for table raw.sent where (b > 0)`,
      );
      await grant(db, "ty");
      const names = [
        "refused",
        "moved",
        "short",
        "bounded",
        "sorted",
        "levels",
        "named",
        "sent",
      ];
      await using files = await writeTablesFile(
        `tables:\n${
          names.map((name) =>
            `  - { source: ty.${name}, target: raw.${name} }\n`
          ).join("")
        }`,
      );
      const variables = { ...db.environment, ...files.variables };
      const dry = await runJson(["load", "--dry-run"], variables);
      const { json } = await runJson(["load"], variables);
      const remedies = [
        /contains \(a integer\) in the warehouse, and \(a integer, b integer\) in the source\. Give the user-defined type/,
        /contains \(p, p\.b integer, p\.a integer\) in the warehouse, and \(p, p\.a integer, p\.b integer\)/,
        /Give the user-defined type the same definition on both servers/,
        /contains \(bigint\) in the warehouse, and \(double precision\) in the source/,
        /range lower bound must be less .* Give the user-defined type the same definition/,
        /invalid input value for enum .* Add the label in the warehouse/,
        /Declare the column under another name/,
        /Change the publication or the replica identity/,
      ];
      for (const [index, entry] of json.details.results.entries()) {
        assertEquals(entry.code, "target_incompatible", entry.error);
        assertMatch(entry.error, remedies[index]!);
        if (!entry.error.includes(" contains (")) continue;
        assertEquals(dry.json.tables[index].error, entry.error);
      }
    },
  );
  await t.step(
    "types that change values in the warehouse are named with a remedy",
    async () => {
      await db.source.unsafe(
        `create type ty.price as (a numeric(4,2));
       create table ty.rounded (b ty.price); insert into ty.rounded values ('(1.25)');
       create type ty.steps as range (subtype = int4);
       create table ty.canonical (id int, b ty.steps[]); insert into ty.canonical values (1, '{"[1,2]"}')`,
      );
      await db.warehouse.unsafe(
        `create type ty.price as (a numeric(4,1)); create type ty.steps;
       create function ty.canonical(ty.steps) returns ty.steps immutable strict language internal as 'int4range_canonical';
       create type ty.steps as range (subtype = int4, canonical = ty.canonical)`,
      );
      await grant(db, "ty");
      await using files = await writeTablesFile(
        `tables:
  - { source: ty.rounded, target: raw.rounded }
  - { source: ty.canonical, target: raw.canonical }
`,
      );
      const { json } = await runJson(["load"], {
        ...db.environment,
        ...files.variables,
      });
      for (const entry of json.details.results) {
        assertEquals(entry.code, "verification_failed", entry.error);
        assertStringIncludes(
          entry.error,
          'Give the user-defined types of "b" the same definition on both servers',
        );
      }
    },
  );
});

Deno.test("load copies values in formats that no setting of a role changes", async () => {
  await using db = await createDatabases({ withoutTables: true });
  await db.source.unsafe(
    `create schema ty; create type ty.mood as enum ('sad');
     create table ty.t (i interval, b bytea, x xml, m money);
     insert into ty.t values ('-1 day -02:03:04', '\\x00ff', 'a<b/>c', 1234.5), ('1 mon -1 day', null, '<d/>', -1);
     create table ty.as_text as select *, '{sad,null}'::ty.mood[] from ty.t;
     grant usage on schema ty to "${db.reader}"; grant select on ty.t, ty.as_text to "${db.reader}";
     alter role "${db.reader}" set intervalstyle = sql_standard;
     alter role "${db.reader}" set bytea_output = escape`,
  );
  await db.warehouse.unsafe(
    `create schema ty; create type ty.mood as enum ('sad'); grant usage on schema ty to "${db.loader}";
     alter role "${db.loader}" set array_nulls = off;
     alter role "${db.loader}" set xmloption = document;
     alter role "${db.loader}" set intervalstyle = iso_8601`,
  );
  await using file = await writeTablesFile(
    "tables:\n  - { source: ty.t, target: ty_data.t }\n  - { source: ty.as_text, target: ty_data.as_text }\n",
  );
  const { code, stderr } = await runJson(["load"], {
    ...db.environment,
    ...file.variables,
  });
  assertEquals(code, 0, stderr);
  for (const table of ["t", "as_text"]) {
    const rows = (sql: Databases["source"], schema: string) =>
      sql.unsafe(`select t::text from ${schema}.${table} t order by 1`);
    assertEquals(
      [...await rows(db.warehouse, "ty_data")],
      [...await rows(db.source, "ty")],
    );
  }
});
