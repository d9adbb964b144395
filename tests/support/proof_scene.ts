/**
 * A table that is large enough for a proof by row versions, on servers whose
 * transactions are all those of the test.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert";
import type { PostgresServer } from "../../demo/postgres.ts";
import { startPostgres } from "./own_server.ts";
import type { Environment } from "../../src/config/config.ts";
import { connectionOf } from "../../src/context.ts";
import { load } from "../../src/load/load.ts";
import { Session } from "../../src/postgres/session.ts";
import type { LoadedEntry, LoadedEvent } from "../../src/runs/event.ts";
import type { RunOptions } from "../../src/runs/run.ts";
import { PhaseClock } from "../../src/sync/progress.ts";
import { openSnapshot } from "../../src/sync/snapshot.ts";
import {
  beginWithLocks,
  type LastLoad,
  syncTable,
  type TableResult,
} from "../../src/sync/sync_table.ts";
import { parseTypeName } from "../../src/tables/column_types.ts";
import type { TableDeclaration } from "../../src/tables/declaration.ts";
import {
  ALL,
  configOf,
  contextOf,
  createDatabases,
  type Databases,
  type Sql,
} from "./databases.ts";

/**
 * Settings of the servers. Autovacuum would run transactions at random moments, and
 * the statistics would keep a load from trying a proof that cannot succeed.
 */
const SETTINGS = {
  autovacuum: "off",
  track_counts: "off",
  max_prepared_transactions: "5",
};

/** Starts a server for scenes, with the programs of a folder or those from npm. */
export const startScenes = (binDirectory?: string): Promise<PostgresServer> =>
  startPostgres({
    ...binDirectory ? { binDirectory } : {},
    settings: SETTINGS,
    hba: [
      "host replication all 127.0.0.1/32 trust",
      "host all all 127.0.0.1/32 trust",
    ],
  });

/** The declaration of the table. */
export const ITEM: TableDeclaration = {
  name: "item",
  source: { schema: "shop", name: "item" },
  target: { schema: "raw", name: "item" },
  columns: [
    { name: "id", type: parseTypeName("bigint") },
    { name: "amount", type: parseTypeName("numeric") },
    { name: "mood", type: parseTypeName("text") },
    { name: "day", type: parseTypeName("timestamptz") },
    { name: "note", type: parseTypeName("text") },
  ],
};

/** Rows of the table. Each fills a page, so that the table is worth a proof. */
export const ROWS = 280;

/** SQL of rows from one number to another one. */
export const rowsSql = (from: number, to: number) =>
  `insert into shop.item (id, amount, mood, day, note)
   select i, i / 4.0, (array['sad', 'glad', null])[1 + i % 3]::shop.mood, date '2024-01-01' + i % 300, repeat('x', 1900) || i
   from generate_series(${from}, ${to}) i`;

/** SQL condition for the first row, and for the last one. */
export const FIRST_ITEM = "ctid = (select min(ctid) from shop.item)";
export const LAST_ITEM = "ctid = (select max(ctid) from shop.item)";

/** Loads the table as a run, and checks by all values that the target then has the source's rows. */
export async function loadItems(
  db: Databases,
  table: TableDeclaration = ITEM,
  options: Partial<RunOptions> = {},
): Promise<LoadedEntry> {
  await using shared = contextOf(db);
  const context = { ...shared, config: { ...shared.config, tables: [table] } };
  const run = { ...ALL, tables: [table.name], ...options };
  const event = await load(context, "cli", run);
  assert(event.status === "success", JSON.stringify(event));
  await assertEqualItems(db);
  return (event as LoadedEvent).results.results[0]!;
}

/** Checks all values of both sides, without the program. */
async function assertEqualItems(
  { source, warehouse }: Pick<Databases, "source" | "warehouse">,
  timezone = "UTC",
): Promise<void> {
  const digest =
    "count(*) || ' ' || coalesce(md5(string_agg(r::text, E'\\n' order by r::text)), '') as digest";
  const [[wanted], [present]] = await Promise.all([
    source.begin(async (sql) => {
      await sql.unsafe(`set local timezone = '${timezone}'`);
      return await sql.unsafe(
        `select ${digest} from (select id::bigint, amount, mood::text, day::timestamptz at time zone 'UTC', note from shop.item) r`,
      );
    }),
    warehouse.unsafe(
      `select ${digest} from (select id, amount, mood, day at time zone 'UTC', note from raw.item) r`,
    ),
  ]);
  assertEquals(present!.digest, wanted!.digest);
}

/** Differences of one synchronization from the usual one. */
interface SyncOptions {
  readonly table?: TableDeclaration;
  readonly mode?: "auto" | "full";
  readonly variables?: Environment;
  /** What the last load has left behind. Default: what the last synchronization has. */
  readonly last?: LastLoad | undefined;
}

/** One synchronization, and whether it took its plan from the row versions. */
interface Synced extends
  Pick<
    TableResult,
    "mode" | "rowsInserted" | "rowsDeleted" | "checksum"
  > {
  readonly isProven: boolean;
}

/** Databases with the filled table, and synchronizations without the run of a load. */
export class ProofScene implements AsyncDisposable {
  /** What the last synchronization has left behind, as the history keeps it. */
  last: LastLoad | undefined;
  #warehouse: Session | undefined;

  private constructor(public db: Databases) {}

  static async open(
    source: PostgresServer,
    warehouse: PostgresServer,
  ): Promise<ProofScene> {
    const db = await createDatabases({
      withoutTables: true,
      servers: { source: source.url(), warehouse: warehouse.url() },
    });
    await db.source.unsafe(
      `create schema shop;
       create type shop.mood as enum ('sad', 'glad');
       create table shop.item (id int, amount numeric, mood shop.mood, day date, note text) with (fillfactor = 10);
       create table shop.other (id int);
       grant usage on schema shop to "${db.reader}";
       grant select on shop.item to "${db.reader}";
       ${rowsSql(1, ROWS)}`,
    );
    // It creates what a load needs.
    await loadItems(db);
    return new ProofScene(db);
  }

  /** Makes the target equal as a load does, and compares all values. */
  async sync(
    { table = ITEM, mode = "auto", variables = {}, last = this.last }:
      SyncOptions = {},
  ): Promise<Synced> {
    const config = configOf(this.db, variables);
    const connection = connectionOf(config, "test");
    await using snapshot = await openSnapshot(config, connection, [table]);
    const session = this.#warehouse && !this.#warehouse.failure
      ? this.#warehouse
      : this.#warehouse = await Session.open(config.dwh, connection);
    let result: TableResult;
    try {
      await beginWithLocks([table], session, config);
      const context = {
        config,
        snapshot,
        mode,
        recreate: false,
        allowShrink: true,
        isAlone: true,
        lastLoads: new Map(last ? [[table.name, last]] : []),
      };
      const clock = new PhaseClock(table.name, () => {});
      result = await syncTable(context, table, session, clock);
      await session.commit();
    } catch (error) {
      session.destroy();
      throw error;
    }
    const { verified } = result;
    const seed = last?.verified?.seed;
    const mark = { ...snapshot.marks.get(table.name)!, verified };
    this.last = JSON.parse(JSON.stringify(mark));
    if (table.target === ITEM.target) {
      await assertEqualItems(this.db, variables.LOAD_TIMEZONE);
    }
    // A proof keeps the seed of the checksum. A comparison by content has another one.
    const isProven = verified !== undefined && verified.seed === seed;
    return { ...result, isProven };
  }

  /** Synchronizes, and checks whether the plan came from the row versions. */
  async expect(isProven: boolean, options?: SyncOptions): Promise<Synced> {
    const synced = await this.sync(options);
    assertEquals(synced.isProven, isProven, JSON.stringify(options));
    return synced;
  }

  /** Synchronizes until the next one can use what this one leaves behind. */
  async settle(): Promise<void> {
    if (!(await this.sync()).isProven) await this.expect(true);
  }

  /** Returns the scene with another connection to the source. */
  with(source: Sql, environment: Environment = {}): ProofScene {
    const scene = new ProofScene({
      ...this.db,
      source,
      environment: { ...this.db.environment, ...environment } as Record<
        string,
        string
      >,
    });
    scene.last = this.last;
    return scene;
  }

  /** Closes the connection of the synchronizations. */
  async close(): Promise<void> {
    await this.#warehouse?.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
    await this.db[Symbol.asyncDispose]();
  }
}
