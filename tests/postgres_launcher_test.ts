import {
  assert,
  assertEquals,
  assertNotEquals,
  assertRejects,
} from "@std/assert";
import { delay } from "@std/async/delay";
import { existsSync } from "node:fs";
import { dirname } from "node:path";
import postgres from "postgres";
import {
  chooseAccount,
  findInstalledPostgres,
  findMemoryFolder,
  type PostgresServer,
  startPostgres,
} from "../demo/postgres.ts";

const installed = findInstalledPostgres();
const launcher = new URL("../demo/postgres.ts", import.meta.url).href;

Deno.test("startPostgres() starts a server that answers a query", async () => {
  await using server = await startPostgres();
  const [row] = await query(
    server.url(),
    `select current_setting('port')::int as port,
            current_setting('server_version_num')::int as version,
            current_setting('listen_addresses') as addresses,
            current_setting('TimeZone') as zone,
            pg_encoding_to_char(encoding) as encoding
       from pg_database where datname = 'template1'`,
  );
  assertEquals({ ...row }, {
    port: server.port,
    version: server.version,
    addresses: "127.0.0.1",
    zone: "UTC",
    encoding: "UTF8",
  });
});

Deno.test({
  name: installed
    ? "startPostgres() runs an installed PostgreSQL where it is"
    : "SKIPPED, install the Debian package postgresql: startPostgres() runs an installed PostgreSQL",
  ignore: installed === undefined,
  fn: async () => {
    await using server = await startPostgres({ binDirectory: installed! });
    const [row] = await query(
      server.url(),
      "select current_setting('server_version_num')::int as version",
    );
    assertEquals(server.binDirectory, installed!);
    assertEquals(row?.version, server.version);
  },
});

Deno.test("startPostgres() keeps its files in the given folder and removes them", async () => {
  const parent = await Deno.makeTempDir();
  try {
    await Deno.chmod(parent, 0o777);
    {
      await using server = await startPostgres({ parent });
      assert(server.dataDirectory.startsWith(`${parent}/`));
    }
    assertEquals([...Deno.readDirSync(parent)], []);
  } finally {
    await Deno.remove(parent, { recursive: true });
  }
});

Deno.test("findMemoryFolder() returns no folder that has too little space", () => {
  assertEquals(findMemoryFolder(Infinity), undefined);
});

Deno.test("startPostgres() starts two servers at once", async () => {
  const [first, second] = await Promise.all([startPostgres(), startPostgres()]);
  await using _first = first;
  await using _second = second;
  assertNotEquals(first.port, second.port);
  for (const server of [first, second]) {
    const [row] = await query(server.url(), "show data_directory");
    assertEquals(row?.data_directory, server.dataDirectory);
  }
});

Deno.test("startPostgres() applies settings, pg_hba.conf lines and initdb arguments", async () => {
  await using server = await startPostgres({
    settings: { work_mem: "5MB", "app.quoted": String.raw`it's \ here` },
    hba: ["host all all 127.0.0.1/32 scram-sha-256"],
    initdbArgs: ["--data-checksums"],
  });
  const [row] = await query(
    server.url(),
    `select current_setting('work_mem') as work_mem,
            current_setting('app.quoted') as quoted,
            current_setting('data_checksums') as checksums`,
  );
  assertEquals({ ...row }, {
    work_mem: "5MB",
    quoted: String.raw`it's \ here`,
    checksums: "on",
  });

  await query(server.url(), `create role "a b" login password 'p@ss/:%'`);
  const [login] = await query(
    server.url("template1", "a b", "p@ss/:%"),
    "select current_user as name, current_database() as base",
  );
  assertEquals({ ...login }, { name: "a b", base: "template1" });
  await assertRejects(
    () => query(server.url("template1", "a b", "wrong"), "select 1"),
    Error,
    "password authentication failed",
  );
});

Deno.test("startPostgres() reports the server's log and removes its files when it fails", async () => {
  const { message } = await assertRejects(
    () => startPostgres({ settings: { work_mem: "plenty" } }),
    Error,
    'invalid value for parameter "work_mem": "plenty"',
  );
  const folder = message.match(/\S+marketing-data-postgres-[-0-9a-f]+/)?.[0];
  assert(folder !== undefined);
  assert(!existsSync(folder));
  assertEquals(countProcesses(folder), 0);
  await assertRejects(
    () => startPostgres({ binDirectory: "/nonexistent" }),
    Error,
    "/nonexistent/initdb",
  );
});

for (const mode of ["fast", "immediate"] as const) {
  Deno.test(`stop() with ${mode} and restart() keep port and data`, async () => {
    await using server = await startPostgres();
    const url = server.url();
    await query(url, "create table kept as select 42 as answer");

    await server.stop(mode);
    await server.stop(mode); // A second call does nothing.
    await assertRejects(() => query(url, "select 1"), Error, "ECONNREFUSED");
    assert(existsSync(server.dataDirectory));

    await server.restart();
    assertEquals(server.url(), url);
    const [row] = await query(url, "select answer from kept");
    assertEquals(row?.answer, 42);
  });
}

Deno.test("stop() ends a server with open connections", async () => {
  await using server = await startPostgres();
  const asleep = assertRejects(() =>
    query(server.url(), "select pg_sleep(600)")
  );
  while (true) {
    const [row] = await query(
      server.url(),
      "select count(*)::int as n from pg_stat_activity where wait_event = 'PgSleep'",
    );
    if (row!.n > 0) break;
    await delay(20);
  }
  await server.stop();
  await asleep;
});

Deno.test("restart() starts a server that has crashed", async () => {
  await using server = await startPostgres();
  Deno.kill(postmasterOf(server), "SIGKILL");
  await until(
    "the server is gone",
    () => countProcesses(folderOf(server)) === 1,
  );
  await server.restart();
  await query(server.url(), "select 1");
});

Deno.test("disposing of a server removes its processes and its folder", async () => {
  let server: PostgresServer;
  {
    await using started = await startPostgres();
    server = started;
    assert(countProcesses(folderOf(server)) > 1);
  }
  assertEquals(countProcesses(folderOf(server)), 0);
  assert(!existsSync(folderOf(server)));
  await server[Symbol.asyncDispose](); // A second call does nothing.
});

/** Ends of the process without disposing of its server. */
const ends: Record<string, (child: Deno.ChildProcess) => void> = {
  "kill -9": (child) => child.kill("SIGKILL"),
  "SIGTERM": (child) => child.kill("SIGTERM"),
  // A terminal sends it to every process of the foreground group.
  "Ctrl-C": (child) => Deno.kill(-child.pid, "SIGINT"),
  "an uncaught error": (child) => say(child, "throw"),
  "Deno.exit()": (child) => say(child, "exit"),
  "the end of its program": (child) => say(child, "end"),
};

for (const [name, end] of Object.entries(ends)) {
  Deno.test(`a server is removed after ${name}`, async () => {
    const child = new Deno.Command(Deno.execPath(), {
      args: ["eval", "--quiet", "--lock=dev.lock", PROGRAM],
      cwd: new URL("..", import.meta.url),
      detached: true,
      stdin: "piped",
      stdout: "piped",
      stderr: "null",
    }).spawn();
    const output = child.stdout.getReader();
    const { value } = await output.read();
    const server = JSON.parse(new TextDecoder().decode(value));
    assert(countProcesses(folderOf(server)) > 1);

    end(child);
    const { success } = await child.status;
    assertEquals(success, name === "the end of its program");
    await until(
      "the server is gone",
      () => countProcesses(folderOf(server)) === 0,
    );
    assert(!existsSync(folderOf(server)));

    await output.cancel();
    await child.stdin.close().catch(() => {}); // The child may have removed it.
  });
}

/** Starts a server, prints its data folder, and ends as the argument says. */
const PROGRAM = `
  import { startPostgres } from ${JSON.stringify(launcher)};
  const { dataDirectory } = await startPostgres();
  console.log(JSON.stringify({ dataDirectory }));
  const buffer = new Uint8Array(10);
  const length = await Deno.stdin.read(buffer);
  const word = new TextDecoder().decode(buffer.subarray(0, length));
  if (word === "throw") throw new Error("as told");
  if (word === "exit") Deno.exit(3);
`;

Deno.test("chooseAccount() prefers postgres, then nobody, then any account except root", () => {
  const root = "root:x:0:0:root:/root:/bin/bash\n";
  const nobody = "nobody:x:65534:65533::/:/usr/sbin/nologin\n";
  const other = "app:x:1000:1001::/home/app:/bin/sh\n";
  const own = "postgres:x:101:104::/var/lib/postgresql:/bin/bash\n";
  const choose = (...lines: string[]) => chooseAccount(lines.join(""));
  assertEquals(choose(root, nobody, own, other), { uid: 101, gid: 104 });
  assertEquals(choose(root, nobody, other), { uid: 65534, gid: 65533 });
  assertEquals(choose(root, other), { uid: 1000, gid: 1001 });
  assertEquals(choose(root), { uid: 65534, gid: 65534 });
  // On macOS, this id does not fit into a number of a process.
  assertEquals(choose("nobody:*:-2:-2::/:/usr/bin/false\n", other), {
    uid: 1000,
    gid: 1001,
  });
});

async function query(
  url: string,
  text: string,
): Promise<postgres.RowList<postgres.Row[]>> {
  // To fetch types is a query of the driver's own, whose failure would be uncaught.
  const sql = postgres(url, { max: 1, fetch_types: false, onnotice: () => {} });
  try {
    return await sql.unsafe(text);
  } finally {
    await sql.end({ timeout: 1 });
  }
}

async function say(child: Deno.ChildProcess, word: string): Promise<void> {
  const writer = child.stdin.getWriter();
  await writer.write(new TextEncoder().encode(word));
  writer.releaseLock();
}

async function until(what: string, isSo: () => boolean): Promise<void> {
  const deadline = Date.now() + 15_000;
  while (!isSo()) {
    assert(Date.now() < deadline, `waited in vain until ${what}`);
    await delay(20);
  }
}

function postmasterOf(server: PostgresServer): number {
  const file = Deno.readTextFileSync(`${server.dataDirectory}/postmaster.pid`);
  return Number(file.split("\n")[0]);
}

function folderOf({ dataDirectory }: { dataDirectory: string }): string {
  return dirname(dataDirectory);
}

/**
 * Returns the number of processes that name the folder: the supervisor, its watcher
 * and postgres.
 */
function countProcesses(folder: string): number {
  return listCommands().filter((command) => command.includes(folder)).length;
}

function listCommands(): string[] {
  // Small Linux images have no ps.
  if (Deno.build.os !== "linux") {
    const ps = new Deno.Command("ps", { args: ["-Aww", "-o", "args="] });
    return new TextDecoder().decode(ps.outputSync().stdout).split("\n");
  }
  return [...Deno.readDirSync("/proc")].filter(({ name }) => Number(name) > 0)
    .map(({ name }) => {
      try {
        return Deno.readTextFileSync(`/proc/${name}/cmdline`);
      } catch {
        return ""; // The process has ended meanwhile.
      }
    });
}
