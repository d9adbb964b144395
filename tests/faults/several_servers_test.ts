import {
  assert,
  assertEquals,
  assertMatch,
  assertRejects,
  assertStringIncludes,
} from "@std/assert";
import type { PostgresServer } from "../../demo/postgres.ts";
import { startPostgres } from "../support/own_server.ts";
import type { Environment } from "../../src/config/config.ts";
import { parseConfig } from "../../src/config/config.ts";
import { connectionOf } from "../../src/context.ts";
import { ServiceError } from "../../src/errors.ts";
import { connect } from "../../src/postgres/client.ts";
import { Pool } from "../../src/postgres/pool.ts";
import { Session } from "../../src/postgres/session.ts";
import { acquireLock } from "../../src/runs/lock.ts";
import { openSnapshot } from "../../src/sync/snapshot.ts";
import { connectAs, contextOf, type Sql } from "../support/databases.ts";
import { loadedDatabases } from "../support/fault_scene.ts";
import {
  authentication,
  HostileServer,
  join,
  message,
  type Misbehavior,
  READY,
  refuseTls,
} from "../support/hostile_server.ts";
import { Proxy } from "../support/proxy.ts";
import { runProgram } from "../support/program_here.ts";
import { copyFiles } from "../support/server_files.ts";
import { findFreePort, startServer, until } from "../support/server.ts";

const REPLICATION = [
  "host all all 127.0.0.1/32 trust",
  "host replication all 127.0.0.1/32 trust",
];

/** Makes `standby` a streaming standby of `primary`. */
async function follow(
  primary: PostgresServer,
  standby: PostgresServer,
): Promise<void> {
  await primary.stop();
  await standby.stop();
  await copyFiles(primary, standby);
  await Deno.writeTextFile(`${standby.dataDirectory}/standby.signal`, "");
  await Deno.writeTextFile(
    `${standby.dataDirectory}/postgresql.conf`,
    `primary_conninfo = 'host=${primary.host} port=${primary.port} user=postgres'\n`,
    { append: true },
  );
  await primary.restart();
  await standby.restart();
}

/** Runs `work` as superuser of a database. */
async function withClient<T>(
  server: PostgresServer,
  database: string,
  work: (sql: Sql) => Promise<T>,
): Promise<T> {
  const sql = connectAs(new URL(server.url()), database, 1);
  try {
    return await work(sql);
  } finally {
    await sql.end({ timeout: 1 });
  }
}

/** Variables of a database on several servers. */
const on = (prefix: string, ...servers: { port: number }[]) => ({
  [`${prefix}_HOST`]: servers.map(() => "127.0.0.1").join(","),
  [`${prefix}_PORT`]: servers.map(({ port }) => port).join(","),
});

Deno.test("loads follow a failover, from a running service and from the command line", async (t) => {
  await using first = await startPostgres({ hba: REPLICATION });
  await using second = await startPostgres({ hba: REPLICATION });
  await using db = await loadedDatabases({ deals: 20, leads: 60 }, {
    servers: { source: first.url(), warehouse: first.url() },
  });
  const { OLIST_DB_NAME: source, DWH_DB_NAME: warehouse } = db.environment;
  await follow(first, second);
  // The source must be read from the standby.
  await Deno.writeTextFile(
    `${first.dataDirectory}/pg_hba.conf`,
    [`host all ${db.reader} all reject`, ...REPLICATION, ""].join("\n"),
  );
  await withClient(
    first,
    "postgres",
    (sql) => sql.unsafe("select pg_reload_conf()"),
  );
  // The standby comes first.
  const environment = {
    ...db.environment,
    ...on("OLIST_DB", second, first),
    ...on("DWH_DB", second, first),
    OLIST_DB_TARGET_SESSION_ATTRS: "prefer-standby",
    RETRY_ATTEMPTS: "2",
    LISTEN_CHANNEL: "loads",
  };
  await using service = await startServer({ environment });
  const load = () => service.json("/load", { method: "POST" });

  /** Changes one row of the source, loads, and checks the target. */
  async function checkLoads(primary: PostgresServer): Promise<void> {
    for (const start of ["service", "command line"]) {
      const mark = crypto.randomUUID();
      const lsn = await withClient(primary, source!, async (sql) => {
        await sql.unsafe(
          `update marketing.closed_deals set has_gtin = '${mark}'
           where ctid = (select max(ctid) from marketing.closed_deals)`,
        );
        const [row] = await sql.unsafe("select pg_current_wal_lsn() as lsn");
        return row!.lsn;
      });
      await until(
        "the standby has the change",
        () =>
          withClient(second, source!, async (sql) => {
            const [row] = await sql.unsafe(
              `select not pg_is_in_recovery() or pg_last_wal_replay_lsn() >= '${lsn}' as done`,
            );
            return row!.done;
          }),
      );
      if (start === "service") {
        const { status, body } = await load();
        assertEquals(status, 200, JSON.stringify(body));
        const health = await service.json("/health");
        assertEquals(health.status, 200);
        const { olist, dwh } = health.body.checks;
        assertEquals(olist.server, `127.0.0.1:${second.port}`);
        assertEquals(dwh.server, `127.0.0.1:${primary.port}`);
      } else {
        const { code, stderr } = await runProgram(["load"], environment);
        assertEquals(code, 0, stderr);
      }
      const rows = await withClient(primary, warehouse!, (sql) =>
        sql.unsafe(
          `select from m_data.closed_deal where has_gtin = '${mark}'`,
        ));
      assertEquals(rows.length, 1);
    }
  }

  /** The runs that a server has on record. */
  const runsOn = (server: PostgresServer) =>
    withClient(server, warehouse!, async (sql) => {
      const [row] = await sql.unsafe(
        "select count(*)::int as runs, max(finished_at)::text as last from marketing_data_service.run",
      );
      return { runs: row!.runs as number, last: row!.last as string };
    });

  await t.step(
    "the source is read from the standby, and the primary is loaded",
    async () => {
      await checkLoads(first);
    },
  );

  const before = await runsOn(first);
  await t.step(
    "without a primary, the failures of all servers are named",
    async () => {
      await first.stop();
      const assertNamed = (text: string) => {
        assertMatch(
          text,
          new RegExp(`127\\.0\\.0\\.1:${second.port}: [^;]*it is a standby`),
        );
        assertStringIncludes(text, `127.0.0.1:${first.port}: `);
      };
      const { status, body } = await load();
      assertEquals([status, body.code], [503, "read_only"]);
      assertNamed(body.detail);
      const health = await service.json("/health");
      assertEquals(health.body.checks.olist.status, "healthy");
      assertNamed(health.body.checks.dwh.error);
      for (const command of ["load", "health"]) {
        const { code, stdout, stderr } = await runProgram(
          [command],
          environment,
        );
        assertEquals(code, 69, stderr);
        assertNamed(stdout + stderr);
      }
    },
  );

  await t.step("loads use the promoted standby", async () => {
    await withClient(
      second,
      "postgres",
      (sql) => sql.unsafe("select pg_promote()"),
    );
    await checkLoads(second);
  });

  await t.step("nothing was written to the old primary", async () => {
    await first.restart();
    await checkLoads(second);
    assertEquals(await runsOn(first), before);
    assert((await runsOn(second)).runs >= before.runs + 4);
  });

  await t.step(
    "a run stays with its servers when another one accepts writes, too",
    async () => {
      await using proxy = new Proxy({
        hostname: second.host,
        port: second.port,
      });
      const changes = {
        ...on("OLIST_DB", proxy, first),
        ...on("DWH_DB", proxy, first),
      };
      await using context = contextOf(db, changes);
      const { config } = context;
      const connection = connectionOf(config, "test");
      await using lock = await acquireLock(context, 5);
      await using snapshot = await openSnapshot(
        { ...config, maxParallelTasks: 1 },
        connection,
        config.tables,
      );
      proxy.faults.accept = "close";
      const [largest, last] = snapshot.bySize.map((table) =>
        config.tables.find(({ name }) => name === table)!
      );
      // A reader is opened after the others have ended.
      snapshot.abandon(largest!);
      const failures = [
        () => Session.open(config.dwh, { ...connection, holder: lock.holder }),
        () => context.warehouse.query("select 1"),
        () => snapshot.openReader(last!),
      ];
      for (const failure of failures) {
        const error = await assertRejects(failure, ServiceError);
        assertEquals(error.code, "connection_failed");
        assertStringIncludes(error.message, String(proxy.port));
      }
      // Without a run, the other server is found.
      await using session = await Session.open(config.dwh, connection);
      assertEquals(session.config.servers, [{
        host: first.host,
        port: first.port,
      }]);
    },
  );
});

/** Greets with these settings, then keeps the connection open. */
const greets =
  (settings: Readonly<Record<string, string>>): Misbehavior =>
  async (connection) => {
    await refuseTls(connection);
    await connection.write(join(
      authentication(0),
      message("S", "server_version\x0018.0\0"),
      ...Object.entries(settings).map((pair) =>
        message("S", `${pair.join("\0")}\0`)
      ),
      READY,
    ));
    while (true) await connection.read();
  };

/** Refuses the login with an error. */
const refuses =
  (code: string, text: string): Misbehavior => async (connection) => {
    await refuseTls(connection);
    await connection.write(
      message("E", `SFATAL\0VFATAL\0C${code}\0M${text}\0Rauth\0\0`),
    );
  };

const state = (standby: string, readOnly: string) =>
  greets({ in_hot_standby: standby, default_transaction_read_only: readOnly });

const OPTIONS = { applicationName: "test", connectTimeoutSeconds: 20 };

Deno.test("connect() takes the first suitable server", async (t) => {
  await using stack = new AsyncDisposableStack();
  const servers = Object.fromEntries(
    Object.entries({
      primary: state("off", "off"),
      readonly: state("off", "on"),
      standby: state("on", "off"),
      pooler: greets({}),
      // ReadyForQuery arrives in parts, and a notice follows in parts.
      piecewise: async (connection: Parameters<Misbehavior>[0]) => {
        await refuseTls(connection);
        const notice = message("N", "SNOTICE\0Mhello\0\0");
        const all = join(authentication(0), READY, notice);
        for (const byte of all) {
          await connection.write(new Uint8Array([byte]));
          await new Promise((done) => setTimeout(done, 1));
        }
        while (true) await connection.read();
      },
      noticing: async (connection: Parameters<Misbehavior>[0]) => {
        await refuseTls(connection);
        const notice = message("N", "SNOTICE\0Mhello\0\0");
        await connection.write(
          join(authentication(0), READY, notice.slice(0, 9)),
        );
        await new Promise((done) => setTimeout(done, 20));
        await connection.write(notice.slice(9));
        while (true) await connection.read();
      },
      old: greets({ server_version: "9.6" }),
      starting: refuses("57P03", "the database system is starting up"),
      refusing: refuses("28P01", "password authentication failed"),
      full: refuses("53300", "sorry, too many clients already"),
      http: async (connection: Parameters<Misbehavior>[0]) => {
        await connection.read();
        await connection.write(new TextEncoder().encode("HTTP/1.1 400 Bad"));
      },
      closing: async (connection: Parameters<Misbehavior>[0]) => {
        await refuseTls(connection);
      },
    }).map((
      [name, behavior],
    ) => [name, stack.use(new HostileServer(behavior)).port]),
  );
  servers.closed = findFreePort();
  const nameOf = (port: number) =>
    Object.entries(servers).find(([, value]) => value === port)![0];

  /** Returns the name of the server, or the code of the failure and what it names. */
  async function attempt(
    list: string,
    attrs: string | undefined,
    prefix: "DWH_DB" | "OLIST_DB",
  ): Promise<string> {
    const ports = list.split(" ").map((name) => ({ port: servers[name]! }));
    const environment: Environment = {
      ...on(prefix, ...ports),
      [`${prefix}_TARGET_SESSION_ATTRS`]: attrs,
    };
    // A new configuration, whose servers all count as answering.
    const config = () => {
      const { dwh, olist } = parseConfig(environment, () => "");
      return prefix === "DWH_DB" ? dwh : olist;
    };
    try {
      const line = await connect(config(), OPTIONS);
      line.destroy();
      return nameOf(line.config.servers[0]!.port);
    } catch {
      await using pool = new Pool(config(), {
        max: 1,
        connectTimeoutSeconds: 20,
        stallTimeoutSeconds: 20,
        lockTimeoutSeconds: 10,
      });
      const error = await assertRejects(
        () => pool.query("select 1"),
        ServiceError,
      );
      const named = [...error.line.matchAll(/127\.0\.0\.1:(\d+): /g)]
        .map(([, port]) => nameOf(Number(port)));
      return `${error.code}: ${named.join(" ")}`;
    }
  }

  for (
    const [prefix, attrs, list, expected] of [
      ["DWH_DB", undefined, "standby readonly primary", "primary"],
      ["DWH_DB", undefined, "standby", "standby"],
      ["DWH_DB", "primary", "standby readonly primary", "readonly"],
      ["DWH_DB", "standby", "primary standby", "standby"],
      ["DWH_DB", "any", "standby primary", "standby"],
      [
        "DWH_DB",
        undefined,
        "closed starting http closing old primary",
        "primary",
      ],
      ["DWH_DB", undefined, "piecewise", "piecewise"],
      ["DWH_DB", undefined, "noticing", "noticing"],
      // A pooler may not report its state.
      ["DWH_DB", undefined, "standby pooler", "pooler"],
      ["OLIST_DB", undefined, "standby primary", "standby"],
      ["OLIST_DB", "prefer-standby", "primary readonly standby", "standby"],
      ["OLIST_DB", "prefer-standby", "closed primary readonly", "primary"],
      ["OLIST_DB", "prefer-standby", "primary refusing", "primary"],
      // All failures are named. A refusal of the login ends the search.
      ["DWH_DB", undefined, "standby closed", "read_only: standby closed"],
      [
        "DWH_DB",
        undefined,
        "closed readonly",
        "connection_failed: closed readonly",
      ],
      [
        "DWH_DB",
        undefined,
        "closed refusing primary",
        "authentication_failed: closed refusing",
      ],
      [
        "DWH_DB",
        undefined,
        "closed full primary",
        "too_many_connections: closed full",
      ],
      [
        "DWH_DB",
        undefined,
        "http closing starting",
        "connection_failed: http closing starting",
      ],
      [
        "OLIST_DB",
        "standby",
        "primary readonly",
        "connection_failed: primary readonly",
      ],
      [
        "OLIST_DB",
        "read-write",
        "standby readonly",
        "connection_failed: standby readonly",
      ],
      ["OLIST_DB", undefined, "old", "server_too_old: "],
    ] as const
  ) {
    await t.step(`${prefix} ${attrs ?? ""} ${list}: ${expected}`, async () => {
      assertEquals(await attempt(list, attrs, prefix), expected);
    });
  }
});

Deno.test("connect() tries a server that does not answer last, until it answers again", async () => {
  const asked = Promise.withResolvers<void>();
  let isSilent = true;
  await using one = new HostileServer(async (connection) => {
    asked.resolve();
    if (isSilent) { while (true) await connection.read(); }
    await state("off", "off")(connection);
  });
  await using other = new HostileServer(state("off", "off"));
  const { dwh } = parseConfig(on("DWH_DB", one, other), () => "");
  const stop = new AbortController();
  asked.promise.then(() => stop.abort(new Error("no patience")));
  await assertRejects(
    () =>
      connect(dwh, {
        ...OPTIONS,
        connectTimeoutSeconds: 600,
        signal: stop.signal,
      }),
    Error,
    "no patience",
  );
  const portOf = async () => {
    const line = await connect(dwh, { ...OPTIONS, connectTimeoutSeconds: 1 });
    line.destroy();
    return line.config.servers[0]!.port;
  };
  assertEquals(await portOf(), other.port);
  isSilent = false;
  await until(
    "the first server is used again",
    async () => await portOf() === one.port,
  );
});
