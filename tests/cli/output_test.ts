import { assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { createDatabases } from "../support/databases.ts";
import { runRedirected } from "../support/program.ts";
import { runJson } from "../support/program_here.ts";

const ignore = Deno.build.os !== "linux"; // Only Linux has /dev/full.

/** Returns the lines without the log, which is JSON. */
const linesOf = (stderr: string) =>
  stderr.split("\n").filter((line) => line !== "" && !line.startsWith("{"));

Deno.test({
  name:
    "load reports unwritable standard output in one line, with exit code 74",
  ignore,
  async fn(t) {
    await using db = await createDatabases({ rows: { deals: 5, leads: 9 } });
    const toFull = (words: string[], changes: Record<string, string> = {}) =>
      runRedirected(words, ">/dev/full", { ...db.environment, ...changes });

    for (const words of [["load", "--quiet"], ["load", "--quiet", "--json"]]) {
      await t.step(
        `${words.join(" ")} reports that the data is committed`,
        async () => {
          const { code, stderr } = await toFull(words);
          assertEquals(code, 74, stderr);
          const lines = linesOf(stderr);
          assertEquals(lines.length, 1, stderr);
          assertMatch(
            lines[0]!,
            /^Cannot write to standard output: No space left.*\. Run (\S{36}) succeeded, and its data is committed\. /,
          );
          const { json } = await runJson(["runs"], db.environment);
          const [newest] = json.runs ?? json;
          assertEquals(newest.status, "succeeded");
          assertStringIncludes(lines[0]!, newest.run_id);
        },
      );
    }

    await t.step("a failed load ends with its own code", async () => {
      for (
        const words of [["load", "--quiet"], ["load", "--quiet", "--json"]]
      ) {
        await db.source.unsafe(
          "alter table marketing.closed_deals rename won_date to won",
        );
        const { code, stderr } = await toFull(words);
        await db.source.unsafe(
          "alter table marketing.closed_deals rename won to won_date",
        );
        assertEquals(code, 1, stderr);
        const lines = linesOf(stderr);
        assertEquals(lines.length, 1, stderr);
        assertMatch(lines[0]!, /\. Run \S{36} failed: .*won_date/);
      }
    });

    await t.step(
      "a load that cannot begin ends with its own code",
      async () => {
        const { code, stderr } = await toFull(["load", "--json"], {
          PORT: "x",
        });
        assertEquals(code, 78, stderr);
        assertEquals(linesOf(stderr).length, 1, stderr);
      },
    );

    for (
      const words of [
        ["verify"],
        ["verify", "--json"],
        ["load", "--dry-run"],
        ["runs"],
        ["runs", "--json"],
        ["events"],
        ["events", "--follow"],
        ["health"],
        ["config"],
        ["config", "--json"],
        ["schema", "print"],
        ["version"],
        ["--help"],
        ["load", "--help"],
        [],
      ]
    ) {
      await t.step(words.join(" ") || "no words", async () => {
        const { code, stderr } = await toFull(words);
        assertEquals(code, 74, stderr);
        const lines = linesOf(stderr);
        assertEquals(lines.length, 1, stderr);
        assertMatch(lines[0]!, /^Cannot write to standard output: No space/);
      });
    }
  },
});

Deno.test("load names each failed table on standard error, also with --json and --quiet", async () => {
  await using db = await createDatabases({ rows: { deals: 5, leads: 9 } });
  await db.source.unsafe(
    "alter table marketing.closed_deals rename won_date to won",
  );
  for (const words of [[], ["--json"], ["--quiet"], ["--quiet", "--json"]]) {
    const { code, stderr } = await runRedirected(
      ["load", ...words],
      ">/dev/null",
      db.environment,
    );
    assertEquals(code, 1);
    const lines = linesOf(stderr).filter((line) => line.startsWith("Cannot"));
    assertEquals(lines.length, 1, stderr);
    assertMatch(lines[0]!, /^Cannot load closed_deal: .*won_date/);
  }
});
