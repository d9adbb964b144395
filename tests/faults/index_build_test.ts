import { assertEquals } from "@std/assert";
import { copyDatabases } from "../support/databases.ts";
import { runProgram } from "../support/program_here.ts";
import { changeSource, loadedDatabases } from "../support/fault_scene.ts";
import { assertSound, targetContent, until } from "../support/soundness.ts";

const TABLES = ["closed_deal", "marketing_qualified_lead"] as const;

/** Statements on a target that wait for transactions, with `$table` for its name. */
const STATEMENTS = {
  "CREATE INDEX CONCURRENTLY":
    "create index concurrently late on m_data.$table (mql_id, origin_or_date)",
  "REINDEX CONCURRENTLY": "reindex index concurrently m_data.early",
  "DROP INDEX CONCURRENTLY": "drop index concurrently m_data.early",
  "VACUUM FULL": "vacuum full m_data.$table",
  VACUUM: "vacuum m_data.$table",
} as const;

const CASES = [
  ...Object.keys(STATEMENTS).map((statement) => ({ statement, option: "" })),
  { statement: "CREATE INDEX CONCURRENTLY", option: "--atomic" },
  { statement: "CREATE INDEX CONCURRENTLY", option: "--recreate" },
] as { statement: keyof typeof STATEMENTS; option: string }[];

Deno.test("a load and a statement that waits for transactions both succeed, however long they wait", async (t) => {
  await using loaded = await loadedDatabases({ deals: 20, leads: 60 });
  for (const table of TABLES) {
    const [other] = TABLES.filter((name) => name !== table);
    for (const { statement, option } of CASES) {
      await t.step(
        `${["load", option].join(" ").trim()} and ${statement} on ${table}`,
        async () => {
          await using db = await copyDatabases(loaded);
          const scene = await changeSource(db);
          await db.warehouse.unsafe(
            `create index early on m_data.${table} (mql_id)`,
          );
          await using writer = db.connect("warehouse");
          await using builder = db.connect("warehouse");
          const waiting = (condition: string) =>
            until(async () =>
              (await db.warehouse.unsafe(
                `select from pg_stat_activity where datname = current_database()
               and wait_event_type = 'Lock' and ${condition}`,
              )).length > 0
            );
          await writer.unsafe(
            `begin; lock table m_data.${table} in row exclusive mode`,
          );
          const word = STATEMENTS[statement].slice(0, 6);
          const built = builder.unsafe(
            STATEMENTS[statement].replace("$table", table)
              .replace(
                "origin_or_date",
                table === "closed_deal" ? "won_date" : "origin",
              ),
          );
          built.catch(() => {});
          if (statement !== "VACUUM") await waiting(`query ilike '${word}%'`);
          const running = runProgram(
            ["load", "--json", ...option ? [option] : []],
            { ...db.environment, LOCK_TIMEOUT: "20" },
          );
          await waiting("application_name like 'marketing-data-service/%'");
          if (!option && statement !== "VACUUM FULL") {
            // The other table is loaded meanwhile.
            await until(async () =>
              (await targetContent(db))[other!] === scene.new[other!]
            );
          }
          // Longer than deadlock_timeout, after which a waiter looks no more.
          await writer.unsafe("select pg_sleep(2.2)");
          await writer.unsafe("rollback");
          const { code, stdout, stderr } = await running;
          assertEquals(code, 0, stdout + stderr);
          await built;
          assertEquals(stderr.includes("transient"), false, stderr);
          await assertSound(db, { contents: [scene.new] });
        },
      );
    }
  }
});
