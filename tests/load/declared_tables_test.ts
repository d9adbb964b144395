import {
  assert,
  assertEquals,
  assertMatch,
  assertStringIncludes,
} from "@std/assert";
import {
  createDatabases,
  type Databases,
  migratedDatabases,
} from "../support/databases.ts";
import { parseTablesFile } from "../../src/tables/tables_file.ts";
import { runJson, runProgram } from "../support/program_here.ts";
import { startProgram } from "../support/program.ts";
import { startServer } from "../support/server.ts";
import { writeTablesFile } from "../support/tables_file.ts";

/** Creates tables of schema `ec` in the source, and lets the program read them. */
async function createSource(db: Databases, sql: string): Promise<void> {
  await db.source.unsafe(
    `create schema ec; ${sql};
     grant usage on schema ec to "${db.reader}";
     grant select on all tables in schema ec to "${db.reader}"`,
  );
}

Deno.test("load renames, casts and computes declared columns, and leaves rows out", async (t) => {
  await using db = await migratedDatabases({ withoutTables: true });
  await createSource(
    db,
    `create table ec.geo (geo_zip text, geo_lat numeric, city text, deleted boolean);
     insert into ec.geo
       select i::text, i / 7.0, 'a;b' || i, i % 10 = 0 from generate_series(1, 5000) i;
     insert into ec.geo select * from ec.geo where geo_zip < '2'`,
  );
  await using file = await writeTablesFile(`tables:
  - source: ec.geo
    target: ec_data.geolocation
    columns:
      zip: { type: text, from: geo_zip }
      latitude: { type: double precision, from: geo_lat }
      city: { type: text, expression: "regexp_replace(city, ';', '.')" }
    where: "not deleted"
`);
  const environment = { ...db.environment, ...file.variables };
  const expected = async () =>
    (await db.source.unsafe(
      `select geo_zip as zip, geo_lat::float8 as latitude, replace(city, ';', '.') as city
       from ec.geo where not deleted order by 1, 2`,
    )).map((row) => ({ ...row }));
  const loaded = async () =>
    (await db.warehouse.unsafe(
      `select * from ec_data.geolocation order by zip, latitude`,
    )).map((row) => ({ ...row }));
  const load = async (mode: string) => {
    const { code, json, stderr } = await runJson(["load"], environment);
    assertEquals(code, 0, stderr);
    const [result] = json.results.results;
    assertEquals([result.table, result.mode], ["geolocation", mode]);
    assertEquals(await loaded(), await expected());
    return result;
  };

  await t.step("the first load copies every row", async () => {
    const { warnings } = await load("full");
    assertMatch(warnings.join(), /"geo_lat" is numeric .* rounded/);
  });
  await t.step("the second load writes nothing", async () => {
    await load("unchanged");
  });
  await t.step(
    "a changed, a deleted and an excluded row are a delta",
    async () => {
      await db.source.unsafe(
        `update ec.geo set city = 'x;y' where geo_zip = '4321';
       delete from ec.geo where geo_zip = '777';
       update ec.geo set deleted = true where geo_zip = '3333'`,
      );
      const { rows_inserted, rows_deleted } = await load("delta");
      assertEquals([rows_inserted, rows_deleted], [1, 3]);
    },
  );
  await t.step("verify and --dry-run agree", async () => {
    assertEquals((await runProgram(["verify"], environment)).code, 0);
    await db.source.unsafe(
      `update ec.geo set geo_lat = 1 where geo_zip = '4321'`,
    );
    assertEquals((await runProgram(["verify"], environment)).code, 1);
    const { json } = await runJson(["load", "--dry-run"], environment);
    assertEquals(json.tables[0].rows_to_copy, 1);
  });
});

Deno.test("load copies every column of the source where none is declared", async () => {
  await using db = await migratedDatabases({ withoutTables: true });
  await createSource(
    db,
    `create table ec."Odd ""Name""" (id bigint, "a.b" varchar(5), "🚀" numeric(10,2)[], "select" timestamp(3));
     insert into ec."Odd ""Name""" values (1, 'x', '{1.10,null}', '2024-01-01 00:00:00.123')`,
  );
  await using file = await writeTablesFile(`tables:
  - source: 'ec."Odd ""Name"""'
    target: 'raw."Odd ""Name"""'
    name: odd
`);
  const environment = { ...db.environment, ...file.variables };
  const { code, stderr } = await runProgram(
    ["load", "--table", "odd"],
    environment,
  );
  assertEquals(code, 0, stderr);
  const types = await db.warehouse.unsafe(
    `select format_type(atttypid, atttypmod) as type from pg_attribute
     where attrelid = 'raw."Odd ""Name"""'::regclass and attnum > 0 order by attnum`,
  );
  assertEquals(types.map(({ type }) => type), [
    "bigint",
    "character varying(5)",
    "numeric(10,2)[]",
    "timestamp(3) without time zone",
  ]);
  assertEquals((await runProgram(["verify"], environment)).code, 0);
  const printed = await runProgram(["schema", "print"], environment);
  assertMatch(printed.stdout, /"🚀" numeric\(10,2\)\[\]/);
  await db.warehouse.unsafe(
    `create table raw.child () inherits (raw."Odd ""Name""")`,
  );
  const refused = await runJson(["load", "--table", "odd"], environment);
  assertEquals(refused.code, 1);
  assertStringIncludes(
    refused.json.error,
    'raw.child inherits from raw."Odd ""Name""" in the warehouse',
  );
  // The remedy is SQL, so the name must be quoted there, too.
  const [, sql] = /(ALTER TABLE .*;)/.exec(refused.json.error)!;
  await db.warehouse.unsafe(sql!);
  assertEquals((await runProgram(["load"], environment)).code, 0);
});

Deno.test("load reports each mistake of TABLES_FILE with its place, and exits with 78", async () => {
  await using file = await writeTablesFile(
    "tables:\n  - source: geo\n    target: a.b\n    wher: x\n",
  );
  const { code, stderr } = await runProgram(["load"], {
    ...file.variables,
    RETRY_ATTEMPTS: "x",
  });
  assertEquals(code, 78);
  assertMatch(stderr, /3 configuration mistakes/);
  assert(stderr.includes(`${file.path}:2:13: source: "geo" is not a table`));
  assert(stderr.includes(`${file.path}:4:5: unknown key "wher"`), stderr);
  const missing = await runProgram(["load"], { TABLES_FILE: "/nowhere.yaml" });
  assertEquals(missing.code, 78);
  assertMatch(missing.stderr, /TABLES_FILE="\/nowhere.yaml" cannot be read/);
});

Deno.test("load names the fragment that the source refuses or whose values change, and loads the other tables", async () => {
  await using db = await migratedDatabases({ withoutTables: true });
  await createSource(
    db,
    `create table ec.one (a int); create table ec.two (a int); create table ec.three (a int);
     create table ec.six (a int); create table ec.four as select 1 as a; create table ec.five as select a from generate_series(1, 1000) a`,
  );
  await using file = await writeTablesFile(`tables:
  - source: ec.one
    target: raw.one
    columns: { a: { type: int, expression: "b + 1" } }
  - source: ec.two
    target: raw.two
    where: "a"
  - source: ec.three
    target: raw.three
  - source: ec.six
    target: raw.six
    columns: { a: { type: bigint, expression: "count(*)" } }
  - source: ec.four
    target: raw.four
    columns: { a: { type: float8, expression: "random()" } }
  - source: ec.five
    target: raw.five
    where: "random() < 0.5"
`);
  const { code, json, stderr } = await runJson(["load"], {
    ...db.environment,
    ...file.variables,
  });
  assertEquals(code, 78, stderr);
  const [one, two, three, six, ...changing] = json.details.results;
  assertMatch(one.error, /expression of column "a": column "b" does not exist/);
  assertMatch(two.error, /where: argument of WHERE must be type boolean/);
  assertEquals([one.code, two.code, three.status], [
    "configuration",
    "configuration",
    "success",
  ]);
  assertEquals(six.code, "configuration");
  assertStringIncludes(six.remedy, "Put aggregate functions of an expression");
  for (const { code, remedy } of changing) {
    assertEquals(code, "verification_failed");
    assertStringIncludes(remedy, "`where` and `expression` in TABLES_FILE");
  }
});

Deno.test("--group and the body's group select the tables of a group", async () => {
  await using db = await migratedDatabases({ withoutTables: true });
  await createSource(
    db,
    "create table ec.one (a int); create table ec.two (a int); create table ec.three (a int)",
  );
  await using file = await writeTablesFile(`tables:
  - { source: ec.one, target: raw.one, group: first }
  - { source: ec.two, target: raw.two, group: first }
  - { source: ec.three, target: raw.three }
`);
  const environment = { ...db.environment, ...file.variables };
  const loaded = (event: { results: { results: { table: string }[] } }) =>
    event.results.results.map(({ table }) => table);
  const { code, json, stderr } = await runJson(
    ["load", "--group", "first"],
    environment,
  );
  assertEquals(code, 0, stderr);
  assertEquals(loaded(json), ["one", "two"]);
  const wrong = await runProgram(["verify", "--group", "frist"], environment);
  assertEquals(wrong.code, 64);
  assertMatch(
    wrong.stderr,
    /--group must be one of first, not "frist"; did you mean first\?/,
  );

  await using service = await startServer({ environment });
  const post = (body: unknown) =>
    service.json("/load", { method: "POST", body: JSON.stringify(body) });
  const answer = await post({ group: "first", tables: ["three"] });
  assertEquals(loaded(answer.body), ["one", "two", "three"]);
  const refused = await post({ group: "second" });
  assertEquals(refused.status, 400);
  assertMatch(
    refused.body.detail,
    /^group must be one of "first", not "second"\./,
  );
});

Deno.test("load treats new columns of the source as new_columns says", async (t) => {
  await using db = await migratedDatabases({ withoutTables: true });
  await createSource(
    db,
    `create table ec.ignored (id int, name text); insert into ec.ignored values (1, 'a');
     create table ec.added (id int, name text); insert into ec.added values (1, 'a');
     create table ec.failing (id int, name text); create table ec.keyed (id int, price int)`,
  );
  await using file = await writeTablesFile(`tables:
  - { source: ec.ignored, target: raw.ignored }
  - { source: ec.added, target: raw.added, new_columns: add }
  - { source: ec.failing, target: raw.failing, new_columns: fail }
  - { source: ec.keyed, target: raw.keyed, key: [price] }
`);
  const environment = { ...db.environment, ...file.variables };
  const load = async (table: string) => {
    const { code, json, stderr } = await runJson(
      ["load", "--table", table],
      environment,
    );
    const isFine = json.status === "success";
    assertEquals(isFine, !["failing", "keyed"].includes(table), stderr);
    assertEquals(code === 0, isFine, stderr);
    return (json.results ?? json.details).results[0];
  };
  const first = await runProgram(["load"], environment);
  assertEquals(first.code, 0, first.stderr);
  for (const table of ["ignored", "added", "failing"]) {
    await db.source.unsafe(
      `alter table ec.${table} add price numeric(10,2) default 1.50`,
    );
  }

  await t.step("ignore warns and loads the other columns", async () => {
    const { mode, warnings } = await load("ignored");
    assertEquals(mode, "unchanged");
    assertMatch(warnings.join(), /lacks columns of the source.*"price"/);
    assertEquals(
      (await runProgram(["verify", "--table", "ignored"], environment)).code,
      0,
    );
  });
  await t.step("fail names the columns", async () => {
    assertMatch(
      (await load("failing")).error,
      /columns that raw\.failing .* lacks: "price"/,
    );
  });
  await t.step("a key that one side lacks fails", async () => {
    await db.warehouse.unsafe("alter table raw.keyed drop column price");
    assertMatch((await load("keyed")).error, /raw\.keyed .* lacks: "price"/);
    await db.source.unsafe("alter table ec.keyed drop column price");
    const { code, error } = await load("keyed");
    assertEquals(code, "configuration");
    assertMatch(error, /column "price" of the key is missing in ec\.keyed/);
  });
  await t.step(
    "add leaves the columns out while a reader uses the target",
    async () => {
      await using reader = db.connect("warehouse");
      await reader.unsafe("begin");
      await reader.unsafe("select * from raw.added");
      const { warnings } = await load("added");
      assertMatch(warnings.join(), /"price" are not added/);
      await reader.unsafe("rollback");
    },
  );
  await t.step("add names the owner that can add the columns", async () => {
    const isRefused = ({ error, code }: { error: string; code: string }) => {
      assertEquals(code, "permission_denied");
      assertMatch(
        error,
        /only an owner can add columns: "price"\. Run ALTER TABLE "raw"\."added" OWNER TO/,
      );
    };
    await db.warehouse.unsafe(
      `alter table raw.added owner to postgres; grant all on raw.added to "${db.loader}"`,
    );
    const words = ["load", "--table", "added"];
    const loaded = await runJson(words, environment);
    isRefused(loaded.json.details.results[0]);
    const planned = await runJson([...words, "--dry-run"], environment);
    isRefused(planned.json.tables[0]);
    await db.warehouse.unsafe(
      `alter table raw.added owner to "${db.loader}"`,
    );
  });
  await t.step("add adds and fills the columns", async () => {
    const { warnings } = await load("added");
    assertMatch(warnings.join(), /added columns "price"/);
    const rows = await db.warehouse.unsafe(
      "select *, pg_typeof(price)::text as type from raw.added",
    );
    assertEquals({ ...rows[0] }, {
      id: 1,
      name: "a",
      price: "1.50",
      type: "numeric",
    });
    assertEquals((await load("added")).mode, "unchanged");
  });
});

Deno.test("load accepts its target again, however the declared type is spelled", async () => {
  await using db = await migratedDatabases({ withoutTables: true });
  await createSource(
    db,
    `create table ec.spelled (a numeric, b numeric, c varchar(5), d timestamp, e real, f interval);
     insert into ec.spelled values (1, 1, 'a', now(), 1, '1 day')`,
  );
  await using file = await writeTablesFile(`tables:
  - source: ec.spelled
    target: raw.spelled
    columns:
      a: numeric(10)
      b: decimal(010, 2)
      c: varchar(007)
      d: timestamp(03)
      e: float(1)
      f: interval(06)
`);
  const environment = { ...db.environment, ...file.variables };
  for (const mode of ["full", "unchanged"]) {
    const { json, stdout } = await runJson(["load"], environment);
    assertEquals(json.results?.results[0].mode, mode, stdout);
  }
});

Deno.test("schema discover prints a file that load accepts", async () => {
  await using db = await migratedDatabases({ withoutTables: true });
  await createSource(
    db,
    `create type ec.mood as enum ('ok'); create table ec.feeling (mood ec.mood);
     create table ec.plain (id bigint, name varchar(20), at timestamptz, object regclass primary key);
     create table ec."Odd: ""x"" #" ("no" int, "a: b" text[], "🚀" numeric(5,2), primary key ("🚀", "no"));
     create view ec.looking as select id from ec.plain;
     create table ec.parted (id int) partition by list (id);
     create table ec.part_1 partition of ec.parted for values in (1);
     create table ec.empty ();
     insert into ec.plain values (1, 'a', now(), 'pg_class'); insert into ec.parted values (1)`,
  );
  await db.source.unsafe(
    `create table ec.secret (id int); revoke all on ec.secret from public;
     create schema ec_2; grant usage on schema ec_2 to "${db.reader}";
     create table ec_2.plain (id int); grant select on ec_2.plain to "${db.reader}"`,
  );
  const found = await runProgram(
    ["schema", "discover", "ec*.*", "--target", "Raw"],
    db.environment,
  );
  assertEquals(found.code, 0, found.stderr);
  assertMatch(found.stderr, /ec\.secret is left out: role .* cannot read it/);
  assertMatch(found.stderr, /"object" of ec\.plain is left out: type regclass/);
  assertMatch(found.stderr, /ec\.empty is left out/);
  assertStringIncludes(
    found.stderr,
    'ec_2.plain is left out: ec.plain has the same target "Raw".plain',
  );
  assertMatch(found.stderr, /"mood" of ec\.feeling has type ec\.mood: create/);
  await db.warehouse.unsafe(
    `create schema ec; create type ec.mood as enum ('ok');
     grant usage on schema ec to "${db.loader}"`,
  );
  assertMatch(found.stdout, /key:\n +- 🚀\n +- no\n/);
  assertEquals(found.stdout.match(/key:/g)?.length, 1);
  await using file = await writeTablesFile(found.stdout);
  const environment = { ...db.environment, ...file.variables };
  const { json: shown } = await runJson(["config"], environment);
  assertEquals(shown.tables[0].key, ["🚀", "no"]);
  const { code, json, stderr } = await runJson(["load"], environment);
  assertEquals(code, 0, stderr);
  assertEquals(
    json.results.results.map(({ table }: { table: string }) => table),
    ['Odd: "x" #', "feeling", "looking", "parted", "plain"],
  );
  const rows = await db.warehouse.unsafe(`select * from "Raw".plain`);
  assertEquals(Object.keys(rows[0]!), ["id", "name", "at"]);
  const asJson = await runJson(
    ["schema", "discover", "ec.pl*", "--json"],
    db.environment,
  );
  assertEquals(asJson.json.tables[0].target, "ec.plain");
  const none = await runProgram(["schema", "discover", "x.*"], db.environment);
  assertEquals(none.code, 1);
  const bare = await runProgram(["schema", "discover"], db.environment);
  assertEquals(bare.code, 64);
  assertMatch(bare.stderr, /discover needs a PATTERN/);
});

Deno.test("schema discover leaves out what no file can declare", async () => {
  await using db = await migratedDatabases({ withoutTables: true });
  await createSource(
    db,
    `create table ec."a\tb" ("c\u009bd\ne" int); create table ec.odd ("__proto__" int);
     create schema marketing_data_service; create table marketing_data_service.run (id int);
     grant usage on schema marketing_data_service to "${db.reader}";
     grant select on marketing_data_service.run to "${db.reader}"`,
  );
  const found = await runProgram(["schema", "discover", "*"], db.environment);
  assertEquals(found.code, 0, found.stderr);
  assertMatch(
    found.stderr,
    /marketing_data_service\.run is left out: target: .* reserved schema/,
  );
  assertMatch(found.stderr, /ec\.odd is left out: the name "__proto__"/);
  const { tables, problems } = parseTablesFile("", found.stdout);
  assertEquals(problems, []);
  assertEquals(
    tables.map(({ source, columns }) => [source.name, columns?.[0]?.name]),
    [
      ["a\tb", "c\u009bd\ne"],
    ],
  );
  for (const schema of ["pg_other", "x".repeat(64)]) {
    const { code, stderr } = await runProgram(
      ["schema", "discover", "ec.*", "--target", schema],
      db.environment,
    );
    assertEquals(code, 64, stderr);
    assertMatch(stderr, /^Cannot run: target: "(pg_other|x{64})/m);
  }
});

Deno.test("load fails where an expression is longer than the declared type", async () => {
  await using db = await migratedDatabases({ withoutTables: true });
  await createSource(
    db,
    "create table ec.names (a text); insert into ec.names values ('abc'), ('abcdef')",
  );
  await using file = await writeTablesFile(`tables:
  - source: ec.names
    target: raw.names
    columns: { a: { type: varchar(3), expression: "upper(a)" } }
`);
  const environment = { ...db.environment, ...file.variables };
  const { code, stderr } = await runProgram(["load"], environment);
  assertEquals(code, 1);
  assertMatch(
    stderr,
    /value too long for type character varying\(3\).*, or the type or expression in TABLES_FILE/,
  );
  await db.source.unsafe("delete from ec.names where length(a) > 3");
  assertEquals((await runProgram(["load"], environment)).code, 0);
  assertEquals((await runProgram(["verify"], environment)).code, 0);
});

Deno.test("load uses the source connection of a table that fails before its first read", async () => {
  await using db = await createDatabases({ withoutTables: true });
  await createSource(
    db,
    `create table ec.large as select i from generate_series(1, 9000) i;
     create table ec.small as select 1 as i`,
  );
  await using file = await writeTablesFile(`tables:
  - { source: ec.large, target: forbidden.large }
  - { source: ec.small, target: raw.small }
`);
  await db.warehouse.unsafe(
    `create schema raw; alter schema raw owner to "${db.loader}";
     create schema marketing_data_service;
     alter schema marketing_data_service owner to "${db.loader}";
     revoke create on database "${db.environment.DWH_DB_NAME}" from "${db.loader}"`,
  );
  // One for the snapshot, and one for the larger table.
  await db.source.unsafe(`alter role "${db.reader}" connection limit 2`);
  const { process, finished } = startProgram(["load", "--json"], {
    ...db.environment,
    ...file.variables,
    MAX_PARALLEL_TASKS: "1",
  });
  const timer = setTimeout(() => process.kill("SIGTERM"), 30_000);
  const { code, stdout, stderr } = await finished;
  clearTimeout(timer);
  assertEquals(code, 1, stderr);
  const results: { table: string; status: string; code?: string }[] =
    JSON.parse(stdout).details.results;
  assertEquals(
    results.map(({ table, status, code }) => [table, status, code]),
    [
      ["large", "failure", "permission_denied"],
      ["small", "success", undefined],
    ],
  );
});
