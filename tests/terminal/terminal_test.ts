import {
  assert,
  assertEquals,
  assertMatch,
  assertStringIncludes,
} from "@std/assert";
import { createDatabases, type Databases } from "../support/databases.ts";
import { testWith } from "../support/debian.ts";
import { runProgram, terminalCommand } from "../support/program.ts";

/** Returns the output of a command on a terminal with `width` columns, and its exit code. */
async function onTerminal(
  { environment }: Pick<Databases, "environment">,
  words: string,
  width: number,
  changes: Readonly<Record<string, string>> = {},
) {
  const { code, stdout } = await terminalCommand(words, width, {
    ...environment,
    ...changes,
  }).output();
  const text = new TextDecoder().decode(stdout).replaceAll("\r", "");
  return {
    code,
    raw: text,
    // deno-lint-ignore no-control-regex -- as above
    lines: text.replaceAll(/\x1b\[[0-9;?]*[A-Za-z]/g, "").trimEnd().split("\n"),
  };
}

testWith(
  ["script"],
  "commands print bars and tables that fit the width of a terminal",
  async (t) => {
    await using db = await createDatabases({ rows: { deals: 50, leads: 90 } });

    await t.step("load shows a bar per table, then the results", async () => {
      const { code, raw, lines } = await onTerminal(db, "load", 100);
      assertEquals(code, 0, raw);
      assertMatch(raw, /closed_deal +[█░]{22} /);
      assertMatch(raw, /marketing_qualified_lead +[█░]{22} /);
      const text = lines.join("\n");
      assertMatch(
        text,
        /Table +Result +Rows +Inserted +Deleted +Took +Copied$/m,
      );
      assertMatch(text, /^closed_deal +full +50 +50 +0 /m);
      assertMatch(text, /^marketing_qualified_lead +full +90 +90 +0 /m);
      assertMatch(text, /^run \S{36} succeeded/m);
    });

    await t.step("load prints a failure whole, with its remedy", async () => {
      await db.source.unsafe(
        "alter table marketing.closed_deals drop column won_date",
      );
      const { code, lines } = await onTerminal(db, "load --quiet", 60);
      assertEquals(code, 1);
      const text = lines.join("\n");
      assertMatch(text, /^closed_deal +failed/m);
      assertMatch(text, /^✗ Cannot load closed_deal: .* Add the column/m);
    });

    await t.step("runs and events print tables at any width", async () => {
      for (const width of [40, 80, 132]) {
        for (const command of ["runs", "events"]) {
          const { code, lines } = await onTerminal(db, command, width, {
            NO_COLOR: "1",
          });
          assertEquals(code, 0);
          assertEquals(lines.length, 3, lines.join("\n"));
          for (const line of lines) assert([...line].length <= width, line);
        }
      }
      const { raw } = await onTerminal(db, "runs", 80, { NO_COLOR: "1" });
      // deno-lint-ignore no-control-regex -- the colours that must not be there
      assert(!/\x1b\[3\dm/.test(raw), raw);
    });

    await t.step("runs --id accepts the beginning of an id", async () => {
      const { lines } = await onTerminal(db, "runs", 80);
      const id = lines.at(-1)!.slice(0, 8);
      const one = await onTerminal(db, `runs --id ${id}`, 80);
      assertEquals(one.code, 0);
      assertStringIncludes(one.lines.join("\n"), "full +90");
      assertEquals((await onTerminal(db, "runs --id zz", 80)).code, 64);
    });

    await t.step("health prints a line for each check", async () => {
      const { code, lines } = await onTerminal(db, "health", 200, {
        DWH_DB_PORT: "1",
      });
      assertEquals(code, 69);
      assertEquals(lines.length, 2);
      assertMatch(lines[0]!, /^✓ olist {2}healthy/);
      assertMatch(lines[1]!, /^✗ dwh {4}unhealthy .* Check that the server/);
    });

    await t.step("pipes get JSON events, and no bars or colors", async () => {
      const events = await runProgram(["events"], db.environment);
      const parsed = events.stdout.trim().split("\n").map((line) =>
        JSON.parse(line)
      );
      assertEquals(parsed.map(({ status }) => status), ["success", "failure"]);
      const load = await runProgram(["load"], db.environment);
      for (const text of [load.stdout, load.stderr]) {
        // deno-lint-ignore no-control-regex -- as above
        assert(!/\x1b|█/.test(text), text);
      }
    });
  },
);
