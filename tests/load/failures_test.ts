import {
  assert,
  assertEquals,
  assertMatch,
  assertStringIncludes,
} from "@std/assert";
import {
  createDatabases,
  migratedDatabases,
  PASSWORD,
} from "../support/databases.ts";
import { runJson, runProgram } from "../support/program_here.ts";
import { until } from "../support/server.ts";

const ROWS = { deals: 20, leads: 20 };

/** Without retries, a failure is prompt. */
const ONCE = { RETRY_ATTEMPTS: "1" };

interface Case {
  readonly name: string;
  /** Causes the fault. `$reader` and `$loader` are replaced by the roles. */
  readonly source?: string;
  readonly warehouse?: string;
  /** Whether the load creates the history. */
  readonly isFirst?: boolean;
  readonly words?: readonly string[];
  readonly environment?: Record<string, string>;
  readonly exit: number;
  readonly code: string;
  /** Parts of the message: what, where, remedy. */
  readonly says: readonly string[];
}

/** An empty m_data that belongs to the loader, for faults in the target. */
const M_DATA = "create schema m_data; alter schema m_data owner to $loader;";
const CLOSED_DEAL = `${M_DATA} create table m_data.closed_deal (
  mql_id text, seller_id text, sdr_id text, sr_id text, won_date timestamptz, business_segment text,
  lead_type text, lead_behaviour_profile text, has_company text, has_gtin text, average_stock text,
  business_type text, declared_product_catalog_size float8, declared_monthly_revenue float8);
  alter table m_data.closed_deal owner to $loader;`;

const CASES: readonly Case[] = [
  {
    name: "a missing source column",
    source: "alter table marketing.closed_deals drop column won_date",
    exit: 1,
    code: "source_column_missing",
    says: [
      `column "won_date" is missing in marketing.closed_deals`,
      "Add the column",
    ],
  },
  {
    name: "an incompatible source column",
    source:
      "alter table marketing.closed_deals alter column won_date type text using won_date::text",
    exit: 1,
    code: "source_column_incompatible",
    says: [
      `column "won_date" of marketing.closed_deals`,
      "its type text cannot become",
    ],
  },
  {
    name: "a missing source table",
    source: "drop table marketing.marketing_qualified_leads",
    exit: 1,
    code: "source_table_missing",
    says: [
      "table marketing.marketing_qualified_leads is missing",
      "Create the table",
    ],
  },
  {
    name: "a source table without SELECT",
    source: "revoke select on marketing.closed_deals from $reader",
    exit: 1,
    code: "permission_denied",
    says: [
      "has no privilege to read marketing.closed_deals",
      'Grant USAGE on schema "marketing" and SELECT',
    ],
  },
  {
    name: "a source that hides rows by a policy",
    source: `alter table marketing.closed_deals enable row level security;
      create policy none on marketing.closed_deals using (false)`,
    exit: 1,
    code: "permission_denied",
    says: ["closed_deal", "row-level security"],
  },
  {
    name: "a date outside the range of a timestamp",
    source:
      `insert into marketing.marketing_qualified_leads (first_contact_date) values ('5874897-12-31')`,
    exit: 1,
    code: "value_invalid",
    says: [
      "marketing_qualified_lead",
      "date out of range for timestamp",
      "Correct the value",
    ],
  },
  {
    name: "a target with a missing column",
    warehouse:
      `${CLOSED_DEAL} alter table m_data.closed_deal drop column has_gtin`,
    exit: 1,
    code: "target_incompatible",
    says: [
      `column "has_gtin" is missing in m_data.closed_deal`,
      "load --recreate --table NAME",
    ],
  },
  {
    name: "a target with a column of another type",
    warehouse:
      `${CLOSED_DEAL} alter table m_data.closed_deal alter column won_date type timestamp`,
    exit: 1,
    code: "target_incompatible",
    says: [
      `column "won_date" of m_data.closed_deal`,
      "is timestamp without time zone",
    ],
  },
  {
    name: "a target with an additional column",
    source: "alter table marketing.closed_deals add column note text",
    warehouse:
      `${CLOSED_DEAL} alter table m_data.closed_deal add column note text`,
    exit: 1,
    code: "target_incompatible",
    says: [
      `has a column "note", which is not declared. Give`,
      "load --recreate --table NAME",
    ],
  },
  {
    name: "a view in place of a target",
    warehouse: `${M_DATA} create view m_data.closed_deal as select 1 as mql_id`,
    exit: 1,
    code: "target_incompatible",
    says: [
      "m_data.closed_deal in the warehouse is not a table",
      "Drop or rename it",
    ],
  },
  {
    name: "a view in place of a target, with --recreate",
    warehouse: `${M_DATA} create view m_data.closed_deal as select 1 as mql_id`,
    words: ["--recreate"],
    exit: 1,
    code: "target_incompatible",
    says: [
      "m_data.closed_deal in the warehouse is not a table",
      "Drop or rename it",
    ],
  },
  {
    name: "a constraint of the target that a row violates",
    warehouse:
      `${CLOSED_DEAL} alter table m_data.closed_deal add constraint small check (length(mql_id) < 5)`,
    exit: 1,
    code: "constraint_violated",
    says: [
      `violates check constraint "small" (Failing row contains (`,
      ")). Correct the rows",
    ],
  },
  {
    name: "a trigger of the target that drops rows",
    warehouse: `${CLOSED_DEAL}
      create function public.drop_row() returns trigger language plpgsql as
        $f$ begin if new.business_type = 'other' then return null; end if; return new; end $f$;
      create trigger drop_row before insert on m_data.closed_deal
        for each row execute function public.drop_row()`,
    exit: 1,
    code: "verification_failed",
    says: [
      "after the copy the target holds",
      "the source has 20",
      "Look for triggers, rules or foreign keys that change rows of m_data.closed_deal",
    ],
  },
  {
    name: "a source view with different rows in each query",
    source: `alter table marketing.closed_deals rename to deals;
      create view marketing.closed_deals as select * from marketing.deals where random() < 0.5;
      grant select on marketing.closed_deals to $reader`,
    exit: 1,
    code: "verification_failed",
    says: [
      "after the copy the target holds",
      "marketing.closed_deals is a view. Look for a function that returns different rows",
    ],
  },
  {
    name:
      "a source view with different rows in each query, and a target with a trigger",
    source: `alter table marketing.closed_deals rename to deals;
      create view marketing.closed_deals as select * from marketing.deals where random() < 0.5;
      grant select on marketing.closed_deals to $reader`,
    warehouse: `${CLOSED_DEAL}
      create function public.keep_row() returns trigger language plpgsql as $f$ begin return new; end $f$;
      create trigger keep_row before insert on m_data.closed_deal
        for each row execute function public.keep_row()`,
    exit: 1,
    code: "verification_failed",
    says: [
      "marketing.closed_deals is a view. Look for",
      "Look for triggers, rules or foreign keys that change rows of m_data.closed_deal",
    ],
  },
  {
    name: "a warehouse role without CREATE",
    isFirst: true,
    warehouse:
      "do $d$ begin execute format('revoke create on database %I from $loader', current_database()); end $d$",
    exit: 1,
    code: "permission_denied",
    says: [
      "Cannot set up schema marketing_data_service",
      "Grant CREATE on database",
    ],
  },
  {
    name: "a wrong password",
    environment: { DWH_DB_PASSWORD: "wrong-Passw0rd" },
    exit: 69,
    code: "authentication_failed",
    says: ["password authentication failed", "Check user and password"],
  },
  {
    name: "a wrong password of the source",
    environment: { OLIST_DB_PASSWORD: "wrong-Passw0rd" },
    exit: 69,
    code: "authentication_failed",
    says: ["olist", "password authentication failed"],
  },
  {
    name: "a database that does not exist",
    environment: { DWH_DB_NAME: 'no such "db"' },
    exit: 69,
    code: "database_missing",
    says: ['no such "db"', "(DWH_DB_NAME)"],
  },
  {
    name: "a refused connection to the warehouse",
    environment: { DWH_DB_PORT: "1" },
    exit: 69,
    code: "connection_failed",
    says: ["on 127.0.0.1:1 (dwh)", "Check that the server is up"],
  },
  {
    name: "a refused connection to the source",
    environment: { OLIST_DB_PORT: "1" },
    exit: 69,
    code: "connection_failed",
    says: ["on 127.0.0.1:1 (olist)", "Check that the server is up"],
  },
];

for (
  const {
    name,
    source,
    warehouse,
    isFirst,
    words = [],
    environment,
    exit,
    code,
    says,
  } of CASES
) {
  Deno.test(`load reports table, cause and remedy of ${name}`, async () => {
    await using db = await createDatabases({
      rows: ROWS,
      withHistory: !isFirst,
    });
    const named = (sql: string) =>
      sql.replaceAll("$reader", db.reader).replaceAll("$loader", db.loader);
    if (source) await db.source.unsafe(named(source));
    if (warehouse) await db.warehouse.unsafe(named(warehouse));
    const result = await runJson(["load", ...words], {
      ...db.environment,
      ...ONCE,
      ...environment,
    });
    assertEquals(result.code, exit, result.stdout + result.stderr);
    const { error } = result.json;
    for (const part of says) assertStringIncludes(error, part);
    const codes = result.json.code
      ? [result.json.code]
      : result.json.details.results.map((r: { code?: string }) => r.code);
    assert(codes.includes(code), `${codes} has no ${code}`);
    for (const secret of [PASSWORD, "wrong-Passw0rd"]) {
      assert(
        !(result.stdout + result.stderr).includes(secret),
        "a secret was printed",
      );
    }
  });
}

for (const words of [["load"], ["load", "--recreate"], ["verify"]]) {
  Deno.test(`${words.join(" ")} refuses a target that other tables inherit from, and keeps their rows`, async () => {
    await using db = await migratedDatabases({ rows: ROWS });
    await db.warehouse.unsafe(
      `${CLOSED_DEAL.replaceAll("$loader", db.loader)}
       insert into m_data.closed_deal (mql_id) values ('parent');
       create table m_data."Kept" () inherits (m_data.closed_deal);
       create table public.other () inherits (m_data.closed_deal);
       insert into m_data."Kept" (mql_id) values ('child');
       alter table m_data."Kept" owner to ${db.loader}; alter table public.other owner to ${db.loader}`,
    );
    const { code, stdout } = await runProgram(
      [...words, "--json"],
      db.environment,
    );
    assertEquals(code, 1, stdout);
    for (
      const part of [
        "target_inherited",
        `m_data.\\"Kept\\", public.other inherit from m_data.closed_deal in the warehouse`,
        `ALTER TABLE m_data.\\"Kept\\" NO INHERIT m_data.closed_deal; ALTER TABLE public.other NO INHERIT`,
      ]
    ) {
      assertStringIncludes(stdout, part);
    }
    const kept = await db.warehouse.unsafe(
      "select mql_id from m_data.closed_deal order by 1",
    );
    assertEquals(kept.map((row) => row.mql_id), ["child", "parent"]);
    await db.warehouse.unsafe(
      `alter table m_data."Kept" no inherit m_data.closed_deal;
       alter table public.other no inherit m_data.closed_deal`,
    );
    assertEquals((await runProgram(["load"], db.environment)).code, 0);
    const [row] = await db.warehouse.unsafe(
      `select (select count(*)::int from m_data."Kept") as kept, count(*)::int as loaded from m_data.closed_deal`,
    );
    assertEquals({ ...row }, { kept: 1, loaded: 20 });
  });
}

Deno.test("load reports a target locked by a writer after LOCK_TIMEOUT, and retries", async () => {
  await using db = await migratedDatabases({ rows: ROWS });
  assertEquals((await runProgram(["load"], db.environment)).code, 0);
  await using writer = db.connect("warehouse");
  await writer.unsafe(
    "begin; lock table m_data.closed_deal in row exclusive mode",
  );
  await db.source.unsafe(
    "update marketing.marketing_qualified_leads set origin = 'new'",
  );
  const { code, json } = await runJson(["load"], {
    ...db.environment,
    LOCK_TIMEOUT: "0.3",
    RETRY_ATTEMPTS: "2",
  });
  assertEquals(code, 1);
  const [deal, lead] = json.details.results;
  assertEquals([deal.code, deal.attempts], ["target_locked", 2]);
  assertMatch(
    deal.error,
    /m_data\.closed_deal in the warehouse is locked by another session: session \d+ \([^)]*\) holds RowExclusiveLock\. /,
  );
  assertEquals(lead.status, "success");
  await writer.unsafe("rollback");
  assertEquals((await runProgram(["load"], db.environment)).code, 0);
});

Deno.test("load reports the session that locks a table of the history", async () => {
  await using db = await migratedDatabases({ rows: ROWS });
  await using other = db.connect("warehouse");
  await other.unsafe(
    "begin; lock table marketing_data_service.run in access exclusive mode",
  );
  const { code, json } = await runJson(["load"], {
    ...db.environment,
    LOCK_TIMEOUT: "1",
    RETRY_ATTEMPTS: "1",
  });
  assertEquals([code, json.code], [75, "history_locked"]);
  assertMatch(
    json.error,
    /^dwh: Cannot use the table marketing_data_service\.run: session \d+ \([^)]*\) holds AccessExclusiveLock\. Wait until /,
  );
});

Deno.test("load fails only the table that DDL locks in the source", async () => {
  await using db = await migratedDatabases({ rows: ROWS });
  await using ddl = db.connect("source");
  const [{ pid }] = await ddl.unsafe(
    "select pg_backend_pid() as pid",
  ) as unknown as [{ pid: number }];
  await ddl.unsafe(
    "set application_name = 'a long ALTER'; begin; lock table marketing.closed_deals in access exclusive mode",
  );
  const { code, json } = await runJson(["load"], {
    ...db.environment,
    LOCK_TIMEOUT: "0.3",
  });
  assertEquals(code, 1);
  const [deal, lead] = json.details.results;
  assertEquals([deal.code, deal.attempts], ["source_locked", 3]);
  assertStringIncludes(deal.error, `session ${pid} (`);
  assertStringIncludes(deal.error, "a long ALTER");
  assertEquals(lead.status, "success");
  const alone = await runJson(["load", "--table", "closed_deal"], {
    ...db.environment,
    LOCK_TIMEOUT: "0.3",
    RETRY_ATTEMPTS: "1",
  });
  assertEquals(alone.code, 1);
  assertEquals(alone.json.details.results[0].code, "source_locked");
});

Deno.test("load retries a locked source table, and loads both tables when the lock is released", async () => {
  await using db = await migratedDatabases({ rows: ROWS });
  await using ddl = db.connect("source");
  await ddl.unsafe(
    "begin; lock table marketing.closed_deals in access exclusive mode",
  );
  const running = runJson(["load"], {
    ...db.environment,
    LOCK_TIMEOUT: "0.5",
    RETRY_ATTEMPTS: "3",
    RETRY_DELAY: "0.5",
  });
  const waits = async () => {
    const [row] = await db.source.unsafe(
      `select 1 as x from pg_locks where not granted and relation = 'marketing.closed_deals'::regclass
         and database = (select oid from pg_database where datname = current_database())`,
    );
    return row !== undefined;
  };
  await until("the load waits for the lock", waits);
  await until("the first attempt is over", async () => !await waits());
  await ddl.unsafe("rollback");
  const { code, json, stderr } = await running;
  assertEquals(code, 0, stderr);
  assertEquals(json.status, "success");
  assertStringIncludes(
    stderr,
    "Retrying after a transient failure: Cannot load closed_deal",
  );
});

Deno.test("load copies a source row that changes during the load with the next load", async () => {
  await using db = await migratedDatabases({ rows: ROWS });
  assertEquals((await runProgram(["load"], db.environment)).code, 0);
  // The load has its snapshot and waits until the writer of the target has ended.
  await using writer = db.connect("warehouse");
  await writer.unsafe(
    "begin; lock table m_data.closed_deal in row exclusive mode",
  );
  const running = runJson(["load"], db.environment);
  await until("the load waits for the lock", async () => {
    const [row] = await db.warehouse.unsafe(
      "select 1 as x from pg_locks where not granted and relation = 'm_data.closed_deal'::regclass",
    );
    return row !== undefined;
  });
  await db.source.unsafe(
    "update marketing.closed_deals set has_gtin = 'later'",
  );
  await writer.unsafe("rollback");
  const { code, json } = await running;
  assertEquals(code, 0);
  assertEquals(json.results.results[0].mode, "unchanged");
  const next = await runJson(["load"], db.environment);
  assertEquals(next.json.results.results[0].rows_inserted, 20);
  assertEquals((await runProgram(["verify"], db.environment)).code, 0);
});

Deno.test("a TRUNCATE of the source waits for the load, so no empty table is loaded", async () => {
  await using db = await migratedDatabases({ rows: ROWS });
  assertEquals((await runProgram(["load"], db.environment)).code, 0);
  await using writer = db.connect("warehouse");
  await writer.unsafe(
    "begin; lock table m_data.closed_deal in row exclusive mode",
  );
  const running = runJson(["load", "--mode", "full"], db.environment);
  await until("the load waits for the lock", async () => {
    const [row] = await db.warehouse.unsafe(
      "select 1 as x from pg_locks where not granted and relation = 'm_data.closed_deal'::regclass",
    );
    return row !== undefined;
  });
  const truncated = db.source.unsafe("truncate marketing.closed_deals").then(
    () => {},
  );
  await writer.unsafe("rollback");
  const { json } = await running;
  assertEquals(json.results.results[0].records_loaded, 20);
  await truncated;
});

Deno.test("load reports busy when another load holds the lock for longer than LOCK_TIMEOUT", async () => {
  await using db = await migratedDatabases({ rows: ROWS });
  assertEquals((await runProgram(["load"], db.environment)).code, 0);
  await using other = db.connect("warehouse");
  await other.unsafe(
    "begin; lock table marketing_data_service.load_lock in exclusive mode",
  );
  const { code, json } = await runJson(["load"], {
    ...db.environment,
    LOCK_TIMEOUT: "0.3",
  });
  assertEquals(code, 75);
  assertEquals(json.code, "busy");
  const rows = await db.warehouse.unsafe(
    `select state, code, (select count(*)::int from marketing_data_service.event e where e.run_id = run.id) as events
     from marketing_data_service.run order by seq desc limit 1`,
  );
  assertEquals({ ...rows[0] }, { state: "failed", code: "busy", events: 1 });
});

Deno.test("load refuses a warehouse that a newer version has migrated", async () => {
  await using db = await migratedDatabases({ rows: ROWS });
  assertEquals((await runProgram(["load"], db.environment)).code, 0);
  await db.warehouse.unsafe(
    "insert into marketing_data_service.migration (version, name) values (999, 'of the future')",
  );
  const { code, json } = await runJson(["load"], db.environment);
  assertEquals(code, 78);
  assertEquals(json.code, "schema_too_new");
});

Deno.test("runs and events report a remedy before the first load", async () => {
  await using db = await createDatabases({ rows: ROWS });
  for (const command of ["runs", "events"]) {
    const { code, json } = await runJson([command], db.environment);
    assertEquals([code, json.code], [1, "history_missing"]);
    assertStringIncludes(json.error, "no load has created it in database");
    assertStringIncludes(json.error, "schema ensure");
  }
  assertEquals(
    (await runProgram(["schema", "ensure"], db.environment)).code,
    0,
  );
  assertEquals((await runJson(["runs"], db.environment)).json, { runs: [] });
});

Deno.test("health reports each database, and exits with 69 when one is unreachable", async () => {
  await using db = await migratedDatabases({ rows: ROWS });
  const well = await runJson(["health"], db.environment);
  assertEquals(well.code, 0);
  assertEquals(well.json.status, "healthy");
  const ill = await runJson(["health"], {
    ...db.environment,
    OLIST_DB_PORT: "1",
  });
  assertEquals(ill.code, 69);
  assertEquals(ill.json.status, "unhealthy");
  assertEquals(ill.json.checks.dwh.status, "healthy");
  assertMatch(ill.json.checks.olist.error, /Check that the server is up/);
});

Deno.test("load creates no schema of targets when the source is unreachable", async () => {
  await using db = await migratedDatabases({ rows: ROWS });
  const { code } = await runJson(["load"], {
    ...db.environment,
    OLIST_DB_PORT: "1",
  });
  assertEquals(code, 69);
  const found = await db.warehouse.unsafe(
    "select from pg_namespace where nspname = 'm_data'",
  );
  assertEquals(found.length, 0);
});

Deno.test("load reports an unwritable event file before it begins", async () => {
  await using db = await migratedDatabases({ rows: ROWS });
  const { code, json } = await runJson(["load"], {
    ...db.environment,
    EVENT_PUBLISHER_TYPE: "file",
    EVENT_FILE: "/no/such/folder/events.jsonl",
  });
  assertEquals(code, 78);
  assertEquals(json.code, "event_file_unwritable");
});
