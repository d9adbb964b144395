import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { identifier } from "../../src/postgres/sql.ts";
import { createDatabases } from "../support/databases.ts";
import { runJson, runProgram } from "../support/program_here.ts";
import { startServer, until } from "../support/server.ts";

const ROWS = { deals: 3, leads: 3 };

/** The longest suffix: `mds_xxxxxxxx_reader` and this are 63 bytes. */
const SUFFIX = `"'\\.дб😀 ${"x".repeat(44 - 14)}Z`;

Deno.test("load works with quotes, dots, emoji and 63 bytes in names of databases and roles", async () => {
  await using db = await createDatabases({ rows: ROWS, suffix: SUFFIX });
  assertEquals(new TextEncoder().encode(db.reader).length, 63);
  // A remedy quotes names as SQL needs it.
  const [loader, reader] = [db.loader, db.reader].map(identifier);
  const [row] = await db.warehouse.unsafe("select current_database() as name");
  const database = identifier(row!.name);
  await db.warehouse.unsafe(
    `revoke create on database ${database} from ${loader}`,
  );
  const refused = await runProgram(["load"], db.environment);
  assertEquals(refused.code, 1);
  assertStringIncludes(
    refused.stderr,
    `Grant CREATE on database ${database} to ${loader}`,
  );
  await db.warehouse.unsafe(
    `grant create on database ${database} to ${loader}`,
  );
  const table = `"marketing"."closed_deals"`;
  await db.source.unsafe(`revoke select on ${table} from ${reader}`);
  const { stderr: select } = await runProgram(["load"], db.environment);
  assertStringIncludes(select, `SELECT on ${table} to ${reader}`);
  await db.source.unsafe(`grant select on ${table} to ${reader}`);
  for (const words of [["health"], ["load"], ["verify"], ["runs"]]) {
    const { code, stderr } = await runJson(words, db.environment);
    assertEquals(code, 0, stderr);
  }
  // An error shows the name unchanged.
  const { code, stderr } = await runProgram(["load"], {
    ...db.environment,
    DWH_DB_PASSWORD: "wrong",
  });
  assertEquals(code, 69);
  assertStringIncludes(stderr, db.loader.slice(-20));

  const channel = `Chan"nel.With 😀`;
  await using server = await startServer(db, { LISTEN_CHANNEL: channel });
  await until("the notification is heard", async () => {
    await db.warehouse.unsafe(`notify ${identifier(channel)}`);
    const { body } = await server.json("/runs");
    return body.runs.some((run: { trigger: string; status: string }) =>
      run.trigger === "notify" && run.status === "succeeded"
    );
  });
});

Deno.test("load refuses a name of 64 bytes and names its variable", async () => {
  const long = `${"é".repeat(31)}xx`;
  for (
    const name of [
      "OLIST_DB_NAME",
      "OLIST_DB_USER",
      "DWH_DB_NAME",
      "DWH_DB_USER",
      "LISTEN_CHANNEL",
    ]
  ) {
    const { code, stderr } = await runProgram(["load"], { [name]: long });
    assertEquals(code, 78);
    assertStringIncludes(stderr, `${name}=`);
    assertStringIncludes(stderr, "at most 63 bytes");
  }
});

Deno.test("load warns about additional source columns, also with odd names", async () => {
  await using db = await createDatabases({ rows: ROWS });
  const odd = [
    `we"ird.ço😀 l`,
    `'); drop table x; --`,
    "UPPER",
    "é".repeat(31),
  ];
  for (const name of odd) {
    await db.source.unsafe(
      `alter table marketing.closed_deals add column ${identifier(name)} text`,
    );
  }
  const { code, json, stderr } = await runJson(["load"], db.environment);
  assertEquals(code, 0, stderr);
  const warnings = json.results.results[0].warnings.join("\n");
  for (const name of odd) assert(warnings.includes(name), warnings);
});

Deno.test("load works with the documented grants and with schemas of an administrator", async () => {
  await using db = await createDatabases({ rows: ROWS });
  const loader = identifier(db.loader);
  const [row] = await db.warehouse.unsafe("select current_database() as name");
  await db.warehouse.unsafe(
    `revoke create on database ${identifier(row!.name)} from ${loader};
     create schema m_data authorization ${loader};
     create schema marketing_data_service authorization ${loader}`,
  );
  await db.warehouse.unsafe(`revoke create on schema public from public`);
  const [may] = await db.warehouse.unsafe(
    `select has_database_privilege('${db.loader}', current_database(), 'create') as make`,
  );
  assertEquals(may!.make, false);
  for (
    const words of [
      ["load"],
      ["load", "--recreate"],
      ["verify"],
      ["schema", "ensure"],
      ["events"],
    ]
  ) {
    const { code, stderr } = await runProgram(words, db.environment);
    assertEquals(code, 0, stderr);
  }
  const [reader] = await db.source.unsafe(
    `select has_table_privilege('${db.reader}', 'marketing.closed_deals', 'insert, update, delete, truncate') as writes`,
  );
  assertEquals(reader!.writes, false);
});
