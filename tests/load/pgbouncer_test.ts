import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { delay } from "@std/async/delay";
import { Session } from "../../src/postgres/session.ts";
import {
  configOf,
  contextOf,
  createDatabases,
  PASSWORD,
} from "../support/databases.ts";
import { findProgram, testWith } from "../support/debian.ts";
import { runJson, runProgram } from "../support/program_here.ts";
import { findFreePort, startServer, until } from "../support/server.ts";

/** A PgBouncer in front of the server of the given variables. By default, it pools transactions. */
async function startPgBouncer(
  environment: Readonly<Record<string, string>>,
  poolSize: number,
  { databases = "*", mode = "transaction", clients = 100 } = {},
): Promise<{ port: number } & AsyncDisposable> {
  const folder = await Deno.makeTempDir();
  await Deno.chmod(folder, 0o755);
  const port = findFreePort();
  const { OLIST_DB_HOST, OLIST_DB_PORT, OLIST_DB_USER, DWH_DB_USER } =
    environment;
  const quoted = `"${PASSWORD.replaceAll('"', '""')}"`;
  await Deno.writeTextFile(
    `${folder}/users`,
    `"${OLIST_DB_USER}" ${quoted}\n"${DWH_DB_USER}" ${quoted}\n`,
  );
  await Deno.writeTextFile(
    `${folder}/ini`,
    `[databases]
${databases} = host=${OLIST_DB_HOST} port=${OLIST_DB_PORT}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = ${port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = ${folder}/users
pool_mode = ${mode}
default_pool_size = ${poolSize}
max_client_conn = ${clients}
`,
  );
  const process = new Deno.Command(findProgram("pgbouncer")!, {
    args: [...(Deno.uid() === 0 ? ["-u", "nobody"] : []), `${folder}/ini`],
    stdout: "null",
    stderr: "null",
  }).spawn();
  let isOver = false;
  const ended = process.status.then(() => isOver = true);
  await until("PgBouncer listens", async () => {
    assert(!isOver, "PgBouncer ended at once");
    try {
      (await Deno.connect({ port })).close();
      return true;
    } catch {
      return false;
    }
  });
  return {
    port,
    async [Symbol.asyncDispose]() {
      if (!isOver) process.kill("SIGKILL");
      await ended;
      await Deno.remove(folder, { recursive: true });
    },
  };
}

testWith(
  ["pgbouncer"],
  "load, verify and serve work behind a PgBouncer that pools transactions",
  async () => {
    await using db = await createDatabases({ rows: { deals: 80, leads: 900 } });
    await using bouncer = await startPgBouncer(db.environment, 8);
    const environment = {
      ...db.environment,
      OLIST_DB_PORT: String(bouncer.port),
      DWH_DB_PORT: String(bouncer.port),
    };
    const first = await runJson(["load"], environment);
    assertEquals(first.code, 0, first.stderr);
    await db.source.unsafe(
      "delete from marketing.closed_deals where seller_id < '4'",
    );
    const second = await runJson(["load"], environment);
    assertEquals(second.code, 0, second.stderr);
    assertEquals(second.json.results.results[0].mode, "delta");
    assertEquals((await runProgram(["verify"], environment)).code, 0);

    await using server = await startServer({ environment });
    const answers = await Promise.all(
      Array.from({ length: 6 }, () => server.json("/load", { method: "POST" })),
    );
    assertEquals(answers.map(({ status }) => status), Array(6).fill(200));
    // The next transaction of a pooled session would find the settings that it keeps.
    await until("no transaction of the service is left open", async () => {
      const [left] = await db.warehouse.unsafe(
        `select count(*)::int as locks from pg_locks where relation = 'marketing_data_service.load_lock'::regclass
           and database = (select oid from pg_database where datname = current_database())`,
      );
      return left!.locks === 0;
    });
  },
);

interface Refusal {
  readonly name: string;
  readonly options?: Parameters<typeof startPgBouncer>[2];
  readonly environment?: Record<string, string>;
  readonly exit: number;
  readonly code: string;
  readonly says: readonly string[];
}

const REFUSALS: readonly Refusal[] = [
  {
    name: "a wrong password",
    environment: { DWH_DB_PASSWORD: "wrong-Passw0rd" },
    exit: 69,
    code: "authentication_failed",
    says: ["DWH_DB_PASSWORD", "auth_file"],
  },
  {
    name: "an unknown role",
    environment: { DWH_DB_USER: "nobody_at_all" },
    exit: 69,
    code: "authentication_failed",
    says: ["DWH_DB_USER", "auth_file"],
  },
  {
    name: "a database without an entry",
    options: { databases: "another" },
    exit: 69,
    code: "database_missing",
    says: ["no such database", "DWH_DB_NAME", "[databases] of PgBouncer"],
  },
  {
    name: "a database that does not exist on the server",
    environment: { DWH_DB_NAME: "no_such_database" },
    exit: 69,
    code: "database_missing",
    says: ["does not exist", "DWH_DB_NAME"],
  },
  {
    name: "too many clients",
    options: { clients: 1 },
    exit: 69,
    code: "too_many_connections",
    says: ["max_client_conn", "A load needs up to"],
  },
  {
    name: "pool_mode = statement",
    options: { mode: "statement" },
    exit: 69,
    code: "connection_forbidden",
    says: ["statement pooling mode", "pool_mode = transaction"],
  },
];

for (const { name, options, environment, exit, code, says } of REFUSALS) {
  testWith(
    ["pgbouncer"],
    `load names cause and remedy when PgBouncer refuses: ${name}`,
    async () => {
      await using db = await createDatabases({ rows: { deals: 5, leads: 5 } });
      await using bouncer = await startPgBouncer(db.environment, 8, options);
      const result = await runJson(["load"], {
        ...db.environment,
        DWH_DB_PORT: String(bouncer.port),
        RETRY_ATTEMPTS: "1",
        ...environment,
      });
      const codes = result.json.code
        ? [result.json.code]
        : result.json.details.results.map((r: { code?: string }) => r.code);
      assertEquals(
        [result.code, codes[0]],
        [exit, code],
        result.stdout + result.stderr,
      );
      for (const part of says) assertStringIncludes(result.json.error, part);
    },
  );
}

/** Both sides behind the same PgBouncer, with pools of this size. */
async function behindPools(size: number) {
  const stack = new AsyncDisposableStack();
  const db = stack.use(
    await createDatabases({ rows: { deals: 200, leads: 900 } }),
  );
  const bouncer = stack.use(await startPgBouncer(db.environment, size));
  const environment = {
    ...db.environment,
    OLIST_DB_PORT: String(bouncer.port),
    DWH_DB_PORT: String(bouncer.port),
    CONNECT_TIMEOUT: "2",
    RETRY_DELAY: "0",
  };
  return { db, environment, [Symbol.asyncDispose]: () => stack.disposeAsync() };
}

/** Waits until no backend of the roles has an open transaction. */
async function untilNoTransaction(
  db: Awaited<ReturnType<typeof createDatabases>>,
): Promise<void> {
  await until("no transaction is left open", async () => {
    const left = await db.warehouse.unsafe(
      `select pid from pg_stat_activity where state <> 'idle'
         and usename in ('${db.reader}', '${db.loader}')`,
    );
    return left.length === 0;
  });
}

testWith(
  ["pgbouncer"],
  "load and verify work behind a PgBouncer with pools of 3",
  async () => {
    await using scene = await behindPools(3);
    const { db, environment } = scene;
    for (const words of [["load"], ["load", "--mode", "full"]]) {
      const { code, stdout, stderr } = await runProgram(words, environment);
      assertEquals(code, 0, stdout + stderr);
    }
    await db.source.unsafe("delete from marketing.closed_deals");
    const { code, stderr } = await runProgram(
      ["load", "--allow-shrink"],
      environment,
    );
    assertEquals(code, 0, stderr);
    assertEquals((await runProgram(["verify"], environment)).code, 0);
    await untilNoTransaction(db);
  },
);

testWith(
  ["pgbouncer"],
  "load and verify with MAX_PARALLEL_TASKS=1 work behind a PgBouncer with pools of 2",
  async () => {
    await using scene = await behindPools(2);
    const { db } = scene;
    const environment = { ...scene.environment, MAX_PARALLEL_TASKS: "1" };
    for (const words of [["load"], ["load", "--mode", "full"], ["verify"]]) {
      const { code, stdout, stderr } = await runProgram(words, environment);
      assertEquals(code, 0, stdout + stderr);
    }
    await db.source.unsafe("delete from marketing.closed_deals");
    const { code, stderr } = await runProgram(
      ["load", "--allow-shrink"],
      environment,
    );
    assertEquals(code, 0, stderr);
    await untilNoTransaction(db);
  },
);

testWith(
  ["pgbouncer"],
  "Pool reports to all statements that a PgBouncer has no free connection",
  async () => {
    await using scene = await behindPools(1);
    const { db, environment } = scene;
    await using holder = await Session.open(
      configOf(db, environment).dwh,
      {
        applicationName: "a test",
        connectTimeoutSeconds: 2,
        stallTimeoutSeconds: 30,
      },
    );
    await holder.begin({ mode: "read committed", lockTimeoutSeconds: 1 });
    await using service = contextOf(db, environment);
    const outcomes = await Promise.allSettled([
      service.warehouse.query("select 1"),
      delay(500).then(() => service.warehouse.query("select 2")),
    ]);
    for (const outcome of outcomes) {
      const reason = outcome.status === "rejected" ? outcome.reason : "none";
      assertStringIncludes(String(reason), "waits for a free");
    }
  },
);

for (const size of [1, 2]) {
  testWith(
    ["pgbouncer"],
    `load ends in time and leaves no transaction open behind a PgBouncer with pools of ${size}`,
    async () => {
      await using scene = await behindPools(size);
      const { db, environment } = scene;
      const { code, json, stdout, stderr } = await runJson(
        ["load"],
        environment,
      );
      // Two connections are enough if one table commits before the other one needs them.
      if (size === 1 || code !== 0) {
        assertEquals(code, 69, stdout + stderr);
        assertStringIncludes(json.error, "waits for a free connection");
        assertStringIncludes(json.error, "default_pool_size");
      }
      await untilNoTransaction(db);
    },
  );
}
