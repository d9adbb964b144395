import { assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { COMMON_FLAGS } from "../../src/cli/command.ts";
import { allCommands } from "../../src/cli/commands.ts";
import { VERSION } from "../../src/identity.ts";
import { runJson, runProgram } from "../support/program.ts";

Deno.test("no arguments and --help print the commands", async () => {
  for (const words of [[], ["--help"], ["help"]]) {
    const { code, stdout } = await runProgram(words);
    assertEquals(code, 0);
    assertStringIncludes(stdout, "Usage: marketing-data-service COMMAND");
    for (
      const name of ["load", "health", "verify", "schema", "config", "version"]
    ) {
      assertMatch(stdout, new RegExp(`^  ${name} `, "m"));
    }
  }
});

Deno.test("every command has a help text", async () => {
  for (const { name, summary } of await allCommands()) {
    const { code, stdout } = await runProgram([name, "--help"]);
    assertEquals(code, 0);
    assertStringIncludes(stdout, summary);
  }
  const { stdout } = await runProgram(["load", "--help"]);
  assertStringIncludes(stdout, "--recreate");
  assertStringIncludes(stdout, "(auto, full)");
});

for (
  const [words, says, remedy = `See ${words[0]} --help.`] of [
    [["laod"], "did you mean load?", "See --help."],
    [
      ["--quiet", "load"],
      "the command must come before --quiet",
      "See --help.",
    ],
    [
      ["load", "--group", "nightly"],
      "--group cannot be used, because no table has a group. Give",
    ],
    [["verify", "--table", "deals"], "--table must be one of closed_deal"],
    [
      ["runs", "--id", "a", "--status", "failed"],
      "cannot be used with --status",
    ],
    [
      ["events", "--resume", "--follow"],
      "--resume cannot be used with --follow",
    ],
    [["health", "--live", "--service"], "--live cannot be used with --service"],
    [["verify", "--mara-timezone", "UTC"], "needs --against-mara"],
    [["load", "--tabel", "closed_deal"], "did you mean --table?"],
    [["load", "--table", "closed_deals"], "did you mean closed_deal?"],
    [["load", "--table"], "--table needs a value"],
    [["load", "--mode", "quick"], "--mode must be one of auto, full"],
    [["load", "--mode", "auto", "--mode", "full"], "given more than once"],
    [["load", "--rows", "5"], "--rows needs --dry-run"],
    [
      ["verify", "--rows", "0"],
      '--rows must be a whole number from 1 to 1000, not "0"',
    ],
    [["verify", "--rows", "abc"], "--rows must be a whole number"],
    [["runs", "--limit", "0"], "--limit must be a whole number from 1"],
    [["events", "--follow", "--limit", "0"], "--limit must be a whole number"],
    [["schema", "print", "--target", "raw"], "--target needs discover"],
    [
      ["verify", "--rows", "5", "--against-mara"],
      "--rows cannot be used with --against-mara",
    ],
    [["load", "--recreate=no"], "--recreate takes no value"],
    [["load", "--dry-run", "false"], "--dry-run takes no value"],
    [["load", "now"], `unexpected argument "now"`],
    [["schema", "drop"], "schema takes one of print, ensure, recreate"],
  ] as readonly (readonly [words: string[], says: string, remedy?: string])[]
) {
  Deno.test(`a usage mistake has a remedy: ${words.join(" ")}`, async () => {
    const { code, stdout, stderr } = await runProgram(words);
    assertEquals(code, 64);
    assertEquals(stdout, "");
    assertStringIncludes(stderr, says);
    assertStringIncludes(stderr, ` ${remedy}`);
  });
}

Deno.test("config reports three wrong variables together, with exit code 78", async () => {
  const { code, stderr } = await runProgram(["load"], {
    OLIST_DB_PORT: "no",
    VERIFY: "perhaps",
    MAX_PARALLEL_TASKS: "0",
  });
  assertEquals(code, 78);
  for (const name of ["OLIST_DB_PORT", "VERIFY", "MAX_PARALLEL_TASKS"]) {
    assertStringIncludes(stderr, name);
  }
});

Deno.test("config masks secrets, and the environment overrides --env-file", async () => {
  const file = await Deno.makeTempFile({ suffix: ".env" });
  try {
    await Deno.writeTextFile(
      file,
      'OLIST_DB_HOST=from-file\nOLIST_DB_PASSWORD="qu oted-secret"\nDWH_DB_HOST=ignored\n',
    );
    const { code, json, stdout } = await runJson(
      ["config", "--env-file", file],
      {
        DWH_DB_HOST: "from-environment",
      },
    );
    assertEquals(code, 0);
    assertEquals(json.OLIST_DB_HOST.value, "from-file");
    assertEquals(json.DWH_DB_HOST.value, "from-environment");
    assertEquals(json.OLIST_DB_PASSWORD.value, "***");
    assertEquals(stdout.includes("qu oted-secret"), false);
  } finally {
    await Deno.remove(file);
  }
});

Deno.test("a missing --env-file is a configuration error", async () => {
  const { code, stderr } = await runProgram([
    "config",
    "--env-file",
    "/no/such/file",
  ]);
  assertEquals(code, 78);
  assertStringIncludes(stderr, "/no/such/file");
  assertStringIncludes(stderr, "Correct the file, or name another one.");
});

Deno.test("docs/cli.md names every command, action and flag", async () => {
  const page = await Deno.readTextFile(
    new URL("../../docs/cli.md", import.meta.url),
  );
  const commands = await allCommands();
  const missing = commands.flatMap(({ name, action, flags }) => [
    `\`${name}`,
    ...(action?.allowed ?? []),
    ...Object.keys({ ...COMMON_FLAGS, ...flags }).map((flag) => `--${flag}`),
  ]).filter((text) => !page.includes(text));
  assertEquals(missing, []);
});

Deno.test("version prints the version of deno.json", async () => {
  const { version } = JSON.parse(
    await Deno.readTextFile(new URL("../../deno.json", import.meta.url)),
  );
  assertEquals(VERSION, version);
  assertEquals((await runProgram(["version"])).stdout.trim(), version);
});

Deno.test("schema print shows DDL that names every column", async () => {
  const { stdout } = await runProgram(["schema", "print"]);
  assertStringIncludes(stdout, `"first_contact_date" timestamp with time zone`);
});
