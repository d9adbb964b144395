import {
  assert,
  assertEquals,
  assertMatch,
  assertStringIncludes,
} from "@std/assert";
import { startPostgres } from "../support/own_server.ts";
import type { AppContext } from "../../src/context.ts";
import { load } from "../../src/load/load.ts";
import type { TableEntry } from "../../src/runs/event.ts";
import { parseTypeName } from "../../src/tables/column_types.ts";
import type { TableDeclaration } from "../../src/tables/declaration.ts";
import {
  ALL,
  connectAs,
  contextOf,
  type Databases,
  migratedDatabases,
} from "../support/databases.ts";
import { runProgram } from "../support/program_here.ts";
import { until } from "../support/server.ts";
import { writeTablesFile } from "../support/tables_file.ts";

/** Returns the declaration that loads `ec.<name>` into `raw.<name>`. */
function declare(
  name: string,
  columns: Readonly<Record<string, string>>,
  key?: readonly string[],
): TableDeclaration {
  return {
    name,
    source: { schema: "ec", name },
    target: { schema: "raw", name },
    columns: Object.entries(columns).map(([name, type]) => ({
      name,
      type: parseTypeName(type),
    })),
    ...(key ? { key } : {}),
  };
}

/** Loads the tables, and returns the entry of each. */
async function loadTables(
  context: AppContext,
  tables: readonly TableDeclaration[],
  mode: "auto" | "full" = "auto",
): Promise<readonly TableEntry[]> {
  const event = await load(
    { ...context, config: { ...context.config, tables } },
    "cli",
    { ...ALL, mode, tables: tables.map(({ name }) => name) },
  );
  return event.status === "success"
    ? event.results.results
    : event.details.results;
}

/** Runs a script in the source, and lets the program read its tables. */
async function inSource(db: Databases, sql: string): Promise<void> {
  await db.source.unsafe(
    `create schema if not exists ec; ${sql};
     grant usage on schema ec to "${db.reader}";
     grant select on all tables in schema ec to "${db.reader}"`,
  );
}

/** Checks that a target has the rows of its source, and returns the counts of the entry. */
async function checkLoaded(
  db: Databases,
  name: string,
  entry: TableEntry,
): Promise<readonly unknown[]> {
  assertEquals(entry.status, "success", JSON.stringify(entry));
  const rows = (sql: Databases["source"], relation: string) =>
    sql.unsafe(`select r::text as row from ${relation} r order by 1`);
  assertEquals(
    (await rows(db.warehouse, `raw.${name}`)).map(({ row }) => row),
    (await rows(db.source, `ec.${name}`)).map(({ row }) => row),
  );
  return entry.status === "success"
    ? [entry.mode, entry.rows_inserted, entry.rows_deleted]
    : [];
}

Deno.test("load updates the rows of a table with a key in place", async (t) => {
  await using db = await migratedDatabases({ withoutTables: true });
  await using context = contextOf(db);
  await inSource(
    db,
    `create type ec.mood as enum ('sad', 'ok');
     create table ec.item (id int primary key, code text, amount numeric, moods ec.mood[], number int);
     insert into ec.item select i, 'c' || i, i, '{ok,null}', i from generate_series(1, 1000) i`,
  );
  await db.warehouse.unsafe(
    `create schema ec; create type ec.mood as enum ('ok', 'sad'); grant usage on schema ec to "${db.loader}";
     create schema raw; alter schema raw owner to "${db.loader}";
     create table raw.item (id int, code text unique, amount numeric, moods ec.mood[],
       number int generated always as identity);
     alter table raw.item owner to "${db.loader}";
     create table raw.log (write text); grant all on raw.log to public;
     grant pg_read_all_data to "${db.loader}";
     create function raw.note() returns trigger language plpgsql as $$ begin
       insert into raw.log values (tg_op || coalesce(old.id, new.id));
       if current_setting('role') = 'none' then perform set_config('role', 'pg_read_all_data', true); end if;
       return null; end $$;
     create trigger note after insert or update or delete on raw.item for each row execute function raw.note()`,
  );
  const item = declare("item", {
    id: "int",
    code: "text",
    amount: "numeric",
    moods: "ec.mood[]",
    number: "int",
  }, ["id"]);
  /** Changes the source, loads, and returns the counts and the writes of the target. */
  const loadAfter = async (sql: string, mode?: "full") => {
    await db.source.unsafe(sql);
    await db.warehouse.unsafe("truncate raw.log");
    const [entry] = await loadTables(context, [item], mode);
    const counts = await checkLoaded(db, "item", entry!);
    const log = await db.warehouse.unsafe(
      "select write from raw.log order by 1",
    );
    return [...counts, log.map(({ write }) => write).join(" ")];
  };
  const [first] = await loadTables(context, [item]);
  assertEquals(await checkLoaded(db, "item", first!), ["full", 1000, 0]);
  const change = (first: number) =>
    `update ec.item set amount = -1, moods = '{sad}' where id = ${first};
     update ec.item set amount = ${first}.00 where id = ${first} + 1;
     delete from ec.item where id = ${first} + 2;
     insert into ec.item values (${first} + 1000, 'new${first}', 1, null, 1)`;

  await t.step(
    "a delta and a full load write the changed rows only",
    async () => {
      for (const [id, mode] of [[10, undefined], [20, "full"]] as const) {
        assertEquals(await loadAfter(change(id), mode), [
          mode ?? "delta",
          3,
          3,
          `DELETE${id + 2} INSERT${id + 1000} UPDATE${id} UPDATE${id + 1}`,
        ]);
      }
    },
  );
  await t.step("keys that exchange their values are updates", async () => {
    assertEquals(
      await loadAfter(
        `update ec.item set id = -id where id in (30, 31);
         update ec.item set id = case id when -30 then 31 else 30 end where id < 0;
         update ec.item c set code = 'c' || id, number = id where id in (30, 31)`,
      ),
      ["delta", 2, 2, "UPDATE30 UPDATE31"],
    );
  });
  await t.step(
    "rows that exchange unique values are replaced, others are updated",
    async () => {
      assertEquals(
        await loadAfter(
          `update ec.item set code = case id when 40 then 'c41' else 'c40' end where id in (40, 41);
         update ec.item set amount = 0 where id = 42`,
        ),
        ["delta", 3, 3, "DELETE40 DELETE41 INSERT40 INSERT41 UPDATE42"],
      );
    },
  );
  await t.step("a row whose identity column differs is replaced", async () => {
    assertEquals(
      await loadAfter("update ec.item set number = -1 where id = 50"),
      ["delta", 1, 1, "DELETE50 INSERT50"],
    );
  });
  await t.step(
    "a damaged target is repaired, with and without comparison",
    async () => {
      await db.warehouse.unsafe(
        "alter table raw.item drop constraint item_code_key",
      );
      for (const mode of [undefined, "full"] as const) {
        await db.warehouse.unsafe(
          `alter table raw.item disable trigger note;
         insert into raw.item select id, code, amount, moods from raw.item where id in (60, 61);
         insert into raw.item values (61, 'other'), (null, 'no key'), (70000, 'not in the source');
         delete from raw.item where id = 62;
         alter table raw.item enable trigger note`,
        );
        const [, inserted, deleted, log] = await loadAfter("select", mode);
        assertMatch(String(log), /^DELETE(?!\d)? ?.*DELETE70000 INSERT62/);
        assertEquals(Number(deleted) - Number(inserted), 4);
      }
    },
  );
  await t.step(
    "load and --dry-run name what an update in place needs",
    async () => {
      await using file = await writeTablesFile(`tables:
  - source: ec.item
    target: raw.item
    columns: { id: int, code: text, amount: numeric, moods: "ec.mood[]", number: int }
    key: [id]
`);
      const database = `database ${db.environment.DWH_DB_NAME}`;
      await db.source.unsafe("update ec.item set amount = 7 where id = 70");
      for (
        const [refuse, allow, message] of [
          [
            `revoke temporary on ${database} from public`,
            `grant temporary on ${database} to public`,
            "GRANT TEMPORARY ON DATABASE",
          ],
          [
            `revoke update on raw.item from "${db.loader}"`,
            `grant update on raw.item to "${db.loader}"`,
            "lacks UPDATE on raw.item",
          ],
          [
            "create rule quiet as on update to raw.item do also select 1",
            "drop rule quiet on raw.item",
            "does not support rules, and raw.item in the warehouse has: quiet",
          ],
          [
            "create publication changes for table raw.item with (publish = 'update')",
            "drop publication changes",
            "no replica identity",
          ],
          [
            `alter table raw.item add primary key (id), add unique (code);
           create table raw.child (code text references raw.item (code) on update cascade)`,
            "drop table raw.child; alter table raw.item drop constraint item_pkey, drop constraint item_code_key",
            "`key: [code]`",
          ],
        ] as const
      ) {
        await db.warehouse.unsafe(refuse);
        const [entry] = await loadTables(context, [item]);
        const planned = await runProgram(["load", "--dry-run"], {
          ...db.environment,
          ...file.variables,
        });
        await db.warehouse.unsafe(allow);
        assertStringIncludes(
          entry!.status === "failure" ? entry!.error : "",
          message,
        );
        assertStringIncludes(planned.stdout + planned.stderr, message);
      }
    },
  );
  await t.step("VERIFY=count counts the rows", async () => {
    await using counting = contextOf(db, { VERIFY: "count" });
    for (const [id, mode] of [[80, "auto"], [90, "full"]] as const) {
      await db.source.unsafe(change(id));
      const [entry] = await loadTables(counting, [item], mode);
      await checkLoaded(db, "item", entry!);
    }
  });
});

Deno.test("load refuses a key that does not identify the rows of the snapshot", async () => {
  await using db = await migratedDatabases({ withoutTables: true });
  await using context = contextOf(db);
  await inSource(
    db,
    `create table ec.twice (id int, text text);
     insert into ec.twice select i, 'x' from generate_series(1, 20) i;
     create table ec.empty (id int unique, text text); insert into ec.empty values (1, 'x');
     create table ec.document (id json); insert into ec.document values ('1');
     create table ec.parent (id int primary key, text text); create table ec.child () inherits (ec.parent)`,
  );
  const columns = { id: "int", text: "text" };
  const tables = [
    declare("twice", columns, ["text", "id"]),
    declare("empty", columns, ["id"]),
    declare("document", { id: "json" }, ["id"]),
    declare("parent", columns, ["id"]),
  ];
  const first = await loadTables(context, tables);
  assertEquals(first.map(({ status }) => status), [
    "success",
    "success",
    "failure",
    "success",
  ]);
  await inSource(
    db,
    `insert into ec.twice select id, text from ec.twice where id < 8;
     insert into ec.empty values (null, 'y'); insert into ec.parent values (1, 'a');
     insert into ec.child values (1, 'b');
     -- PostgreSQL 18 marks the column as NOT NULL, although it has a NULL.
     do $$ begin if pg_catalog.current_setting('server_version_num')::int >= 180000 then
       execute 'alter table ec.empty add constraint filled not null id not valid';
     end if; end $$`,
  );
  const told = await loadTables(context, tables);
  const [twice, ...others] = told.map((entry) =>
    entry.status === "failure" ? `${entry.code}: ${entry.error}` : ""
  );
  assertMatch(
    twice!,
    /^key_not_unique: .*the key \("text", "id"\) .* of ec\.twice: (\(x, \d\), ){5}…/,
  );
  assertStringIncludes(
    others[0]!,
    '("id") does not identify the rows of ec.empty: (NULL).',
  );
  assertMatch(others[1]!, /^configuration: .*equality operator for type json/);
  assertStringIncludes(others[2]!, "ec.parent: (1).");
  const [row] = await db.warehouse.unsafe(
    "select (select count(*) from raw.twice)::int as twice, (select count(*) from raw.empty)::int as empty",
  );
  assertEquals({ ...row }, { twice: 20, empty: 1 });
});

Deno.test("load updates rows that move to another partition, and keys that the target's collation treats as equal", async () => {
  await using db = await migratedDatabases({ withoutTables: true });
  await using context = contextOf(db);
  await inSource(
    db,
    `create type ec.kind as enum ('shop', 'web');
     create table ec.sale (id int, kind ec.kind, region text, seat int, primary key (kind, id));
     insert into ec.sale select i, 'web', case when i % 2 = 0 then 'a' else 'b' end, i from generate_series(1, 100) i;
     create table ec.number (id int); insert into ec.number select generate_series(1, 5);
     create table ec.letter (id text, short varchar(3), fixed char(2), list varchar(3)[], n int,
       primary key (id, short, fixed, list));
     insert into ec.letter select chr(code), 'a', 'b', '{c}', code from generate_series(65, 122) code`,
  );
  await db.warehouse.unsafe(
    `create schema ec; create type ec.kind as enum ('web', 'shop'); grant usage on schema ec to "${db.loader}"; create schema raw;
     create table raw.sale (id int, kind ec.kind, region text, seat int) partition by list (region);
     create table raw.sale_a partition of raw.sale for values in ('a');
     create table raw.sale_b (seat int unique, region text, kind ec.kind, id int);
     alter table raw.sale attach partition raw.sale_b for values in ('b');
     create table raw.number (id int generated always as identity);
     create collation raw.fold (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
     create table raw.letter (id text collate raw.fold, short varchar(3), fixed char(2), list varchar(3)[], n int); alter table raw.letter owner to "${db.loader}";
     alter table raw.sale owner to "${db.loader}"; alter table raw.number owner to "${db.loader}";
     grant usage on schema raw to "${db.loader}"`,
  );
  const tables = [
    declare(
      "sale",
      { id: "int", kind: "ec.kind", region: "text", seat: "int" },
      ["id", "kind"],
    ),
    declare("number", { id: "int" }, ["id"]),
    // The collation of the target treats the keys as equal.
    declare(
      "letter",
      {
        id: "text",
        short: "varchar(3)",
        fixed: "char(2)",
        list: "varchar(3)[]",
        n: "int",
      },
      ["id", "short", "fixed", "list"],
    ),
  ];
  await loadTables(context, tables);
  for (const mode of ["auto", "full"] as const) {
    await db.source.unsafe(
      `update ec.sale set region = case region when 'a' then 'b' else 'a' end where id in (1, 2, 3);
       update ec.sale set seat = case seat when 11 then 13 else 11 end where seat in (11, 13);
       delete from ec.sale where id = (select max(id) from ec.sale);
       update ec.number set id = id + 10 where id = (select min(id) from ec.number);
       update ec.letter set n = n + 10 where id = 'a'`,
    );
    const [sale, number, letter] = await loadTables(context, tables, mode);
    const used = mode === "auto" ? "delta" : mode;
    assertEquals(await checkLoaded(db, "sale", sale!), [used, 5, 6]);
    assertEquals(await checkLoaded(db, "number", number!), [used, 1, 1]);
    assertEquals(await checkLoaded(db, "letter", letter!), [used, 1, 1]);
  }
});

/** Types of PostgreSQL that a load compares by their operator, each with two values. */
const KEY_TYPES: Readonly<Record<string, readonly [string, string]>> = {
  '"char"': ["a", "b"],
  cid: ["1", "4294967295"],
  int4range: ["[1,5)", "empty"],
  "integer[]": ["{1,NULL}", "{}"],
  macaddr8: ["00:00:00:00:00:00:00:01", "ff:ff:ff:ff:ff:ff:ff:ff"],
  nummultirange: ["{[1,2)}", "{}"],
  oid: ["1", "4294967295"],
  oidvector: ["1 2", "3"],
  pg_lsn: ["0/1", "FFFFFFFF/FFFFFFFF"],
  tid: ["(0,1)", "(1,1)"],
  tsvector: ["a", "b"],
  xid: ["1", "4294967295"],
  "xid[]": ["{1}", "{4294967295}"],
  xid8: ["1", "18446744073709551615"],
};

Deno.test("load updates rows by a key of each type, also of those without an order", async () => {
  await using db = await migratedDatabases({ withoutTables: true });
  await using context = contextOf(db);
  const types = Object.entries(KEY_TYPES);
  await inSource(
    db,
    types.map(([type, [one, other]], i) =>
      `create table ec.of_${i} (k ${type}, n int);
       insert into ec.of_${i} values ('${one}', 1), ('${other}', 2)`
    ).join(";"),
  );
  const tables = types.map(([type], i) =>
    declare(`of_${i}`, { k: type, n: "int" }, ["k"])
  );
  await loadTables(context, tables);
  await inSource(
    db,
    tables.map(({ name }) => `update ec.${name} set n = 3 where n = 1`)
      .join(";"),
  );
  for (const [i, entry] of (await loadTables(context, tables)).entries()) {
    const counts = await checkLoaded(db, `of_${i}`, entry);
    assertEquals([types[i]![0], ...counts.slice(1)], [types[i]![0], 1, 1]);
  }
});

const ACTIONS = ["no action", "restrict", "cascade", "set null", "set default"];
const TIMES = [
  "not deferrable",
  "deferrable initially immediate",
  "deferrable initially deferred",
];

Deno.test("load keeps the rows that refer to a changed row, whatever the foreign key does", async (t) => {
  await using db = await migratedDatabases({ withoutTables: true });
  await using context = contextOf(db);
  const cases = ACTIONS.flatMap((action) =>
    TIMES.flatMap((time) =>
      [true, false].map((hasKey) => ({ action, time, hasKey }))
    )
  ).map((scene, i) => ({
    ...scene,
    name: `parent_${i}`,
    child: `raw.child_${i}`,
  }));
  await inSource(
    db,
    cases.map(({ name }) =>
      `create table ec.${name} (id int primary key, text text);
       insert into ec.${name} select i, 'old' from generate_series(0, 5) i`
    ).join(";"),
  );
  const tables = cases.map(({ name, hasKey }) =>
    declare(name, { id: "int", text: "text" }, hasKey ? ["id"] : undefined)
  );
  await loadTables(context, tables);
  await db.warehouse.unsafe(
    cases.map(({ name, child, action, time }) =>
      `alter table raw.${name} add primary key (id);
       create table ${child} (parent int default 0 references raw.${name} on delete ${action} on update ${action} ${time});
       insert into ${child} values (1), (2)`
    ).join(";"),
  );
  const children = async (child: string) =>
    (await db.warehouse.unsafe(`select parent from ${child} order by ctid`))
      .map(({ parent }) => parent);

  await t.step(
    "a changed row is updated, or the load names the key",
    async () => {
      for (const { name } of cases) {
        await db.source.unsafe(
          `update ec.${name} set text = 'new' where id = 1`,
        );
      }
      const entries = await loadTables(context, tables);
      for (
        const [i, { name, child, action, time, hasKey }] of cases.entries()
      ) {
        const entry = entries[i]!;
        const what = JSON.stringify([cases[i], entry]);
        assertEquals(await children(child), [1, 2], what);
        const isDeferrable = action === "no action" &&
          time !== "not deferrable";
        if (hasKey || isDeferrable) {
          assertEquals(await checkLoaded(db, name, entry), ["delta", 1, 1]);
        } else {
          assertStringIncludes(
            entry.status === "failure" ? entry.error : "",
            "`key: [id]`",
            what,
          );
        }
      }
    },
  );
  await t.step(
    "targets that write to no other table need no connection of their own",
    async () => {
      const ofActions = (actions: RegExp) =>
        tables.filter(({ key }, i) => key && actions.test(cases[i]!.action));
      const checking = ofActions(/no action|restrict/);
      checking.push(ofActions(/cascade/)[0]!);
      for (const { name } of checking) {
        await db.source.unsafe(
          `update ec.${name} set text = 'newer' where id = 1`,
        );
      }
      await using narrow = contextOf(db, { MAX_PARALLEL_TASKS: "1" });
      await db.warehouse.unsafe(`alter role "${db.loader}" connection limit 6`);
      const entries = await loadTables(narrow, checking);
      await db.warehouse.unsafe(
        `alter role "${db.loader}" connection limit -1`,
      );
      for (const [i, { name }] of checking.entries()) {
        await checkLoaded(db, name, entries[i]!);
      }
    },
  );
  await t.step(
    "a row that is gone is deleted as the foreign key says",
    async () => {
      const keyed = cases.filter(({ hasKey }) => hasKey);
      for (const { name } of keyed) {
        await db.source.unsafe(`delete from ec.${name} where id = 1`);
      }
      const entries = await loadTables(
        context,
        tables.filter(({ key }) => key !== undefined),
      );
      const after: Record<string, unknown[]> = {
        cascade: [2],
        "set null": [2, null],
        "set default": [2, 0],
      };
      for (const [i, { child, action, name }] of keyed.entries()) {
        const entry = entries[i]!;
        assertEquals(await children(child), after[action] ?? [1, 2]);
        if (action in after) await checkLoaded(db, name, entry);
        else {assertEquals(
            entry.status === "failure" && entry.code,
            "constraint_violated",
          );}
      }
    },
  );
  await t.step(
    "a key other than the columns of the foreign key is refused",
    async () => {
      await inSource(
        db,
        `create table ec.other (id int, code text);
       insert into ec.other values (1, 'a'), (2, 'b')`,
      );
      const other = declare("other", { id: "int", code: "text" }, ["id"]);
      await loadTables(context, [other]);
      await db.warehouse.unsafe(
        `alter table raw.other add unique (code);
       create table raw.child (code text references raw.other (code) on delete cascade);
       insert into raw.child values ('a'), ('b')`,
      );
      await db.source.unsafe("update ec.other set id = id + 1");
      for (const mode of ["auto", "full"] as const) {
        const [entry] = await loadTables(context, [other], mode);
        assertStringIncludes(
          entry!.status === "failure" ? entry!.error : "",
          "`key: [code]`",
        );
      }
      const [entry] = await loadTables(context, [{ ...other, key: ["code"] }]);
      assertEquals(await checkLoaded(db, "other", entry!), ["full", 2, 2]);
      const [row] = await db.warehouse.unsafe(
        "select count(*)::int as n from raw.child",
      );
      assertEquals(row!.n, 2);
      // Both columns are unique, and a foreign key acts on the replaced rows.
      await db.warehouse.unsafe("alter table raw.other add unique (id)");
      await db.source.unsafe("update ec.other set id = 5 - id");
      const refused = async (key: string) => {
        const [entry] = await loadTables(context, [{ ...other, key: [key] }]);
        return entry!.status === "failure" ? entry!.error : "";
      };
      const exchanged = await refused("code");
      assertStringIncludes(
        exchanged,
        "Create foreign key child_code_fkey of raw.child again with NO ACTION.",
      );
      assertStringIncludes(exchanged, "DEFERRABLE, if no foreign key refers");
      // No key has the columns of both foreign keys.
      await db.warehouse.unsafe(
        "alter table raw.child add id int references raw.other (id) on delete set null",
      );
      for (
        const [key, name] of [["code", "child_id_fkey"], [
          "id",
          "child_code_fkey",
        ]] as const
      ) {
        const message = await refused(key);
        assertStringIncludes(
          message,
          `Create foreign key ${name} of raw.child`,
        );
        assert(!message.includes("key: ["), message);
      }
      await db.warehouse.unsafe(
        `alter table raw.child drop column id, drop constraint child_code_fkey,
           add foreign key (code) references raw.other (code) on delete restrict`,
      );
      assertStringIncludes(
        await refused("code"),
        "Create foreign key child_code_fkey of raw.child again with NO ACTION, or delete the rows of raw.child",
      );
      await db.warehouse.unsafe(
        `alter table raw.child drop constraint child_code_fkey,
           add foreign key (code) references raw.other (code)`,
      );
      assertEquals(await refused("code"), "");
    },
  );
  await t.step(
    "a column that cannot be updated is named where a foreign key acts",
    async () => {
      await inSource(
        db,
        "create table ec.numbered (id int, number int); insert into ec.numbered values (1, 1)",
      );
      const numbered = declare("numbered", { id: "int", number: "int" }, [
        "id",
      ]);
      await loadTables(context, [numbered]);
      await db.warehouse.unsafe(
        `alter table raw.numbered add primary key (id), alter number set not null,
           alter number add generated always as identity;
         create table raw.numbered_child (id int references raw.numbered on delete cascade);
         insert into raw.numbered_child values (1)`,
      );
      await db.source.unsafe("update ec.numbered set number = 2");
      const [refused] = await loadTables(context, [numbered]);
      const remedy =
        'ALTER TABLE "raw"."numbered" ALTER COLUMN "number" SET GENERATED BY DEFAULT;';
      assertStringIncludes(
        refused!.status === "failure" ? refused!.error : "",
        remedy,
      );
      await db.warehouse.unsafe(remedy);
      const [entry] = await loadTables(context, [numbered]);
      assertEquals(await checkLoaded(db, "numbered", entry!), ["full", 1, 1]);
    },
  );
});

Deno.test("load shows a subscriber of its publication complete loads only, with updates", async () => {
  await using server = await startPostgres({
    settings: { wal_level: "logical" },
  });
  const url = server.url();
  await using db = await migratedDatabases({
    withoutTables: true,
    servers: { source: url, warehouse: url },
  });
  await using context = contextOf(db);
  await inSource(
    db,
    `create table ec.keyed (id int primary key, text text); create table ec.plain (id int, text text);
     insert into ec.keyed select i, 'old' from generate_series(1, 2000) i; insert into ec.plain table ec.keyed`,
  );
  const columns = { id: "int", text: "text" };
  const tables = [declare("keyed", columns, ["id"]), declare("plain", columns)];
  await loadTables(context, tables);
  await db.warehouse.unsafe(
    `alter table raw.keyed add primary key (id); alter table raw.plain replica identity full;
     create publication targets for table raw.keyed, raw.plain`,
  );
  // On one server, CREATE SUBSCRIPTION would wait for itself if it created the slot.
  await db.warehouse.unsafe(
    "select pg_create_logical_replication_slot('subscriber', 'pgoutput')",
  );
  await using other = Object.assign(connectAs(new URL(url), "postgres"), {
    async [Symbol.asyncDispose]() {
      await other.unsafe("drop subscription subscriber");
      await other.end();
    },
  });
  await other.unsafe(
    `create schema raw; create table raw.keyed (id int primary key, text text); create table raw.plain (id int, text text);
     alter table raw.plain replica identity full;
     create table raw.log (name text, id int, write text, transaction bigint);
     create function raw.note() returns trigger language plpgsql as $$ begin
       insert into raw.log values (tg_table_name, coalesce(new.id, old.id), tg_op, txid_current()); return null; end $$;
     create trigger note after insert or update or delete on raw.keyed for each row execute function raw.note();
     create trigger note after insert or update or delete on raw.plain for each row execute function raw.note();
     alter table raw.keyed enable always trigger note; alter table raw.plain enable always trigger note`,
  );
  await other.unsafe(
    `create subscription subscriber connection 'host=127.0.0.1 port=${
      new URL(url).port
    } user=postgres dbname=${db.environment.DWH_DB_NAME}'
       publication targets with (create_slot = false, slot_name = 'subscriber')`,
  );
  const rows = (sql: Databases["source"], relation: string) =>
    sql.unsafe(`select r::text as row from ${relation} r order by 1`);
  const expected = async (name: string) =>
    (await rows(db.source, `ec.${name}`)).map(({ row }) => row).join();
  const arrived = (name: string) =>
    until(
      `raw.${name} arrives at the subscriber`,
      async () =>
        (await rows(other, `raw.${name}`)).map(({ row }) => row).join() ===
          await expected(name),
    );
  for (const { name } of tables) await arrived(name);

  for (const mode of ["auto", "full"] as const) {
    await other.unsafe("truncate raw.log");
    for (const { name } of tables) {
      await db.source.unsafe(
        `update ec.${name} set text = '${mode}' where id <= 300;
         delete from ec.${name} where id between 301 and 350;
         insert into ec.${name} select i, 'new' from generate_series(301, 350) i where i % 2 = 0;
         delete from ec.${name} where id between 400 and 500 and id % 2 = ${
          mode === "auto" ? 0 : 1
        }`,
      );
    }
    const entries = await loadTables(context, tables, mode);
    for (const entry of entries) assertEquals(entry.status, "success");
    for (const { name } of tables) await arrived(name);
    const log = await other.unsafe(
      `select name, count(distinct transaction)::int as transactions,
         count(*) filter (where write = 'UPDATE')::int as updates,
         count(*) filter (where id <= 300 and write <> 'UPDATE')::int as others
       from raw.log group by name order by name`,
    );
    assertEquals(log.map((row) => ({ ...row })), [
      {
        name: "keyed",
        transactions: 1,
        updates: mode === "auto" ? 325 : 300,
        others: 0,
      },
      { name: "plain", transactions: 1, updates: 0, others: 600 },
    ]);
  }
});
