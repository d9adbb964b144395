import { assert, assertEquals } from "@std/assert";
import { createDatabases, PASSWORD } from "../support/databases.ts";
import { runJson, runProgram } from "../support/program.ts";
import { freePort, startServer, until } from "../support/server.ts";

/** Debian puts it where only root's PATH looks. */
const PGBOUNCER = ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer"]
  .find((path) => {
    try {
      return Deno.statSync(path).isFile;
    } catch {
      return false;
    }
  });

/** A PgBouncer that pools transactions, before the server of the given variables. */
async function startPgBouncer(
  environment: Readonly<Record<string, string>>,
  poolSize: number,
): Promise<{ port: number } & AsyncDisposable> {
  const folder = await Deno.makeTempDir();
  await Deno.chmod(folder, 0o755);
  const port = freePort();
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
* = host=${OLIST_DB_HOST} port=${OLIST_DB_PORT}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = ${port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = ${folder}/users
pool_mode = transaction
default_pool_size = ${poolSize}
`,
  );
  const process = new Deno.Command(PGBOUNCER!, {
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

Deno.test({
  name: PGBOUNCER
    ? "load, verify and serve work behind a PgBouncer that pools transactions"
    : "SKIPPED, pgbouncer is not installed: load, verify and serve behind PgBouncer",
  ignore: !PGBOUNCER,
  async fn() {
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
    // What a session of a pool keeps, the next transaction on it would meet.
    await until("no transaction of the service is left open", async () => {
      const [left] = await db.warehouse.unsafe(
        `select count(*)::int as locks from pg_locks where locktype = 'advisory'
           and database = (select oid from pg_database where datname = current_database())`,
      );
      return left!.locks === 0;
    });
  },
});
