import { assertEquals, assertStringIncludes } from "@std/assert";
import { compareTable, compareTables } from "../../src/sync/compare_tables.ts";
import type { LoadEvent } from "../../src/runs/event.ts";
import { load } from "../../src/load/load.ts";
import type { AppContext } from "../../src/context.ts";
import { MARKETING_TABLES } from "../../src/tables/marketing.ts";
import { proxied } from "../support/phases.ts";
import { skip } from "../support/measure.ts";
import {
  ALL,
  contextOf,
  type Databases,
  migratedDatabases,
} from "../support/databases.ts";
import { until } from "../support/server.ts";

const COLUMNS = "mql_id, first_contact_date, landing_page_id, origin";

/**
 * Creates a source of leads with `sql` over `hidden.raw`, a table that the reader
 * cannot access.
 */
async function withLeadsAs(db: Databases, sql: string): Promise<void> {
  await db.source.unsafe(
    `create schema hidden;
     alter table marketing.marketing_qualified_leads set schema hidden;
     alter table hidden.marketing_qualified_leads rename to raw;
     revoke all on hidden.raw from ${db.reader};
     ${sql};
     grant select on marketing.marketing_qualified_leads to ${db.reader}`,
  );
}

/** Returns the leads and deals of the warehouse, as `origin` and number. */
async function loaded(db: Databases): Promise<string> {
  const rows = await db.warehouse.unsafe(
    `select origin, count(*)::int as n from m_data.marketing_qualified_lead group by 1 order by 1`,
  );
  return rows.map(({ origin, n }) => `${n} ${origin}`).join(", ");
}

/** Starts a load that has its snapshot and its readers, and then waits until it is resumed. */
async function waitingLoad(db: Databases, context: AppContext) {
  const writer = db.connect("warehouse");
  await writer.unsafe(
    "begin; lock table m_data.marketing_qualified_lead in row exclusive mode",
  );
  const event = load(context, "cli", ALL);
  await until("the load waits for its target", async () => {
    const rows = await db.warehouse.unsafe(
      `select from pg_locks where not granted
       and relation = 'm_data.marketing_qualified_lead'::regclass`,
    );
    return rows.length > 0;
  });
  return {
    async letGo(): Promise<LoadEvent> {
      await writer.unsafe("rollback");
      await writer.end({ timeout: 1 });
      return await event;
    },
  };
}

/** Starts a change of the source. Waits until it is done, or until it waits for the load. */
async function change(db: Databases, sql: string) {
  const other = db.connect("source");
  let isOver = false;
  const finished = other.unsafe(sql).then(() => {})
    .finally(async () => {
      isOver = true;
      await other.end({ timeout: 1 });
    });
  finished.catch(() => {});
  await until("the change is made or waits", async () =>
    isOver ||
    (await db.source.unsafe(
        `select from pg_locks where not granted
         and database = (select oid from pg_database where datname = current_database())`,
      )).length > 0);
  return { finished };
}

const VIEW =
  `create view marketing.marketing_qualified_leads as select ${COLUMNS} from hidden.raw`;
const REFILL =
  `begin; truncate hidden.raw; insert into hidden.raw (origin) values ('new'); commit`;
const REFRESH =
  `update hidden.raw set origin = 'new'; refresh materialized view hidden.cache`;

/** Sources other than tables, changes under them after the snapshot, and the result of the next load. */
const CASES: readonly {
  readonly source: string;
  readonly sql: string;
  readonly change: string;
  readonly sql2: string;
  readonly next: string;
}[] = [
  {
    source: "a view",
    sql: VIEW,
    change: "TRUNCATE and INSERT",
    sql2: REFILL,
    next: "1 new",
  },
  {
    source: "a view",
    sql: VIEW,
    change: "a rewriting ALTER",
    sql2: "alter table hidden.raw add column note float default random()",
    next: "20 old",
  },
  {
    source: "a view",
    sql: VIEW,
    change: "VACUUM FULL",
    sql2: "vacuum full hidden.raw",
    next: "20 old",
  },
  {
    source: "a view",
    sql: VIEW,
    change: "another view in its place",
    sql2: `create or replace view marketing.marketing_qualified_leads as
      select mql_id, first_contact_date, landing_page_id, 'new' as origin from hidden.raw`,
    next: "20 new",
  },
  {
    source: "a view over a view with a subquery",
    sql: `create view hidden.inner as select ${COLUMNS} from hidden.raw;
      create view marketing.marketing_qualified_leads as
        with chosen as (select * from hidden.inner where exists (select from hidden.raw))
        select * from chosen`,
    change: "TRUNCATE and INSERT",
    sql2: REFILL,
    next: "1 new",
  },
  {
    source: "a view over a partitioned table",
    sql:
      `create table hidden.parts (like hidden.raw) partition by list (origin);
      create table hidden.part partition of hidden.parts default;
      insert into hidden.parts table hidden.raw;
      create view marketing.marketing_qualified_leads as select ${COLUMNS} from hidden.parts`,
    change: "TRUNCATE and INSERT of a partition",
    sql2: REFILL.replaceAll("hidden.raw", "hidden.part"),
    next: "1 new",
  },
  {
    source: "a view over a table with a child",
    sql:
      `create table hidden.parent (like hidden.raw); alter table hidden.raw inherit hidden.parent;
      create view marketing.marketing_qualified_leads as select ${COLUMNS} from hidden.parent`,
    change: "TRUNCATE and INSERT of the child",
    sql2: REFILL,
    next: "1 new",
  },
  {
    source: "a materialized view",
    sql:
      `create materialized view marketing.marketing_qualified_leads as select * from hidden.raw`,
    change: "REFRESH MATERIALIZED VIEW",
    sql2: REFRESH.replace(
      "hidden.cache",
      "marketing.marketing_qualified_leads",
    ),
    next: "20 new",
  },
  {
    source: "a view over a materialized view",
    sql: `create materialized view hidden.cache as select * from hidden.raw;
      create view marketing.marketing_qualified_leads as select * from hidden.cache`,
    change: "REFRESH MATERIALIZED VIEW",
    sql2: REFRESH,
    next: "20 new",
  },
  {
    source: "a view whose owner may read two columns",
    sql:
      `create view marketing.marketing_qualified_leads as select ${COLUMNS} from hidden.raw;
      create role $owner; grant usage on schema hidden to $owner; grant create on schema marketing to $owner;
      grant select (mql_id, first_contact_date, landing_page_id, origin) on hidden.raw to $owner;
      alter view marketing.marketing_qualified_leads owner to $owner`,
    change: "TRUNCATE and INSERT",
    sql2: REFILL,
    next: "1 new",
  },
  {
    source: "a view that reads with the rights of its user",
    sql:
      `create view marketing.marketing_qualified_leads with (security_invoker = true)
        as select ${COLUMNS} from hidden.raw;
      grant usage on schema hidden to $reader; grant select on hidden.raw to $reader`,
    change: "TRUNCATE and INSERT",
    sql2: REFILL,
    next: "1 new",
  },
];

for (const { source, sql, change: what, sql2, next } of CASES) {
  Deno.test(`${what} under ${source} waits for the load`, async () => {
    await using db = await migratedDatabases({ rows: { deals: 5, leads: 20 } });
    const owner = `${db.reader}_owner`;
    if (sql.includes("security_invoker") && await versionOf(db) < 15) {
      return skip(source, "PostgreSQL 14 has no such views");
    }
    try {
      await db.source.unsafe(
        "update marketing.marketing_qualified_leads set origin = 'old'",
      );
      await withLeadsAs(
        db,
        sql.replaceAll("$owner", owner).replaceAll("$reader", db.reader),
      );
      await using context = contextOf(db);
      const first = await load(context, "cli", ALL);
      assertEquals(first.status, "success", JSON.stringify(first));
      // Otherwise a load of the old content would look like a load of the snapshot.
      await db.warehouse.unsafe(
        "delete from m_data.marketing_qualified_lead where ctid < '(0,8)'",
      );
      const waiting = await waitingLoad(db, context);
      const changed = await change(db, sql2);
      const event = await waiting.letGo();
      assertEquals(event.status, "success", JSON.stringify(event));
      assertEquals(await loaded(db), "20 old");
      assertEquals(
        event.status === "success" &&
          event.results.results.flatMap((r) => r.warnings),
        [],
      );
      await changed.finished;
      assertEquals((await load(context, "cli", ALL)).status, "success");
      assertEquals(await loaded(db), next);
    } finally {
      if (sql.includes("$owner")) {
        await db.source.unsafe(`drop owned by ${owner} cascade`);
        await db.source.unsafe(`drop role ${owner}`);
      }
    }
  });
}

async function versionOf(db: Databases): Promise<number> {
  const [row] = await db.source.unsafe("show server_version_num");
  return Math.floor(Number(row!.server_version_num) / 10_000);
}

for (const kind of ["view", "materialized view"]) {
  Deno.test(`load lets DDL on a ${kind} pass, and takes a new snapshot`, async () => {
    await using db = await migratedDatabases({ rows: { deals: 5, leads: 20 } });
    await db.source.unsafe(
      "update marketing.marketing_qualified_leads set origin = 'old'",
    );
    await withLeadsAs(
      db,
      `create materialized view hidden.cache as select * from hidden.raw;
       create ${kind} marketing.marketing_qualified_leads as select * from hidden.${
        kind === "view" ? "cache" : "raw"
      }`,
    );
    await using network = proxied(db, { source: { latencyMilliseconds: 20 } });
    await using context = contextOf(
      { ...db, environment: network.environment },
      { LOCK_TIMEOUT: "60" },
    );
    const running = load(context, "cli", ALL);
    // The load has its locks and its snapshot when a reader starts.
    await until(
      "a reader dials",
      () => Promise.resolve(network.source.dialled > 1),
    );
    network.source.faults = { stalled: ["up", "down"] };
    const changed = await change(
      db,
      kind === "view" ? REFRESH : REFRESH.replace(
        "hidden.cache",
        "marketing.marketing_qualified_leads",
      ),
    );
    network.source.faults = {};
    const event = await running;
    assertEquals(event.status, "success", JSON.stringify(event));
    await changed.finished;
    assertEquals(await loaded(db), "20 new");
  });
}

for (const kind of ["table", "view", "materialized view"] as const) {
  Deno.test(`load reads a ${kind} in its snapshot after the session of the snapshot has ended`, async () => {
    await using db = await migratedDatabases({ rows: { deals: 5, leads: 20 } });
    await db.source.unsafe(
      "update marketing.marketing_qualified_leads set origin = 'old'",
    );
    if (kind === "view") await withLeadsAs(db, VIEW);
    if (kind === "materialized view") {
      await withLeadsAs(
        db,
        "create materialized view marketing.marketing_qualified_leads as select * from hidden.raw",
      );
    }
    await using context = contextOf(db);
    assertEquals((await load(context, "cli", ALL)).status, "success");
    await db.warehouse.unsafe(
      "delete from m_data.marketing_qualified_lead where ctid < '(0,8)'",
    );
    const waiting = await waitingLoad(db, context);
    // The first session.
    await db.source.unsafe(
      `select pg_terminate_backend(pid, 5000) from pg_stat_activity
       where datname = current_database() and application_name like 'marketing-data-service%'
       order by backend_start limit 1`,
    );
    const changed = await change(
      db,
      kind === "table"
        ? REFILL.replaceAll("hidden.raw", "marketing.marketing_qualified_leads")
        : kind === "view"
        ? REFILL
        : REFRESH.replace(
          "hidden.cache",
          "marketing.marketing_qualified_leads",
        ),
    );
    const event = await waiting.letGo();
    assertEquals(event.status, "success", JSON.stringify(event));
    assertEquals(await loaded(db), "20 old");
    await changed.finished;
  });
}

Deno.test("load fails only the view whose table is locked", async () => {
  await using db = await migratedDatabases({ rows: { deals: 5, leads: 20 } });
  await withLeadsAs(db, VIEW);
  await using context = contextOf(db, { LOCK_TIMEOUT: "0.3" });
  await using ddl = db.connect("source");
  await ddl.unsafe(
    "set application_name = 'a long ALTER'; begin; lock table hidden.raw in access exclusive mode",
  );
  const event = await load(context, "cli", ALL);
  assertEquals(event.status, "failure");
  if (event.status !== "failure") return;
  const [deal, lead] = event.details.results;
  assertEquals(deal!.status, "success");
  assertEquals(lead!.status === "failure" && lead!.code, "source_locked");
  assertStringIncludes(event.error, "or a relation under it for more than");
  assertStringIncludes(event.error, "a long ALTER");
  await ddl.unsafe("rollback");
  assertEquals((await load(context, "cli", ALL)).status, "success");
});

const FOREIGN =
  `create extension postgres_fdw; create server elsewhere foreign data wrapper postgres_fdw
    options (host '127.0.0.1', port '1', use_remote_estimate 'false');
  create user mapping for public server elsewhere;
  create foreign table hidden.far (mql_id text, first_contact_date date, landing_page_id text, origin text)
    server elsewhere;`;

for (
  const { source, sql, code, says } of [
    {
      source: "a foreign table",
      sql: `${FOREIGN} alter table hidden.far set schema marketing;
        alter table marketing.far rename to marketing_qualified_leads`,
      code: "source_foreign",
      says: "marketing.marketing_qualified_leads is a foreign table",
    },
    {
      source: "a view over a foreign table",
      sql:
        `${FOREIGN} create view marketing.marketing_qualified_leads as select * from hidden.far`,
      code: "source_foreign",
      says: "reads the foreign table hidden.far",
    },
    {
      source: "a foreign partition",
      sql:
        `${FOREIGN} create table marketing.marketing_qualified_leads (like hidden.far) partition by list (origin);
        alter table marketing.marketing_qualified_leads attach partition hidden.far default`,
      code: "source_foreign",
      says: "reads the foreign table hidden.far",
    },
    {
      source: "a foreign child",
      sql: `${FOREIGN} alter table hidden.raw set schema marketing;
        alter table marketing.raw rename to marketing_qualified_leads;
        alter foreign table hidden.far inherit marketing.marketing_qualified_leads`,
      code: "source_foreign",
      says: "reads the foreign table hidden.far",
    },
    {
      source: "a materialized view that was never filled",
      sql:
        "create materialized view marketing.marketing_qualified_leads as select * from hidden.raw with no data",
      code: "source_unpopulated",
      says: "REFRESH MATERIALIZED VIEW marketing.marketing_qualified_leads",
    },
    {
      source: "a view over a materialized view that was never filled",
      sql:
        `create materialized view hidden.cache as select * from hidden.raw with no data;
        create view marketing.marketing_qualified_leads as select * from hidden.cache`,
      code: "source_unpopulated",
      says: "REFRESH MATERIALIZED VIEW hidden.cache",
    },
  ]
) {
  Deno.test(`load and verify refuse ${source} with a remedy, and process the other table`, async () => {
    await using db = await migratedDatabases({ rows: { deals: 5, leads: 20 } });
    const [found] = await db.source.unsafe(
      "select from pg_available_extensions where name = 'postgres_fdw'",
    );
    if (!found && sql.includes("postgres_fdw")) {
      return skip(source, "the server has no extension postgres_fdw");
    }
    await withLeadsAs(db, sql);
    await using context = contextOf(db);
    const event = await load(context, "cli", ALL);
    assertEquals(event.status, "failure");
    if (event.status !== "failure") return;
    const [deal, lead] = event.details.results;
    assertEquals(deal!.status, "success");
    assertEquals(lead!.status === "failure" && lead!.code, code);
    assertStringIncludes(event.error, says);
    const [, compared] = await compareTables(
      context.config,
      MARKETING_TABLES,
      undefined,
      compareTable,
    );
    assertEquals(compared && "error" in compared && compared.error.code, code);
  });
}

Deno.test("load copies a view of only the local partitions of a table", async () => {
  await using db = await migratedDatabases({ rows: { deals: 5, leads: 20 } });
  const [found] = await db.source.unsafe(
    "select from pg_available_extensions where name = 'postgres_fdw'",
  );
  if (!found) return skip("a local part", "the server has no postgres_fdw");
  await db.source.unsafe(
    "update marketing.marketing_qualified_leads set origin = 'old'",
  );
  await withLeadsAs(
    db,
    `${FOREIGN} create table hidden.parts (like hidden.far) partition by list (origin);
     alter table hidden.parts attach partition hidden.far for values in ('far');
     alter table hidden.parts attach partition hidden.raw for values in ('old');
     create view marketing.marketing_qualified_leads as select * from hidden.parts where origin = 'old'`,
  );
  await using context = contextOf(db);
  assertEquals((await load(context, "cli", ALL)).status, "success");
  assertEquals(await loaded(db), "20 old");
});

Deno.test("load copies a materialized view of a foreign table", async () => {
  await using db = await migratedDatabases({ rows: { deals: 5, leads: 20 } });
  const [found] = await db.source.unsafe(
    "select from pg_available_extensions where name = 'postgres_fdw'",
  );
  if (!found) return skip("a copy", "the server has no postgres_fdw");
  await db.source.unsafe(
    "update marketing.marketing_qualified_leads set origin = 'old'",
  );
  const { hostname, port, username, password } = new URL(
    Deno.env.get("TEST_DATABASE_URL")!,
  );
  await withLeadsAs(
    db,
    `create extension postgres_fdw; create server itself foreign data wrapper postgres_fdw
       options (host '${hostname}', port '${
      port || 5432
    }', dbname '${db.environment.OLIST_DB_NAME}');
     create user mapping for current_user server itself options (user '${
      decodeURIComponent(username) || "postgres"
    }', password '${decodeURIComponent(password)}');
     create foreign table hidden.far (mql_id text, first_contact_date date, landing_page_id text, origin text)
       server itself options (schema_name 'hidden', table_name 'raw');
     create materialized view marketing.marketing_qualified_leads as
       select * from hidden.far with no data`,
  );
  await db.source.unsafe(
    "refresh materialized view marketing.marketing_qualified_leads",
  );
  await using context = contextOf(db);
  assertEquals((await load(context, "cli", ALL)).status, "success");
  assertEquals(await loaded(db), "20 old");
});

Deno.test("load takes a new snapshot when the source schema is replaced mid-load", async () => {
  await using db = await migratedDatabases({ rows: { deals: 5, leads: 20 } });
  await using context = contextOf(db);
  assertEquals((await load(context, "cli", ALL)).status, "success");
  const waiting = await waitingLoad(db, context);
  await db.source.unsafe(
    `create schema fresh; grant usage on schema fresh to ${db.reader};
     create table fresh.marketing_qualified_leads (like marketing.marketing_qualified_leads);
     create table fresh.closed_deals (like marketing.closed_deals);
     insert into fresh.marketing_qualified_leads (origin) values ('new');
     grant select on all tables in schema fresh to ${db.reader};
     alter schema marketing rename to before; alter schema fresh rename to marketing`,
  );
  assertEquals((await waiting.letGo()).status, "success");
  assertEquals(await loaded(db), "1 new");
});

Deno.test("load reports source_table_missing when the schema is renamed mid-load", async () => {
  await using db = await migratedDatabases({ rows: { deals: 5, leads: 20 } });
  await using context = contextOf(db);
  assertEquals((await load(context, "cli", ALL)).status, "success");
  const waiting = await waitingLoad(db, context);
  await db.source.unsafe("alter schema marketing rename to before");
  const event = await waiting.letGo();
  assertEquals(event.status, "failure");
  assertEquals(
    event.status === "failure" &&
      event.details.results.map((r) => r.status === "failure" && r.code),
    ["source_table_missing", "source_table_missing"],
  );
});

Deno.test("load never copies a partition that is attached mid-load without the rest of its transaction", async () => {
  await using db = await migratedDatabases({ rows: { deals: 5, leads: 20 } });
  await db.source.unsafe(
    "update marketing.marketing_qualified_leads set origin = 'old'",
  );
  await withLeadsAs(
    db,
    `create table marketing.marketing_qualified_leads (like hidden.raw) partition by list (origin);
     alter table marketing.marketing_qualified_leads attach partition hidden.raw for values in ('old');
     create table hidden.more (like hidden.raw); insert into hidden.more (origin) values ('new')`,
  );
  await using context = contextOf(db);
  assertEquals((await load(context, "cli", ALL)).status, "success");
  const waiting = await waitingLoad(db, context);
  await db.source.unsafe(
    `alter table marketing.marketing_qualified_leads attach partition hidden.more for values in ('new');
     update marketing.closed_deals set has_gtin = 'new'`,
  );
  assertEquals((await waiting.letGo()).status, "success");
  assertEquals(await loaded(db), "1 new, 20 old");
  const [row] = await db.warehouse.unsafe(
    "select count(*)::int as n from m_data.closed_deal where has_gtin = 'new'",
  );
  assertEquals(row!.n, 5);
});
