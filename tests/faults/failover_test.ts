import {
  assert,
  assertEquals,
  assertRejects,
  assertStringIncludes,
} from "@std/assert";
import type { PostgresServer } from "../../demo/postgres.ts";
import { startPostgres } from "../support/own_server.ts";
import { acquireLock } from "../../src/runs/lock.ts";
import { ServiceError } from "../../src/errors.ts";
import { Session } from "../../src/postgres/session.ts";
import {
  configOf,
  connectAs,
  contextOf,
  type Databases,
} from "../support/databases.ts";
import { loadedDatabases } from "../support/fault_scene.ts";
import { runProgram } from "../support/program_here.ts";
import { Proxy } from "../support/proxy.ts";
import { copyFiles } from "../support/server_files.ts";
import { startServer, until } from "../support/server.ts";

/** A warehouse and its copy behind one address, as after a failover. */
interface Pair extends AsyncDisposable {
  readonly db: Databases;
  /** The older server. */
  readonly first: PostgresServer;
  /** A copy of its files: the same databases, roles and rows. */
  readonly second: PostgresServer;
  readonly proxy: Proxy;
  /** Variables with the address of the proxy of the warehouse. */
  readonly environment: Record<string, string>;
  leadTo(server: PostgresServer): void;
}

async function startPair(): Promise<Pair> {
  await using made = new AsyncDisposableStack();
  const first = made.use(await startPostgres());
  const second = made.use(await startPostgres());
  const db = made.use(
    await loadedDatabases({ deals: 20, leads: 60 }, {
      servers: { source: first.url(), warehouse: first.url() },
    }),
  );
  const proxy = made.use(
    new Proxy({ hostname: first.host, port: first.port }),
  );
  const kept = made.move();
  return {
    db,
    first,
    second,
    proxy,
    environment: { ...db.environment, DWH_DB_PORT: String(proxy.port) },
    leadTo({ host, port }) {
      proxy.server = { hostname: host, port };
    },
    [Symbol.asyncDispose]: () => kept[Symbol.asyncDispose](),
  };
}

/** Makes `first` a standby and `second` a primary with the same rows. */
async function switchOver({ first, second }: Pair): Promise<void> {
  await first.stop();
  await second.stop();
  await copyFiles(first, second);
  const signal = `${first.dataDirectory}/standby.signal`;
  await Deno.writeTextFile(signal, "");
  await Promise.all([first.restart(), second.restart()]);
}

Deno.test("the service loads after a switch-over that leaves the old primary as a standby", async () => {
  await using pair = await startPair();
  const { environment } = pair;
  await using service = await startServer({ environment }, {
    RETRY_ATTEMPTS: "2",
    LOCK_TIMEOUT: "20",
  });
  const load = () => service.json("/load", { method: "POST" });
  assertEquals((await load()).status, 200);
  assertEquals((await service.json("/health")).status, 200);

  await switchOver(pair);
  // The address is still that of the old primary, which no longer accepts writes.
  await until("the service sees the standby", async () => {
    const { body } = await service.json("/health");
    return JSON.stringify(body).includes("it is a standby");
  });
  assertEquals((await service.json("/health")).status, 503);
  const refused = await load();
  assertEquals([refused.status, refused.body.code], [503, "read_only"]);
  for (const command of ["health", "load"]) {
    const { code, stdout, stderr } = await runProgram([command], environment);
    assertEquals(code, 69, stderr);
    assertStringIncludes(stdout + stderr, "The warehouse is read-only");
    assertStringIncludes(stdout + stderr, "it is a standby");
    assertStringIncludes(stdout + stderr, "Point DWH_DB_HOST at the primary");
  }

  // The connections to the standby stay open. Only its answers show that it is the wrong server.
  pair.leadTo(pair.second);
  assertEquals((await load()).status, 200);
  assertEquals((await service.json("/health")).status, 200);
  await Deno.remove(`${pair.first.dataDirectory}/standby.signal`);
  await pair.first.restart();
});

Deno.test("the service loads after a read-only warehouse accepts writes again", async () => {
  await using pair = await startPair();
  const { db, environment } = pair;
  await using service = await startServer({ environment }, {
    RETRY_ATTEMPTS: "1",
  });
  const load = () => service.json("/load", { method: "POST" });
  const set = async (value: string) => {
    await db.warehouse.unsafe(
      `alter system set default_transaction_read_only = ${value}`,
    );
    await db.warehouse.unsafe("select pg_reload_conf()");
  };
  assertEquals((await load()).status, 200);
  await set("on");
  await until("the warehouse is read-only", async () => {
    const { status, body } = await service.json("/health");
    return status === 503 &&
      JSON.stringify(body).includes("default_transaction_read_only is on");
  });
  assertEquals((await load()).body.code, "read_only");
  await set("off");
  await until(
    "the warehouse accepts writes",
    async () => (await service.json("/health")).status === 200,
  );
  const loaded = await load();
  assertEquals(loaded.status, 200, JSON.stringify(loaded.body));
});

Deno.test("a run's sessions and statements stay on the server of its lock", async (t) => {
  await using pair = await startPair();
  const { db, first, second } = pair;
  // Two primaries with the same rows, as a failover without fencing leaves them.
  await first.stop();
  await second.stop();
  await copyFiles(first, second);
  await Promise.all([first.restart(), second.restart()]);
  const changes = { DWH_DB_PORT: String(pair.proxy.port) };
  const portOf = async (
    of: { query(text: string): Promise<Record<string, unknown>[]> },
  ) =>
    Number((await of.query("select current_setting('port') as port"))[0]!.port);
  const config = configOf(db, changes);
  const connection = {
    applicationName: "failover",
    connectTimeoutSeconds: 5,
    stallTimeoutSeconds: 5,
  };

  await t.step("the pool leaves a server without the lock", async () => {
    pair.leadTo(first);
    await using context = contextOf(db, changes);
    assertEquals(await portOf(context.warehouse), first.port);
    pair.leadTo(second);
    await using lock = await acquireLock(context, 5);
    assertEquals(await portOf(context.warehouse), second.port);
    assert(!lock.signal.aborted);
  });

  await t.step("the lock is released when the pool cannot follow", async () => {
    pair.leadTo(first);
    await using context = contextOf(db, changes);
    await using lock = await acquireLock(context, 5);
    pair.leadTo(second);
    const error = await assertRejects(
      () => portOf(context.warehouse),
      ServiceError,
      "leads to another server",
    );
    assertEquals([error.code, error.kind.transient], ["lock_lost", true]);
    assert(lock.signal.aborted);
    // The next lock and the pool use the same server again.
    await using next = await acquireLock(context, 5);
    assertEquals(await portOf(context.warehouse), second.port);
    assert(!next.signal.aborted);
  });

  await t.step(
    "a session refuses a transaction on another server",
    async () => {
      pair.leadTo(first);
      await using context = contextOf(db, changes);
      await using lock = await acquireLock(context, 5);
      const begin = async () => {
        await using session = await Session.open(config.dwh, {
          ...connection,
          holder: lock.holder,
        });
        await session.begin({ mode: "read committed", lockTimeoutSeconds: 5 });
      };
      await begin();
      pair.leadTo(second);
      await assertRejects(begin, ServiceError, "leads to another server");
      assert(lock.signal.aborted);
    },
  );
});

Deno.test("the service listens on the current server of its address, even if the old server keeps the connection", async () => {
  await using pair = await startPair();
  const { first, second, db, environment } = pair;
  const channel = "source_changed";
  await first.stop();
  await second.stop();
  await copyFiles(first, second);
  await Promise.all([first.restart(), second.restart()]);
  await using _service = await startServer({ environment }, {
    LISTEN_CHANNEL: channel,
    RETRY_DELAY: "0",
  });
  const other = connectAs(
    new URL(second.url()),
    db.environment.DWH_DB_NAME!,
    1,
  );
  try {
    pair.leadTo(second);
    await until("a notification on the second server is heard", async () => {
      await other.unsafe(`notify ${channel}`);
      const [heard] = await other.unsafe(
        `select count(*)::int as runs from marketing_data_service.run
         where trigger = 'notify' and state = 'succeeded'`,
      );
      return heard!.runs > 0;
    });
  } finally {
    await other.end({ timeout: 1 });
  }
});
