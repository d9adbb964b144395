import { assertEquals, assertStringIncludes } from "@std/assert";
import { createTableSql } from "../../src/sync/target.ts";
import { MARKETING_TABLES } from "../../src/tables/marketing.ts";
import { createDatabases, type Databases } from "../support/databases.ts";
import { testWith } from "../support/debian.ts";
import { runJson, runProgram } from "../support/program.ts";

/** The formats of Mara's `Copy`: CSV with `csv_format=True`, and plain text without. */
type MaraFormat = "csv" | "plain";

/**
 * Loads both tables as a Mara pipeline does: it creates schema and tables again, then
 * `psql | sed '/^$/d' | psql` with `PGTZ` on both sides, `delimiter_char=';'`.
 */
async function loadWithMara(
  db: Databases,
  format: MaraFormat,
  zone = "Europe/Berlin",
): Promise<void> {
  const psql = (side: "OLIST" | "DWH", flags = "") =>
    `PGTZ=${zone} PGOPTIONS=--client-min-messages=warning psql --username=postgres ` +
    `--host=${db.environment[`${side}_DB_HOST`]} --port=${
      db.environment[`${side}_DB_PORT`]
    } --no-psqlrc --set ON_ERROR_STOP=on ${
      db.environment[`${side}_DB_NAME`]
    } ${flags}`;
  await db.warehouse.unsafe(
    "drop schema if exists m_data cascade; create schema m_data",
  );
  for (const table of MARKETING_TABLES) {
    await db.warehouse.unsafe(createTableSql(table));
    const select = `select * from marketing.${table.source.name}`;
    const target = `m_data.${table.target.name}`;
    const read = format === "csv"
      ? `echo "copy (${select}) to stdout with csv delimiter ';'" | ${
        psql("OLIST")
      }`
      : `echo "${select};" | ${
        psql("OLIST", `--tuples-only --no-align --field-separator=';'`)
      }`;
    const write = psql(
      "DWH",
      `--command="copy ${target} from stdin with ${
        format === "csv" ? "csv " : ""
      }delimiter as ';' null as ''"`,
    );
    const { success, stderr } = await new Deno.Command("sh", {
      args: ["-c", `${read} | sed '/^$/d' | ${write}`],
    }).output();
    if (!success) throw new Error(new TextDecoder().decode(stderr));
  }
  await db.warehouse.unsafe(
    `grant usage on schema m_data to ${db.loader};
     grant select on all tables in schema m_data to ${db.loader}`,
  );
}

function verify(db: Databases, ...words: string[]) {
  return runJson(["verify", "--against-mara", ...words], db.environment);
}

function maraTest(name: string, fn: () => Promise<void>) {
  testWith(["psql", "sed"], name, fn);
}

maraTest(
  "verify --against-mara explains the dates of a Mara load",
  async () => {
    await using db = await createDatabases({ rows: { deals: 50, leads: 300 } });
    for (const format of ["csv", "plain"] as const) {
      await loadWithMara(db, format);
      const { code, json } = await verify(db);
      assertEquals(code, 0, JSON.stringify(json));
      assertEquals(
        json.tables.map((t: { verdict: string; habits: unknown }) => [
          t.verdict,
          t.habits,
        ]),
        [["equal", {}], ["explained", { timezone: 300 }]],
      );
    }
    assertEquals((await runProgram(["verify"], db.environment)).code, 1);
    const text = await runProgram(["verify", "--against-mara"], db.environment);
    assertStringIncludes(
      text.stdout,
      "300 rows: a DATE is midnight in Europe/Berlin, and would be in UTC",
    );
    const same = await runJson(["verify", "--against-mara"], {
      ...db.environment,
      LOAD_TIMEZONE: "Europe/Berlin",
    });
    assertEquals([same.code, same.json.tables[1].verdict], [0, "equal"]);
  },
);

maraTest(
  "verify --against-mara explains blank lines and empty texts, and counts the rows",
  async () => {
    await using db = await createDatabases({ rows: { deals: 20, leads: 40 } });
    await db.source.unsafe(`
    update marketing.closed_deals set lead_type = E'one\\n\\n\\ntwo\\n\\n; "quoted"'
    where sdr_id in (select sdr_id from marketing.closed_deals limit 3);
    update marketing.marketing_qualified_leads set origin = '' where origin = 'email'`);
    const [touched] = await db.source.unsafe(`select
    (select count(*)::int from marketing.closed_deals where lead_type like '%two%') as blank,
    (select count(*)::int from marketing.marketing_qualified_leads where origin = '') as empty`);
    await loadWithMara(db, "csv");
    const csv = await verify(db);
    assertEquals(csv.code, 0, JSON.stringify(csv.json));
    assertEquals(csv.json.tables[0].habits, { blank_lines: touched!.blank });
    assertEquals(csv.json.tables[1].habits, { timezone: 40 });

    // Without csv_format, a line break would split the row. So the texts are removed first.
    await db.source.unsafe("update marketing.closed_deals set lead_type = ''");
    await loadWithMara(db, "plain");
    const plain = await verify(db);
    assertEquals(plain.code, 0, JSON.stringify(plain.json));
    assertEquals(plain.json.tables[0].habits, { empty_texts: 20 });
    assertEquals(plain.json.tables[1].habits, {
      timezone: 40,
      empty_texts: touched!.empty,
    });
  },
);

maraTest(
  "verify --against-mara names the rows that no habit explains",
  async () => {
    await using db = await createDatabases({ rows: { deals: 30, leads: 500 } });
    await loadWithMara(db, "csv");
    await db.warehouse.unsafe(`
    update m_data.closed_deal set declared_monthly_revenue = 12.5 where seller_id = md5('seller7');
    delete from m_data.marketing_qualified_lead where mql_id in (md5('lead3'), md5('lead4'));
    insert into m_data.marketing_qualified_lead values (null, now(), 'page', 'nowhere')`);
    const { code, json } = await verify(db);
    assertEquals(code, 1);
    const [deal, lead] = json.tables;
    assertEquals([deal.verdict, deal.missing, deal.surplus], [
      "different",
      1,
      1,
    ]);
    assertEquals(deal.missing_keys, deal.surplus_keys);
    assertEquals([lead.missing, lead.surplus], [2, 1]);
    assertEquals(lead.habits, { timezone: 500 });
    assertEquals(lead.surplus_keys, [null]);
    const { stdout } = await runProgram(
      ["verify", "--against-mara"],
      db.environment,
    );
    assertStringIncludes(
      stdout,
      "2 rows of the source are not in the target, such as ",
    );
  },
);

maraTest(
  "verify --against-mara explains nothing with a wrong --mara-timezone",
  async () => {
    await using db = await createDatabases({ rows: { deals: 5, leads: 60 } });
    await loadWithMara(db, "csv", "America/New_York");
    const wrong = await verify(db);
    assertEquals([wrong.code, wrong.json.tables[1].missing], [1, 60]);
    const right = await verify(db, "--mara-timezone", "America/New_York");
    assertEquals(right.code, 0);
  },
);

Deno.test("verify --against-mara reports equal tables of the service, and a missing target", async () => {
  await using db = await createDatabases({ rows: { deals: 5, leads: 5 } });
  const missing = await runProgram(
    ["verify", "--against-mara"],
    db.environment,
  );
  assertEquals(missing.code, 1);
  assertStringIncludes(missing.stdout, "MISSING");
  await runProgram(["load"], db.environment);
  const { code, json } = await verify(db);
  assertEquals(code, 0);
  assertEquals(json.tables.map((t: { verdict: string }) => t.verdict), [
    "equal",
    "equal",
  ]);
});

Deno.test("verify refuses an invalid or unused --mara-timezone", async () => {
  for (
    const words of [
      ["--against-mara", "--mara-timezone", "Mars"],
      ["--mara-timezone", "UTC"],
    ]
  ) {
    const { code, stderr } = await runProgram(["verify", ...words]);
    assertEquals(code, 64);
    assertStringIncludes(stderr, "--mara-timezone");
  }
});
