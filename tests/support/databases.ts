/**
 * Source and warehouse of one test, with minimal roles. Both are dropped afterwards.
 *
 * @module
 */
import { Buffer } from "node:buffer";
import { createHash, createHmac, pbkdf2Sync } from "node:crypto";
import { tmpdir } from "node:os";
import postgres from "postgres";
import {
  type Config,
  type Environment,
  parseConfig,
} from "../../src/config/config.ts";
import { publisherNames } from "../../src/delivery/deliverer.ts";
import { registerPublishers } from "../../src/delivery/outbox.ts";
import { Pool } from "../../src/postgres/pool.ts";
import { identifier } from "../../src/postgres/sql.ts";
import { type AppContext, connectionOf } from "../../src/context.ts";
import { setUpLogging } from "../../src/log.ts";
import { fillSource, SOURCE_TABLES } from "../../demo/sample_data.ts";
import type { RunOptions } from "../../src/runs/run.ts";
import { migrate } from "../../src/runs/schema.ts";
import { namesOf } from "../../src/tables/declaration.ts";
import { MARKETING_TABLES } from "../../src/tables/marketing.ts";

/** A connection as the server's superuser. */
export type Sql = ReturnType<typeof postgres>;

/** Both databases of a test, and the variables for the program. */
export interface Databases extends AsyncDisposable {
  readonly source: Sql;
  readonly warehouse: Sql;
  /** A client with one connection, for a separate transaction of the test. */
  connect(side: "source" | "warehouse"): Sql & AsyncDisposable;
  /** Variables for the program under test. */
  readonly environment: Readonly<Record<string, string>>;
  /** The roles of the program. Their names are unique on the server. */
  readonly reader: string;
  readonly loader: string;
}

/** Contents of the databases. */
export interface DatabasesOptions {
  /** Numbers of rows of sample data in the source tables. By default, the tables are empty. */
  readonly rows?: { readonly deals: number; readonly leads: number };
  /** Whether the source tables are omitted. */
  readonly withoutTables?: boolean;
  /** Whether the warehouse begins with an empty history, where the server has the templates. */
  readonly withHistory?: boolean;
  /** Suffix of the names of databases and roles. */
  readonly suffix?: string;
  /** Addresses of separate servers, for their superuser. */
  readonly servers?: { readonly source: string; readonly warehouse: string };
}

/** Password of every role of a test. No output may contain it. */
export const PASSWORD = "s3cret-Pässwort'\"\\%&=";

const VERIFIER = verifierOf(PASSWORD);

/**
 * Databases to copy: a source with empty tables, and a warehouse with the history of
 * the service. The role owns the history.
 */
const TEMPLATES = {
  source: "mds_template_olist",
  warehouse: "mds_template_dwh",
  loader: "mds_template_loader",
};

/**
 * Returns the address of a server for its superuser, from `TEST_DATABASE_URL` or,
 * for the warehouse, `TEST_WAREHOUSE_URL`.
 */
function serverUrl(side: "source" | "warehouse"): URL {
  const url = (side === "warehouse" && Deno.env.get("TEST_WAREHOUSE_URL")) ||
    Deno.env.get("TEST_DATABASE_URL");
  if (!url) {
    throw new Error(
      "TEST_DATABASE_URL is not set: run `deno task test`, which starts a server, or name one.",
    );
  }
  return new URL(url);
}

/** Connects to a database as superuser. */
export function connectAs(url: URL, database: string, max = 3): Sql {
  return postgres({
    host: url.hostname,
    port: Number(url.port || 5432),
    user: decodeURIComponent(url.username) || "postgres",
    password: decodeURIComponent(url.password),
    database,
    max,
    prepare: false,
    fetch_types: false,
    onnotice: () => {},
    // By default, it connects again after half an hour, without settings and transaction.
    max_lifetime: null,
  });
}

/**
 * Creates the templates of the databases on a server of the tests. On a server without
 * them, each test creates its tables, and its first load migrates the history.
 *
 * Connects to each template. The server then writes the cache of its catalogs into the
 * template's folder. A new database copies it, and saves its first connections half of
 * their time.
 */
export async function createTemplates(server: string): Promise<void> {
  const url = new URL(server);
  const { source, warehouse, loader } = TEMPLATES;
  const run = async (database: string, ...statements: string[]) => {
    const sql = connectAs(url, database, 1);
    for (const statement of statements) await sql.unsafe(statement);
    await sql.end();
  };
  await run("template1", "select");
  await run(
    "postgres",
    `create role ${loader} login password '${VERIFIER}'`,
    `create database ${source}`,
    `create database ${warehouse}`,
    `grant create on database ${warehouse} to ${loader}`,
  );
  await run(source, `create schema marketing; ${SOURCE_TABLES}`);
  const environment = {
    ...databaseVariables("OLIST_DB", url, source, loader),
    ...databaseVariables("DWH_DB", url, warehouse, loader),
  };
  await using context = contextOf({ environment });
  await migrate(context.warehouse, connectionOf(context.config, "template"));
}

/** Creates the databases, the roles and the source tables. */
export async function createDatabases(
  options: DatabasesOptions = {},
): Promise<Databases> {
  const id = crypto.randomUUID().slice(0, 8);
  const spool = `${tmpdir()}/mds_${id}.spool.jsonl`;
  const { suffix = "" } = options;
  const names = {
    source: `mds_${id}_olist${suffix}`,
    warehouse: `mds_${id}_dwh${suffix}`,
  };
  const reader = `mds_${id}_reader${suffix}`;
  const loader = `mds_${id}_loader${suffix}`;
  const urls = {
    source: options.servers
      ? new URL(options.servers.source)
      : serverUrl("source"),
    warehouse: options.servers
      ? new URL(options.servers.warehouse)
      : serverUrl("warehouse"),
  };
  const admin = connectAs(urls.source, "postgres");
  const isOneServer = urls.source.href === urls.warehouse.href;
  const warehouseAdmin = isOneServer
    ? admin
    : connectAs(urls.warehouse, "postgres");
  await createRole(admin, reader);
  await createRole(warehouseAdmin, loader);
  const hasTables = await createDatabase(
    admin,
    names.source,
    options.withoutTables ? undefined : TEMPLATES.source,
  );
  const hasHistory = await createDatabase(
    warehouseAdmin,
    names.warehouse,
    options.withHistory ? TEMPLATES.warehouse : undefined,
  );
  await warehouseAdmin.unsafe(
    `grant create on database ${identifier(names.warehouse)} to ${
      identifier(loader)
    }`,
  );
  const source = connectAs(urls.source, names.source);
  const warehouse = connectAs(urls.warehouse, names.warehouse);
  await source.unsafe(
    `${hasTables ? "" : "create schema marketing;"}
     ${hasTables || options.withoutTables ? "" : SOURCE_TABLES}
     grant usage on schema marketing to ${identifier(reader)};
     grant select on all tables in schema marketing to ${identifier(reader)}`,
  );
  if (options.rows) await fillSource(source, options.rows);
  if (hasHistory) {
    await warehouse.unsafe(
      `reassign owned by ${TEMPLATES.loader} to ${identifier(loader)}`,
    );
  }
  return {
    source,
    warehouse,
    reader,
    loader,
    connect(side) {
      const client = connectAs(urls[side], names[side], 1);
      return Object.assign(client, {
        [Symbol.asyncDispose]: () => client.end({ timeout: 1 }),
      });
    },
    environment: {
      ...databaseVariables("OLIST_DB", urls.source, names.source, reader),
      ...databaseVariables("DWH_DB", urls.warehouse, names.warehouse, loader),
      RETRY_DELAY: "0.05",
      LOCK_TIMEOUT: "5",
      LOG_LEVEL: "INFO",
      // A separate spool: a test must not record the failures of another one.
      EVENT_SPOOL_FILE: spool,
    },
    async [Symbol.asyncDispose]() {
      await Deno.remove(spool).catch(() => {});
      await source.end({ timeout: 1 });
      await warehouse.end({ timeout: 1 });
      await admin.unsafe(
        `drop database ${identifier(names.source)} with (force)`,
      );
      await warehouseAdmin.unsafe(
        `drop database ${identifier(names.warehouse)} with (force)`,
      );
      await admin.unsafe(`drop role ${identifier(reader)}`);
      await warehouseAdmin.unsafe(`drop role ${identifier(loader)}`);
      await admin.end();
      await warehouseAdmin.end();
    },
  };
}

/**
 * Creates the databases as after the first start of the service, which saves a test
 * the migration. For tests that are not about the first load into a warehouse.
 */
export function migratedDatabases(
  options: DatabasesOptions = {},
): Promise<Databases> {
  return createDatabases({ ...options, withHistory: true });
}

/**
 * Copies both databases, for tests that each change a scene that takes long to
 * prepare. The copies have the roles of the originals. Ends all sessions of these.
 */
export async function copyDatabases(original: Databases): Promise<Databases> {
  const id = crypto.randomUUID().slice(0, 8);
  const spool = `${tmpdir()}/mds_${id}.spool.jsonl`;
  await using made = new AsyncDisposableStack();
  made.defer(() => Deno.remove(spool).catch(() => {}));
  const copy = async (side: "source" | "warehouse", template: string) => {
    const name = `mds_${id}_${side}`;
    const url = serverUrl(side);
    const admin = connectAs(url, "postgres", 1);
    made.defer(() => admin.end());
    await admin.unsafe(
      `select pg_terminate_backend(pid, 5000) from pg_stat_activity where datname = '${template}'`,
    );
    await createDatabase(admin, name, template);
    made.defer(async () => {
      await admin.unsafe(`drop database ${identifier(name)} with (force)`);
    });
    await admin.unsafe(
      `grant create on database ${identifier(name)} to ${
        identifier(original.loader)
      }`,
    );
    const connect = (max?: number) => connectAs(url, name, max);
    const sql = connect();
    made.defer(() => sql.end({ timeout: 1 }));
    return { name, connect, sql };
  };
  const source = await copy("source", original.environment.OLIST_DB_NAME!);
  const warehouse = await copy("warehouse", original.environment.DWH_DB_NAME!);
  const kept = made.move();
  return {
    ...original,
    source: source.sql,
    warehouse: warehouse.sql,
    connect(side) {
      const client = (side === "source" ? source : warehouse).connect(1);
      return Object.assign(client, {
        [Symbol.asyncDispose]: () => client.end({ timeout: 1 }),
      });
    },
    environment: {
      ...original.environment,
      OLIST_DB_NAME: source.name,
      DWH_DB_NAME: warehouse.name,
      EVENT_SPOOL_FILE: spool,
    },
    [Symbol.asyncDispose]: () => kept.disposeAsync(),
  };
}

async function createRole(sql: Sql, name: string): Promise<void> {
  await sql.unsafe(
    `create role ${identifier(name)} login password '${VERIFIER}'`,
  );
}

/**
 * Creates a database by copying files. In memory and without fsync, that takes half as
 * long as writing them to the log of the server. Returns whether the server has the
 * template. Otherwise the database is empty.
 */
async function createDatabase(
  sql: Sql,
  name: string,
  template?: string,
): Promise<boolean> {
  const [server] = await sql.unsafe(
    `select current_setting('server_version_num')::int as version,
       exists (select from pg_database where datname = '${template}') as has_template`,
  );
  const from = server!.has_template ? template! : "template1";
  const strategy = server!.version < 150_000 ? "" : "strategy file_copy";
  await sql.unsafe(
    `create database ${identifier(name)} template ${
      identifier(from)
    } ${strategy}`,
  );
  return server!.has_template;
}

/**
 * Returns what a server stores of a password. Few iterations save the program
 * some milliseconds for each connection.
 */
function verifierOf(password: string, iterations = 8): string {
  const salt = crypto.getRandomValues(new Uint8Array(16));
  const key = pbkdf2Sync(
    password.normalize("NFKC"),
    salt,
    iterations,
    32,
    "sha256",
  );
  const sign = (text: string) =>
    createHmac("sha256", key).update(text).digest();
  const stored = createHash("sha256").update(sign("Client Key")).digest();
  const base64 = (bytes: Uint8Array) => Buffer.from(bytes).toString("base64");
  return `SCRAM-SHA-256$${iterations}:${base64(salt)}$${base64(stored)}:${
    base64(sign("Server Key"))
  }`;
}

function databaseVariables(
  prefix: string,
  url: URL,
  name: string,
  user: string,
) {
  return {
    [`${prefix}_HOST`]: url.hostname,
    [`${prefix}_PORT`]: url.port || "5432",
    [`${prefix}_NAME`]: name,
    [`${prefix}_USER`]: user,
    [`${prefix}_PASSWORD`]: PASSWORD,
  };
}

/** The options of a plain `load`. */
export const ALL: RunOptions = {
  tables: namesOf(MARKETING_TABLES),
  mode: "auto",
  atomic: false,
  recreate: false,
  allowShrink: false,
};

/** Returns the parsed configuration of the databases, with changes. */
export function configOf(
  databases: Pick<Databases, "environment">,
  changes: Environment = {},
): Config {
  return parseConfig(
    { ...databases.environment, ...changes },
    (path) => Deno.readTextFileSync(path),
  );
}

/** Returns the context as `cli.ts` creates it, for loads in the process of the test. */
export function contextOf(
  databases: Pick<Databases, "environment">,
  changes: Environment = {},
): AppContext & AsyncDisposable {
  const config = configOf(databases, changes);
  const warehouse = new Pool(config.dwh, { ...config, max: 2 });
  return {
    config,
    warehouse,
    log: setUpLogging({
      level: "ERROR",
      format: "text",
      colors: false,
      mask: (text) => text,
      write: () => {},
    }),
    workerId: `test ${crypto.randomUUID()}`,
    deliver: () => Promise.resolve(),
    registerPublishers: () =>
      registerPublishers(warehouse, publisherNames(config)),
    [Symbol.asyncDispose]: () => warehouse[Symbol.asyncDispose](),
  };
}
