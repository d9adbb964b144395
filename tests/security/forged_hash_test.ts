/**
 * PostgreSQL's hash of a text can be computed backwards when its seed is known
 * (`hash_bytes_extended` in src/common/hashfn.c is Bob Jenkins's lookup3).
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert";
import { MARKETING_TABLES } from "../../src/tables/marketing.ts";
import { createDatabases } from "../support/databases.ts";
import { runJson } from "../support/program_here.ts";
import { writeTablesFile } from "../support/tables_file.ts";

type State = [number, number, number];

const rotate = (x: number, by: number) => (x << by) | (x >>> (32 - by));

/** The steps of `mix`: the changed word, the other word, the rotation, and the two words of the sum. */
const MIX: readonly [number, number, number, number, number][] = [
  [0, 2, 4, 2, 1],
  [1, 0, 6, 0, 2],
  [2, 1, 8, 1, 0],
  [0, 2, 16, 2, 1],
  [1, 0, 19, 0, 2],
  [2, 1, 4, 1, 0],
];

/** The steps of `final`: the changed word, the other word, and its rotation. */
const FINAL: readonly [number, number, number][] = [
  [2, 1, 14],
  [0, 2, 11],
  [1, 0, 25],
  [2, 1, 16],
  [0, 2, 4],
  [1, 0, 14],
  [2, 1, 24],
];

function mix(s: State): void {
  for (const [x, y, by, to, other] of MIX) {
    s[x] = (s[x]! - s[y]!) ^ rotate(s[y]!, by);
    s[to] = (s[to]! + s[other]!) | 0;
  }
}

function unmix(s: State): void {
  for (const [x, y, by, to, other] of MIX.toReversed()) {
    s[to] = (s[to]! - s[other]!) | 0;
    s[x] = ((s[x]! ^ rotate(s[y]!, by)) + s[y]!) | 0;
  }
}

function unfinal(s: State): void {
  for (const [x, y, by] of FINAL.toReversed()) {
    s[x] = ((s[x]! + rotate(s[y]!, by)) | 0) ^ s[y]!;
  }
}

/** Returns a text of twelve letters whose `hashtextextended` with `seed` is `hash`. */
function forge(hash: bigint, seed: bigint): string {
  const start: State = [0, 0, 0].map(() =>
    (0x9e3779b9 + 12 + 3923095) | 0
  ) as State;
  start[0] = (start[0] + Number(BigInt.asIntN(32, seed >> 32n))) | 0;
  start[1] = (start[1] + Number(BigInt.asIntN(32, seed))) | 0;
  if (seed !== 0n) mix(start);
  for (let free = 0; free < 2 ** 24; free++) {
    const state: State = [
      free,
      Number(BigInt.asIntN(32, hash >> 32n)),
      Number(BigInt.asIntN(32, hash)),
    ];
    unfinal(state);
    unmix(state);
    const words = state.map((word, i) => (word - start[i]!) | 0);
    const bytes = new Uint8Array(new Int32Array(words).buffer);
    if (bytes.every((byte) => byte >= 32 && byte < 127)) {
      return new TextDecoder().decode(bytes);
    }
  }
  throw new Error("No text found");
}

Deno.test("verify and load detect a text that was forged for a known seed", async () => {
  await using db = await createDatabases({ rows: { deals: 5, leads: 3 } });
  const { environment, warehouse } = db;
  assertEquals((await runJson(["load"], environment)).code, 0);

  const columns =
    MARKETING_TABLES.find(({ name }) => name === "closed_deal")!.columns;
  const index = columns.findIndex(({ name }) => name === "business_type");
  // Early versions used the position of a column as the seed. Zero is the most obvious one.
  for (const seed of [BigInt(index + 1), 0n]) {
    const [row] = await warehouse.unsafe(
      `select business_type as text, hashtextextended(business_type, ${seed})::text as hash, ctid::text as id
       from m_data.closed_deal where business_type is not null limit 1`,
    );
    const forged = forge(BigInt(row!.hash), seed);
    assert(forged !== row!.text);
    const [check] = await warehouse.unsafe(
      `update m_data.closed_deal set business_type = $1 where ctid = '${
        row!.id
      }'
       returning hashtextextended(business_type collate "C", ${seed})::text as hash`,
      [forged],
    );
    assertEquals(check!.hash, row!.hash);

    assertEquals((await runJson(["verify"], environment)).code, 1);
    const healed = await runJson(["load"], environment);
    assertEquals(healed.code, 0, healed.stderr);
    const left = await warehouse
      .unsafe("select from m_data.closed_deal where business_type = $1", [
        forged,
      ]);
    assertEquals(left.length, 0);
  }
});

Deno.test("load copies a text that was forged for the seed of the last load", async () => {
  await using db = await createDatabases({ rows: { deals: 5, leads: 30_000 } });
  const { environment, source, warehouse } = db;
  await using file = await writeTablesFile(
    "tables: [{ source: marketing.marketing_qualified_leads, target: m_data.marketing_qualified_lead, key: [mql_id], columns: { mql_id: text, first_contact_date: timestamptz, landing_page_id: text, origin: text } }]",
  );
  const position = 1n + BigInt(
    MARKETING_TABLES.find(({ name }) => name === "marketing_qualified_lead")!
      .columns.findIndex(({ name }) => name === "origin"),
  );
  for (const variables of [{}, file.variables]) {
    const load = async () => {
      const loaded = await runJson(["load"], { ...environment, ...variables });
      assertEquals(loaded.code, 0, loaded.stderr);
    };
    for (let i = 0; i < 2; i++) await load();
    const [state] = await warehouse.unsafe(
      `select source_mark -> 'verified' ->> 'seed' as seed from marketing_data_service.table_load
       where table_name = 'marketing_qualified_lead' order by finished_at desc limit 1`,
    );
    const seed = BigInt.asIntN(
      64,
      (BigInt(state!.seed) + position) * 0x9e3779b97f4a7c15n,
    );
    const hash = `hashtextextended(origin collate "C", ${seed})::text as hash`;
    const [row] = await source.unsafe(
      `select mql_id, ${hash} from marketing.marketing_qualified_leads where origin is not null limit 1`,
    );
    const forged = forge(BigInt(row!.hash), seed);
    const [changed] = await source.unsafe(
      `update marketing.marketing_qualified_leads set origin = $1 where mql_id = $2 returning ${hash}`,
      [forged, row!.mql_id],
    );
    assertEquals(changed!.hash, row!.hash);
    await load();
    const [result] = await warehouse.unsafe(
      "select origin from m_data.marketing_qualified_lead where mql_id = $1",
      [row!.mql_id],
    );
    assertEquals(result!.origin, forged);
  }
});

Deno.test("two runs hash the same rows with different seeds", async () => {
  await using db = await createDatabases({ rows: { deals: 5, leads: 3 } });
  const checksums = new Set<string>();
  for (let run = 0; run < 3; run++) {
    const { code, json } = await runJson(["load"], db.environment);
    assertEquals(code, 0);
    checksums.add(json.results.results[0].checksum);
  }
  assertEquals(checksums.size, 3);
});
