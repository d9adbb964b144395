import { assert, assertEquals } from "@std/assert";
import { delay } from "@std/async/delay";
import { createDatabases, type Sql } from "../support/databases.ts";
import { startProgram } from "../support/program.ts";
import { runJson } from "../support/program_here.ts";
import { until } from "../support/soundness.ts";
import { createManyTables } from "../support/many_tables.ts";

/** Many more tables than connections. Their names together exceed what an index can hold. */
const TABLES = 120;

/** Long names, as many people have them. */
const NAME = "customers_of_the_north_by_month_";

/** Returns the most connections that the program had at the same time, until `done`. */
async function mostConnections(
  db: { readonly source: Sql; readonly warehouse: Sql },
  roles: readonly string[],
  done: Promise<unknown>,
): Promise<number> {
  let most = 0;
  let isDone = false;
  done.finally(() => isDone = true);
  while (!isDone) {
    await delay(20);
    for (const sql of [db.source, db.warehouse]) {
      for (const role of roles) {
        const [row] = await sql.unsafe(
          `select count(*)::int as count from pg_stat_activity where usename = '${role}'`,
        );
        most = Math.max(most, row!.count);
      }
    }
  }
  return most;
}

Deno.test("load copies many tables with at most 10 connections on either server", async () => {
  await using db = await createDatabases({ withoutTables: true });
  await using file = await createManyTables(db, TABLES, NAME);
  await db.source.unsafe("alter table many.t77 add column bad regclass");
  const environment = {
    ...db.environment,
    ...file.variables,
    MAX_PARALLEL_TASKS: "4",
  };
  const { finished } = startProgram(["load", "--json"], environment);
  const most = await mostConnections(db, [db.reader, db.loader], finished);
  const { code, stdout, stderr } = await finished;
  assertEquals(code, 1, stderr);
  const entries: { table: string; status: string }[] =
    JSON.parse(stdout).details.results;
  assertEquals(entries.length, TABLES);
  assertEquals(
    entries.filter(({ status }) => status === "failure").map((e) => e.table),
    [`${NAME}77`],
  );
  assert(most <= 10, `${most} connections`);
});

Deno.test("load needs no more connections for many targets whose triggers may write elsewhere", async () => {
  await using db = await createDatabases({ withoutTables: true });
  await using file = await createManyTables(db, 12);
  const environment = {
    ...db.environment,
    ...file.variables,
    MAX_PARALLEL_TASKS: "2",
  };
  const { code, stderr } = await runJson(["load"], environment);
  assertEquals(code, 0, stderr);
  // Each trigger could change every other target, and one of them does.
  await db.warehouse.unsafe(
    `create function public.look() returns trigger language plpgsql as $$ begin
       if tg_table_name = 't3' then delete from raw.t1; end if;
       if tg_table_name = 't2' then perform pg_sleep(0.5); end if; return null; end $$;
     do $$ begin for n in 1..12 loop
       execute format('create trigger look after insert on raw.t%s for each statement execute function public.look()', n);
     end loop; end $$;
     drop trigger look on raw.t11;
     drop table raw.t12; create view raw.t12 as select * from raw.t5;
     grant all on raw.t12, raw.t2 to public`,
  );
  for (let n = 1; n <= 12; n++) {
    await db.source.unsafe(`insert into many.t${n} select * from many.t${n}`);
  }
  await db.warehouse.unsafe(`alter role "${db.loader}" connection limit 8`);
  await using writer = db.connect("warehouse");
  await writer.unsafe("begin; lock table raw.t11 in row exclusive mode");
  const running = runJson(["load"], {
    ...environment,
    LOCK_TIMEOUT: "1",
    RETRY_ATTEMPTS: "1",
  });
  await until(async () =>
    (await db.warehouse.unsafe(
      `select from pg_locks where relation = 'raw.t2'::regclass and granted
         and mode = 'ShareRowExclusiveLock'`,
    )).length > 0
  );
  // A writer gets the lock at the commit, and keeps it.
  await writer.unsafe("lock table raw.t2 in row exclusive mode");
  const { json } = await running;
  const failed = json.details.results.filter((r: { status: string }) =>
    r.status === "failure"
  );
  assertEquals(
    failed.map((r: { table: string; code: string }) => [r.table, r.code]),
    [
      ["t3", "target_locked"],
      ["t11", "target_locked"],
      ["t12", "target_incompatible"],
    ],
    JSON.stringify(json),
  );
});

Deno.test("load of many tables needs two connections to the source", async () => {
  await using db = await createDatabases({ withoutTables: true });
  await using file = await createManyTables(db, 6);
  await db.source.unsafe(`alter role "${db.reader}" connection limit 2`);
  const { code, stderr } = await runJson(["load"], {
    ...db.environment,
    ...file.variables,
    MAX_PARALLEL_TASKS: "3",
  });
  assertEquals(code, 0, stderr);
});
