import { assertEquals, assertStringIncludes } from "@std/assert";
import { createDatabases, type Databases } from "../support/databases.ts";
import { runJson } from "../support/program_here.ts";
import { writeTablesFile } from "../support/tables_file.ts";

/** Types whose values call the check of the domain `ec.checked`, as DDL. */
const TYPES: Readonly<Record<string, string>> = {
  "an array of a domain": "ec.checked[]",
  "a composite type with a domain": "ec.pair",
  "an array of a composite type with a domain": "ec.pair[]",
  "a range over a domain": "ec.span",
  "a multirange over a domain": "ec.spans",
};

const SCHEMA = `create schema ec; create domain ec.checked as text;
  create type ec.pair as (a text, b ec.checked);
  create type ec.span as range (subtype = ec.checked, multirange_type_name = ec.spans);`;

const VALUES: Readonly<Record<string, string>> = {
  "ec.checked[]": "array['a', 'b']::ec.checked[]",
  "ec.pair": "row('a', 'b')::ec.pair",
  "ec.pair[]": "array[row('a', 'b')]::ec.pair[]",
  "ec.span": "'[a,b]'::ec.span",
  "ec.spans": "'{[a,b]}'::ec.spans",
};

/** Lets a check of the domain in the warehouse change a row at the commit. */
const FORGE = `
  create table ec_data.relay (n int); grant all on ec_data.relay to public;
  create function ec_data.forge() returns trigger language plpgsql as $$ begin
    update ec_data.t set note = 'forged' where id = 1; return null; end $$;
  create constraint trigger forge after insert on ec_data.relay deferrable initially deferred
    for each row execute function ec_data.forge();
  create function ec.relays(v text) returns boolean language plpgsql as $$ begin
    insert into ec_data.relay select 1 where not exists (select from ec_data.relay)
      and current_setting('application_name') like 'marketing-data-service/%';
    return true; end $$;
  alter domain ec.checked add check (ec.relays(value)) not valid;`;

async function grantAll(
  { source, warehouse, reader }: Databases,
): Promise<void> {
  await source.unsafe(
    `grant usage on schema ec to "${reader}"; grant select on all tables in schema ec to "${reader}"`,
  );
  await warehouse.unsafe("grant usage on schema ec to public");
}

for (const [what, type] of Object.entries(TYPES)) {
  Deno.test(`load commits no other row when a column has ${what} whose check changes one`, async () => {
    await using db = await createDatabases({ withoutTables: true });
    await db.source.unsafe(
      `${SCHEMA} create table ec.t (id int, note text, v ${type});
       insert into ec.t select i, 'old', ${
        VALUES[type]
      } from generate_series(1, 5) i`,
    );
    await db.warehouse.unsafe(SCHEMA);
    await grantAll(db);
    await using file = await writeTablesFile(
      "tables:\n  - source: ec.t\n    target: ec_data.t\n",
    );
    const environment = { ...db.environment, ...file.variables };
    const first = await runJson(["load"], environment);
    assertEquals(first.code, 0, first.stderr);
    await db.warehouse.unsafe(FORGE);
    await db.source.unsafe("update ec.t set note = 'new' where id = 5");
    const { code, stderr } = await runJson(["load"], environment);
    const forged = await db.warehouse.unsafe(
      "select from ec_data.t where note = 'forged'",
    );
    assertEquals([code, forged.length], [1, 0], stderr);
  });
}

Deno.test("load creates no target with another row when the check of a domain in it changes one", async () => {
  await using db = await createDatabases({ withoutTables: true });
  await db.source.unsafe(
    `${SCHEMA} create table ec.t (id int, note text, v ec.checked[]);
     insert into ec.t select i, 'old', ${
      VALUES["ec.checked[]"]
    } from generate_series(1, 5) i`,
  );
  await db.warehouse.unsafe(
    `${SCHEMA} create schema ec_data; grant all on schema ec_data to public; ${FORGE}`,
  );
  await grantAll(db);
  await using file = await writeTablesFile(
    "tables:\n  - source: ec.t\n    target: ec_data.t\n",
  );
  const { code, stderr } = await runJson(["load"], {
    ...db.environment,
    ...file.variables,
  });
  const [target] = await db.warehouse.unsafe(
    "select to_regclass('ec_data.t') is not null as found",
  );
  assertEquals([code, target!.found], [1, false], stderr);
});

Deno.test("load creates targets of which a later one contains a domain, in one attempt", async () => {
  await using db = await createDatabases({ withoutTables: true });
  await db.source.unsafe(
    `${SCHEMA} create table ec.a (id int); insert into ec.a select generate_series(1, 50);
     create table ec.b (id int, v ec.pair[]);
     insert into ec.b select i, ${
      VALUES["ec.pair[]"]
    } from generate_series(1, 5) i`,
  );
  await db.warehouse.unsafe(SCHEMA);
  await grantAll(db);
  await using file = await writeTablesFile(
    `tables:
  - { source: ec.a, target: ec_data.a }
  - { source: ec.b, target: ec_data.b }
`,
  );
  const { code, stderr } = await runJson(["load"], {
    ...db.environment,
    ...file.variables,
    RETRY_ATTEMPTS: "1",
    MAX_PARALLEL_TASKS: "1",
  });
  assertEquals(code, 0, stderr);
});

Deno.test("load creates no column of a type that another role has planted under the name of a missing one", async () => {
  await using db = await createDatabases({ withoutTables: true });
  await db.source.unsafe(
    `create schema ec; create type ec.mood as enum ('good', 'bad');
     create table ec.t (id int, v ec.mood); insert into ec.t values (1, 'good')`,
  );
  await db.warehouse.unsafe(
    `create schema ec; create schema planted; grant usage on schema planted to public;
     create sequence planted.calls; grant all on sequence planted.calls to public;
     create function planted.is_good(v text) returns boolean language sql as
       $$ select nextval('planted.calls') > 0 $$;
     create domain planted.mood as text check (planted.is_good(value))`,
  );
  await grantAll(db);
  await using file = await writeTablesFile(
    "tables:\n  - source: ec.t\n    target: ec_data.t\n",
  );
  const { code, stderr } = await runJson(["load"], {
    ...db.environment,
    ...file.variables,
  });
  const [calls] = await db.warehouse.unsafe(
    "select is_called from planted.calls",
  );
  assertEquals([code, calls!.is_called], [1, false], stderr);
  assertStringIncludes(stderr, "type ec.mood");
});
