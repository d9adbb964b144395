import { assertEquals } from "@std/assert";
import { load } from "../../src/load/load.ts";
import { parseTypeName } from "../../src/tables/column_types.ts";
import type { Column, TableDeclaration } from "../../src/tables/declaration.ts";
import {
  ALL,
  contextOf,
  type Databases,
  migratedDatabases,
} from "../support/databases.ts";
import { Random } from "../support/random.ts";

/** Number of random declarations, each with several loads. */
const DECLARATIONS = Number(Deno.env.get("RANDOM_DECLARATIONS") ?? 12);
const SEED = Number(Deno.env.get("RANDOM_SEED") ?? Date.now() % 1_000_000);

/** Literals of each source type, and the target types that they can have. */
const TYPES: readonly {
  readonly source: string;
  readonly targets: readonly string[];
  readonly values: readonly string[];
}[] = [
  {
    source: "integer",
    targets: ["integer", "bigint", "numeric", "float8"],
    values: ["0", "-1", "2147483647"],
  },
  {
    source: "bigint",
    targets: ["bigint", "numeric(30,2)"],
    values: ["0", "9007199254740993"],
  },
  {
    source: "numeric",
    targets: ["numeric", "double precision"],
    values: ["1.0", "1.00", "'NaN'", "-0.1"],
  },
  {
    source: "text",
    targets: ["text"],
    values: [
      "''",
      "' '",
      "'é'",
      "'e\u0301'",
      "E'a\\tb\\\\N\\n'",
      "repeat('x', 3000)",
    ],
  },
  {
    source: "varchar(5)",
    targets: ["varchar(5)", "varchar", "text"],
    values: ["'a'", "'a '", "''"],
  },
  {
    source: "char(3)",
    targets: ["char(3)", "text"],
    values: ["'a'", "' a'"],
  },
  { source: "boolean", targets: ["bool"], values: ["true", "false"] },
  {
    source: "date",
    targets: ["date", "timestamp", "timestamptz"],
    values: ["'2024-02-29'", "'infinity'", "'4713-01-01 BC'"],
  },
  {
    source: "timestamp",
    targets: ["timestamp", "timestamptz"],
    values: ["'2024-03-31 02:30'", "'-infinity'"],
  },
  {
    source: "double precision",
    targets: ["double precision"],
    values: ["0", "'-0'", "'NaN'", "1e-300"],
  },
  {
    source: "jsonb",
    targets: ["jsonb"],
    values: ["'{\"a\":1}'", "'{\"a\":1.0}'", "'null'"],
  },
  { source: "bytea", targets: ["bytea"], values: ["'\\x00'", "''"] },
  {
    source: "text[]",
    targets: ["text[]"],
    values: ["'{}'", "'{NULL,\"NULL\"}'", "'{{a},{b}}'"],
  },
  {
    source: "uuid",
    targets: ["uuid", "text"],
    values: ["'00000000-0000-0000-0000-000000000001'"],
  },
  {
    source: "interval",
    targets: ["interval"],
    values: ["'1 mon'", "'30 days'"],
  },
];

/** A declaration, and the source columns behind it. */
interface Scene {
  readonly table: TableDeclaration;
  readonly types: readonly (typeof TYPES)[number][];
  /** Constraints of the source column `id`. */
  readonly id: string;
}

function randomScene(random: Random, number: number): Scene {
  const types = Array.from(
    { length: 1 + random.below(5) },
    () => random.pick(TYPES),
  );
  const columns = types.map(({ targets }, i): Column => {
    const type = parseTypeName(random.pick(targets));
    const from = `c ${i}`;
    return random.chance(0.3)
      ? { name: from, type }
      : random.chance(0.6)
      ? { name: `Renamed"${i}`, type, from }
      : {
        name: `e${i}`,
        type,
        expression: `case when id % 7 = 0 then null else "${from}" end`,
      };
  });
  const hasKey = random.chance(0.5);
  if (hasKey) {
    const type = random.pick(["integer", "bigint", "numeric", "float8"]);
    columns.splice(random.below(columns.length + 1), 0, {
      name: "K",
      type: parseTypeName(type),
      from: "id",
    });
  }
  return {
    types,
    // Only the primary key proves that no two rows share a key.
    id: hasKey ? random.pick(["primary key", "unique"]) : "",
    table: {
      name: `t${number}`,
      source: { schema: "rnd", name: `t${number}` },
      target: { schema: "raw", name: `t${number}` },
      columns,
      ...(hasKey ? { key: ["K"] } : {}),
      ...(random.chance(0.4) ? { where: "id % 3 <> 1 -1 or id is null" } : {}),
    },
  };
}

function randomValue(random: Random, { values }: Scene["types"][number]) {
  return random.chance(0.15) ? "null" : random.pick(values);
}

/** Inserts rows, some of them several times. */
async function insertRows(
  { source }: Databases,
  random: Random,
  { table, types }: Scene,
  count: number,
): Promise<void> {
  if (count === 0) return;
  const rows = Array.from(
    { length: count },
    () =>
      `(${random.below(5000)}, ${
        types.map((type) => randomValue(random, type))
      })`,
  );
  await source.unsafe(
    `insert into rnd.${table.name} values ${rows} on conflict do nothing`,
  );
}

async function changeRows(
  db: Databases,
  random: Random,
  scene: Scene,
): Promise<void> {
  const { table, types } = scene;
  const some = () => `id % ${1 + random.below(40)} = ${random.below(3)}`;
  if (random.chance(0.5)) {
    const index = random.below(types.length);
    await db.source.unsafe(
      `update rnd.${table.name} set "c ${index}" = ${
        randomValue(random, types[index]!)
      } where ${some()}`,
    );
  }
  if (random.chance(0.4)) {
    await db.source.unsafe(`delete from rnd.${table.name} where ${some()}`);
  }
  if (random.chance(0.4)) await insertRows(db, random, scene, random.below(50));
  if (table.key && random.chance(0.3)) {
    await db.source.unsafe(
      `update rnd.${table.name} set id = -id where ${some()}`,
    );
  }
  if (random.chance(0.3)) {
    await db.warehouse.unsafe(
      `delete from raw.${table.name} where random() < 0.1;
       insert into raw.${table.name} select * from raw.${table.name} where random() < 0.1
         on conflict do nothing`,
    );
  }
  if (table.key && random.chance(0.3)) {
    await db.warehouse.unsafe(
      `delete from raw.${table.name} t using raw.${table.name} other
       where t."K" = other."K" and t.ctid > other.ctid;
       alter table raw.${table.name} add primary key ("K")`,
    ).catch(() => {});
  }
}

/** Returns the rows of a query as sorted texts, each value by its bytes. */
const sortedBytes = (select: string) =>
  `select r::text as row from (
     select record_send(q)::text as r from (${select}) q) rows order by 1`;

Deno.test(`load makes random tables equal for random declarations (RANDOM_SEED=${SEED})`, async () => {
  const random = new Random(SEED);
  await using db = await migratedDatabases({ withoutTables: true });
  await db.source.unsafe("create schema rnd");
  // A random change can remove nearly all rows.
  await using shared = contextOf(db, {
    LOAD_TIMEZONE: "Europe/Berlin",
    MAX_SHRINK: "1",
  });
  for (let number = 0; number < DECLARATIONS; number++) {
    const scene = randomScene(random, number);
    const { table, types } = scene;
    await db.source.unsafe(
      `create table rnd.${table.name} (id int ${scene.id}, ${
        types.map(({ source }, i) => `"c ${i}" ${source}`)
      });
       grant usage on schema rnd to "${db.reader}";
       grant select on rnd.${table.name} to "${db.reader}"`,
    );
    await insertRows(db, random, scene, random.below(400));
    const context = {
      ...shared,
      config: { ...shared.config, tables: [table] },
    };
    for (let round = 0; round < 4; round++) {
      if (round > 0) await changeRows(db, random, scene);
      const event = await load(context, "cli", {
        ...ALL,
        tables: [table.name],
      });
      assertEquals(event.status, "success", JSON.stringify({ event, table }));
      const wanted = table.columns!.map(({ name, from, expression, type }) =>
        `(${expression ?? `"${from ?? name}"`})::${type.base}${
          type.modifiers && `(${type.modifiers})`
        }${type.isArray ? "[]" : ""} as "${name.replaceAll('"', '""')}"`
      );
      const source = await db.source.begin(async (sql) => {
        await sql.unsafe("set local timezone = 'Europe/Berlin'");
        return await sql.unsafe(sortedBytes(
          `select ${wanted} from rnd.${table.name}${
            table.where ? ` where ${table.where}` : ""
          }`,
        ));
      });
      const target = await db.warehouse.unsafe(
        sortedBytes(`select * from raw.${table.name}`),
      );
      assertEquals(
        target.map(({ row }) => row),
        source.map(({ row }) => row),
        JSON.stringify(table),
      );
    }
  }
});
