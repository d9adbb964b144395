/**
 * A table that is large enough for a proof by row versions, on servers whose
 * transactions are all those of the test.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert";
import type { PostgresServer } from "../../demo/postgres.ts";
import { startPostgres } from "../../demo/postgres.ts";
import { load } from "../../src/load/load.ts";
import type { LoadedEntry, LoadedEvent } from "../../src/runs/event.ts";
import type { RunOptions } from "../../src/runs/run.ts";
import { parseTypeName } from "../../src/tables/column_types.ts";
import type { TableDeclaration } from "../../src/tables/declaration.ts";
import {
  ALL,
  contextOf,
  createDatabases,
  type Databases,
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

export const startScenes = (): Promise<PostgresServer> =>
  startPostgres({
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

/** Rows of the table. Four of them fill a page. */
export const ROWS = 280;

/** SQL of rows from one number to another one. */
export const rowsSql = (from: number, to: number) =>
  `insert into shop.item (id, amount, mood, day, note)
   select i, i / 4.0, (array['sad', 'glad', null])[1 + i % 3]::shop.mood, date '2024-01-01' + i % 300, repeat('x', 1900) || i
   from generate_series(${from}, ${to}) i`;

/** Creates the source table, filled. */
export async function createItems(
  { source, reader }: Databases,
): Promise<void> {
  await source.unsafe(
    `create schema shop;
     create type shop.mood as enum ('sad', 'glad');
     create table shop.item (id int, amount numeric, mood shop.mood, day date, note text);
     create table shop.other (id int);
     grant usage on schema shop to "${reader}";
     grant select on shop.item to "${reader}";
     ${rowsSql(1, ROWS)}`,
  );
}

/** Databases with the filled table. */
export async function itemDatabases(
  source: PostgresServer,
  warehouse: PostgresServer,
): Promise<Databases> {
  const db = await createDatabases({
    withoutTables: true,
    servers: { source: source.url(), warehouse: warehouse.url() },
  });
  await createItems(db);
  return db;
}

/** One load, and whether it took its plan from the row versions. */
export interface Loaded {
  readonly entry: LoadedEntry;
  readonly isProven: boolean;
}

/** Loads the table, and checks by all values that the target then has the source's rows. */
export async function loadItems(
  db: Databases,
  changes: Readonly<Record<string, string>> = {},
  table: TableDeclaration = ITEM,
  options: Partial<RunOptions> = {},
): Promise<Loaded> {
  const before = await lastSeed(db);
  await using shared = contextOf(db, changes);
  const context = { ...shared, config: { ...shared.config, tables: [table] } };
  const event = await load(context, "cli", {
    ...ALL,
    tables: [table.name],
    mode: context.config.loadMode,
    ...options,
  });
  assert(event.status === "success", JSON.stringify(event));
  await assertEqualItems(db, changes.LOAD_TIMEZONE);
  const [entry] = (event as LoadedEvent).results.results;
  // A proof keeps the seed of the checksum. A comparison by content has another one.
  const after = await lastSeed(db);
  return { entry: entry!, isProven: after !== undefined && before === after };
}

async function lastSeed({ warehouse }: Databases): Promise<string | undefined> {
  const [exists] = await warehouse.unsafe(
    "select to_regclass('marketing_data_service.table_load') is not null as yes",
  );
  if (!exists!.yes) return undefined;
  const [row] = await warehouse.unsafe(
    `select source_mark -> 'verified' ->> 'seed' as seed from marketing_data_service.table_load
     where state = 'succeeded' order by finished_at desc limit 1`,
  );
  return row?.seed ?? undefined;
}

/** Checks all values of both sides, without the program. */
export async function assertEqualItems(
  { source, warehouse }: Databases,
  timezone = "UTC",
): Promise<void> {
  const digest =
    "count(*) || ' ' || coalesce(md5(string_agg(r::text, E'\\n' order by r::text)), '') as digest";
  const [wanted] = await source.begin(async (sql) => {
    await sql.unsafe(`set local timezone = '${timezone}'`);
    return await sql.unsafe(
      `select ${digest} from (select id::bigint, amount, mood::text, day::timestamptz at time zone 'UTC', note from shop.item) r`,
    );
  });
  const [present] = await warehouse.unsafe(
    `select ${digest} from (select id, amount, mood, day at time zone 'UTC', note from raw.item) r`,
  );
  assertEquals(present!.digest, wanted!.digest);
}
