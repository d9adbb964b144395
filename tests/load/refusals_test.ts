import {
  assert,
  assertEquals,
  assertRejects,
  assertStringIncludes,
} from "@std/assert";
import { startPostgres } from "../support/own_server.ts";
import { parseConfig } from "../../src/config/config.ts";
import { Session } from "../../src/postgres/session.ts";
import {
  openWhenFree,
  SpareSessions,
} from "../../src/postgres/spare_sessions.ts";
import { asServiceError } from "../../src/errors.ts";
import { connectAs, createDatabases } from "../support/databases.ts";
import { spawnProgram } from "../support/program.ts";
import { runJson, runProgram } from "../support/program_here.ts";
import { until } from "../support/server.ts";

const ROWS = { deals: 20, leads: 20 };
const ONCE = { RETRY_ATTEMPTS: "1" };
const CONNECTION = {
  applicationName: "free",
  connectTimeoutSeconds: 10,
  stallTimeoutSeconds: 60,
};
const M_DATA = "create schema m_data authorization $loader;";
const LEAD = `${M_DATA} create table m_data.marketing_qualified_lead (
  mql_id text, first_contact_date timestamptz, landing_page_id text, origin text);
  insert into m_data.marketing_qualified_lead values ('old');
  alter table m_data.marketing_qualified_lead owner to $loader;`;

interface Refusal {
  readonly name: string;
  /** SQL for a superuser in another database. Names: `$source`, `$warehouse`, `$reader`, `$loader`. */
  readonly admin?: string;
  readonly source?: string;
  readonly warehouse?: string;
  readonly environment?: Record<string, string>;
  readonly exit: number;
  readonly code: string;
  readonly says: readonly string[];
}

const REFUSALS: readonly Refusal[] = [
  {
    name: "revoked CONNECT on the warehouse",
    admin: "revoke connect on database $warehouse from public",
    exit: 69,
    code: "connection_forbidden",
    says: ["dwh: ", "GRANT CONNECT ON DATABASE $warehouse TO $loader"],
  },
  {
    name: "revoked CONNECT on the source",
    admin: "revoke connect on database $source from public",
    exit: 69,
    code: "connection_forbidden",
    says: ["olist: ", "GRANT CONNECT ON DATABASE $source TO $reader"],
  },
  {
    name: "a database that accepts no connections",
    admin: "alter database $warehouse with allow_connections false",
    exit: 69,
    code: "connection_forbidden",
    says: ["ALTER DATABASE $warehouse WITH ALLOW_CONNECTIONS true"],
  },
  {
    name: "the connection limit of a role",
    admin: "alter role $reader connection limit 0",
    exit: 69,
    code: "too_many_connections",
    says: [
      "ALTER ROLE $reader CONNECTION LIMIT",
      "A load needs up to one connection to this server, and one more for each table",
    ],
  },
  {
    name: "the connection limit of a database",
    admin: "alter database $warehouse connection limit 0",
    exit: 69,
    code: "too_many_connections",
    says: [
      "ALTER DATABASE $warehouse CONNECTION LIMIT",
      "A load needs up to two connections to this server, and one more for each table",
    ],
  },
  {
    name: "a role without LOGIN",
    admin: "alter role $loader nologin",
    exit: 69,
    code: "authentication_failed",
    says: ["ALTER ROLE $loader LOGIN"],
  },
  {
    name: "row-level security under a source view",
    source: `alter table marketing.closed_deals rename to deals;
      create view marketing.closed_deals as select * from marketing.deals;
      alter table marketing.deals owner to $reader;
      alter view marketing.closed_deals owner to $reader;
      alter table marketing.deals enable row level security;
      alter table marketing.deals force row level security`,
    exit: 1,
    code: "permission_denied",
    says: ["Cannot load closed_deal: olist: ", "BYPASSRLS"],
  },
  {
    name: "a warehouse role whose transactions are read-only",
    admin: "alter role $loader set default_transaction_read_only = on",
    exit: 69,
    code: "read_only",
    says: [
      "dwh: The warehouse is read-only: default_transaction_read_only is on",
      "default_transaction_read_only off",
      "DWH_DB_HOST",
    ],
  },
  {
    name: "a time zone that the server does not know",
    environment: { LOAD_TIMEZONE: "AST" },
    exit: 78,
    code: "configuration",
    says: [`LOAD_TIMEZONE "AST" is unknown to database`, "(olist)"],
  },
  {
    name: "a missing host with TLS words in its name",
    environment: {
      DWH_DB_HOST: "ssl-tls-certificate-handshake.invalid",
      DWH_DB_SSLMODE: "verify-full",
    },
    exit: 69,
    code: "connection_failed",
    says: ["Check that the server is up"],
  },
  {
    name: "a server error with a hint",
    warehouse: `${LEAD}
      create function public.refuse() returns trigger language plpgsql as $f$
        begin raise exception 'no rows today' using hint = 'Come back on Monday'; end $f$;
      create trigger refuse before insert on m_data.marketing_qualified_lead
        for each row execute function public.refuse()`,
    exit: 1,
    code: "database_error",
    says: [
      "no rows today (PL/pgSQL function",
      "Correct the rows in the source, or the trigger or function of the warehouse",
      "The server's hint: Come back on Monday.",
    ],
  },
  {
    name: "a trigger that reads a table without the privilege",
    warehouse: `${LEAD} create table public.secret ();
      create function public.read() returns trigger language plpgsql as $f$ begin perform from public.secret; return new; end $f$;
      create trigger read before insert on m_data.marketing_qualified_lead for each row execute function public.read()`,
    exit: 1,
    code: "permission_denied",
    says: [
      "dwh: permission denied for table secret. Grant role $loader the missing privilege. A load needs CREATE on database $warehouse or ownership",
    ],
  },
];

for (
  const { name, admin, source, warehouse, environment, exit, code, says }
    of REFUSALS
) {
  Deno.test(`load names cause and remedy: ${name}`, async () => {
    await using db = await createDatabases({ rows: ROWS });
    const named = (sql: string) =>
      sql
        .replaceAll("$source", `"${db.environment.OLIST_DB_NAME}"`)
        .replaceAll("$warehouse", `"${db.environment.DWH_DB_NAME}"`)
        .replaceAll("$reader", `"${db.reader}"`)
        .replaceAll("$loader", `"${db.loader}"`);
    if (source) await db.source.unsafe(named(source));
    if (warehouse) await db.warehouse.unsafe(named(warehouse));
    if (admin) {
      const url = new URL(Deno.env.get("TEST_DATABASE_URL")!);
      const client = connectAs(url, "postgres", 1);
      await client.unsafe(named(admin));
      await client.end({ timeout: 1 });
    }
    const { code: exitCode, json, stdout, stderr } = await runJson(["load"], {
      ...db.environment,
      ...ONCE,
      ...environment,
    });
    const codes = json.code
      ? [json.code]
      : json.details.results.map((r: { code?: string }) => r.code);
    assertEquals(
      [exitCode, codes.find((c: string) => c !== undefined)],
      [exit, code],
      stdout + stderr,
    );
    for (const part of says) assertStringIncludes(json.error, named(part));
  });
}

for (
  const [limits, words, environment] of [
    [{ olist: 3, dwh: 4 }, "than its remedy says", {}],
    [{ olist: 2, dwh: 4 }, "from the source than two", {}],
    [{ olist: 2, dwh: 3 }, "than its remedy says with MAX_PARALLEL_TASKS=1", {
      MAX_PARALLEL_TASKS: "1",
    }],
  ] as const
) {
  Deno.test(`load needs no more connections ${words}`, async () => {
    await using db = await createDatabases({
      rows: { deals: 300, leads: 300 },
    });
    await db.source.unsafe(
      `alter role "${db.reader}" connection limit ${limits.olist}`,
    );
    await db.warehouse.unsafe(
      `alter role "${db.loader}" connection limit ${limits.dwh}`,
    );
    for (const words of [["load"], ["load", "--mode", "full"], ["verify"]]) {
      // The server counts the backends of the command before until they have ended.
      await until("no connection is open", async () => {
        const [row] = await db.source.unsafe(
          `select count(*)::int as count from pg_stat_activity where usename in ('${db.reader}', '${db.loader}')`,
        );
        return row!.count === 0;
      });
      const { code, stderr } = await runProgram(words, {
        ...db.environment,
        ...ONCE,
        ...environment,
      });
      assertEquals(code, 0, stderr);
    }
  });
}

Deno.test("SpareSessions.take() leaves out sessions that could not log in or have ended", async () => {
  await using db = await createDatabases({});
  const { olist } = parseConfig(db.environment, Deno.readTextFileSync);
  const open = () => Session.open(olist, CONNECTION);
  const spare = new SpareSessions();
  const ended = await open();
  spare.add(Promise.reject(new Error("refused")));
  spare.add(ended);
  await db.source.unsafe(`select pg_terminate_backend(${ended.pid})`);
  await ended.ended;
  assertEquals(await spare.take(), undefined);
  const [one, other] = [await open(), await open()];
  spare.add(one);
  assertEquals(await spare.take(), one);
  spare.add(one);
  spare.add(other);
  await spare.close();
  assertEquals([one, other].filter(({ failure }) => !failure), []);
  assertEquals(await spare.take(), undefined);
});

Deno.test("openWhenFree() waits for a session that it does not know", async () => {
  await using db = await createDatabases({});
  await db.source.unsafe(`alter role "${db.reader}" connection limit 1`);
  const { olist } = parseConfig(db.environment, Deno.readTextFileSync);
  const held = await Session.open(olist, CONNECTION);
  let refusals = 0;
  await using _ = await openWhenFree(async () => {
    try {
      return await Session.open(olist, CONNECTION);
    } catch (error) {
      refusals++;
      void held.close();
      throw error;
    }
  }, () => []);
  assert(refusals > 0);
});

Deno.test("load retries while the server has no free connection, and ends with 69", async () => {
  const settings = {
    max_connections: "14",
    superuser_reserved_connections: "6",
  };
  await using warehouse = await startPostgres({ settings });
  await using db = await createDatabases({
    rows: ROWS,
    servers: {
      source: Deno.env.get("TEST_DATABASE_URL")!,
      warehouse: warehouse.url(),
    },
  });
  const taken: Session[] = [];
  const { dwh } = parseConfig(db.environment, Deno.readTextFileSync);
  const options = {
    applicationName: "taker",
    connectTimeoutSeconds: 10,
    stallTimeoutSeconds: 60,
  };
  const refused = await assertRejects(async () => {
    while (true) taken.push(await Session.open(dwh, options));
  });
  assertStringIncludes(String(refused), "remaining connection slots");
  try {
    const failed = await runJson(["load"], {
      ...db.environment,
      RETRY_ATTEMPTS: "2",
      RETRY_DELAY: "0",
    });
    assertEquals(
      [failed.code, failed.json.code],
      [69, "too_many_connections"],
      failed.stderr,
    );
    const process = spawnProgram(["load"], {
      ...db.environment,
      RETRY_ATTEMPTS: "6",
      RETRY_DELAY: "1",
    });
    const output = new Response(process.stdout).text();
    let log = "";
    const decoder = new TextDecoder();
    for await (const chunk of process.stderr) {
      log += decoder.decode(chunk);
      if (taken.length > 0 && log.includes("a transient failure")) {
        await Promise.all(taken.splice(0).map((session) => session.close()));
      }
    }
    const { code } = await process.status;
    assertEquals(code, 0, await output + log);
    assertEquals(taken.length, 0);
  } finally {
    await Promise.all(taken.map((session) => session.close()));
  }
});

Deno.test("load names max_locks_per_transaction when the lock table of the server is full", async () => {
  const settings = { max_locks_per_transaction: "10", max_connections: "12" };
  await using source = await startPostgres({ settings });
  await using warehouse = await startPostgres();
  await using db = await createDatabases({
    rows: ROWS,
    servers: { source: source.url(), warehouse: warehouse.url() },
  });
  await db.source.unsafe(
    `alter table marketing.closed_deals rename to deals;
     create table marketing.closed_deals (like marketing.deals) partition by list (seller_id);
     grant select on marketing.closed_deals to "${db.reader}"`,
  );
  // One transaction for each, because the lock table of the server is small.
  await db.source.unsafe(`do $d$ begin for part in 1..1500 loop
    execute format('create table marketing.part_%s partition of marketing.closed_deals for values in (%L)', part, part);
    commit; end loop; end $d$`);
  const { code, json } = await runJson(["load"], {
    ...db.environment,
    ...ONCE,
  });
  assertEquals(code, 1);
  const [deal] = json.details.results;
  assertEquals(deal.code, "out_of_resources");
  assertStringIncludes(deal.remedy, "max_locks_per_transaction");
});

Deno.test("Session.begin() reports a time zone that the warehouse does not know", async () => {
  await using db = await createDatabases({ withoutTables: true });
  const { dwh } = parseConfig({ ...db.environment }, () => "");
  await using session = await Session.open(dwh, {
    applicationName: "test",
    connectTimeoutSeconds: 5,
    stallTimeoutSeconds: 5,
  });
  const error = await session.begin({
    mode: "read committed",
    timezone: "AST",
    lockTimeoutSeconds: 1,
  }, "select 1 / 0").then(() => undefined, asServiceError);
  assertEquals(error?.code, "configuration");
  assertStringIncludes(error!.message, `"AST" is unknown to database`);
});
