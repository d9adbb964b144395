import {
  assert,
  assertEquals,
  assertMatch,
  assertStringIncludes,
} from "@std/assert";
import { createDatabases } from "../support/databases.ts";
import { runTask } from "../support/program.ts";

Deno.test("the task writes to files with any characters in their names", async (t) => {
  await using db = await createDatabases({ rows: { deals: 3, leads: 3 } });
  const folder = await Deno.makeTempDir();
  try {
    for (
      const name of [
        "plain.jsonl",
        "three words in.jsonl",
        "a*b?[c].jsonl",
        `$HOME "quoted" 'twice'.jsonl`,
        "back\\slash;semi&and.jsonl",
      ]
    ) {
      await t.step(name, async () => {
        const { code, stderr } = await runTask(["load"], {
          ...db.environment,
          EVENT_PUBLISHER_TYPE: "file",
          EVENT_FILE: `${folder}/${name}`,
        });
        assertEquals(code, 0, stderr);
        const line = await Deno.readTextFile(`${folder}/${name}`);
        assertStringIncludes(line, `"status":"success"`);
        // A file that the environment file names.
        await Deno.writeTextFile(`${folder}/env`, `EVENT_FILE=${folder}/other`);
        const { EVENT_SPOOL_FILE: _, ...others } = db.environment;
        const named = await runTask(
          ["load", "--env-file", `${folder}/env`],
          {
            ...others,
            EVENT_PUBLISHER_TYPE: "file",
            EVENT_FILE: "",
            EVENT_SPOOL_FILE: `${folder}/spool`,
          },
        );
        assertEquals(named.code, 0, named.stderr);
        assert((await Deno.stat(`${folder}/other`)).size > 0);
      });
    }

    for (const name of ["EVENT_FILE", "EVENT_SPOOL_FILE"]) {
      await t.step(`an empty ${name} means the default`, async () => {
        const { code, stdout, stderr } = await runTask(["config", "--json"], {
          ...db.environment,
          [name]: "",
        });
        assertEquals(code, 0, stderr);
        assertEquals(JSON.parse(stdout)[name].origin, "default");
      });
      for (
        const value of [
          " ",
          "\t",
          `${folder}/a,b`,
          `${folder}/a\nb`,
          ",",
          "x ",
          "x  y",
        ]
      ) {
        await t.step(
          `${name}=${JSON.stringify(value)} gets the error of the program`,
          async () => {
            const { code, stdout, stderr } = await runTask(["load"], {
              ...db.environment,
              [name]: value,
            });
            assertEquals(code, 78, stdout + stderr);
            // A message is one line with folded white space.
            assertStringIncludes(
              stderr,
              `${name}=${JSON.stringify(value.replace(/ +/, " "))} must be`,
            );
            assertStringIncludes(stderr, "a path without commas, and");
            assert(!stderr.includes("Stack backtrace"), stderr);
          },
        );
      }
    }
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

Deno.test("a flag on the command line narrows the writable paths of the permission set", async () => {
  await using db = await createDatabases({ rows: { deals: 3, leads: 3 } });
  const folder = await Deno.makeTempDir();
  try {
    const run = async (name: string) => {
      const finished = await new Deno.Command(Deno.execPath(), {
        args: [
          "run",
          "--quiet",
          "--no-prompt",
          "-P",
          `--allow-write=${folder}/events.jsonl,${folder}/spool`,
          "cli.ts",
          "load",
        ],
        cwd: new URL("../../", import.meta.url),
        env: {
          ...db.environment,
          EVENT_PUBLISHER_TYPE: "file",
          EVENT_FILE: `${folder}/${name}`,
          EVENT_SPOOL_FILE: `${folder}/spool`,
        },
        stdin: "null",
      }).output();
      const stderr = new TextDecoder().decode(finished.stderr);
      return { code: finished.code, stderr };
    };
    const allowed = await run("events.jsonl");
    assertEquals(allowed.code, 0, allowed.stderr);
    const refused = await run("other.jsonl");
    assertEquals(refused.code, 78, refused.stderr);
    assertMatch(
      refused.stderr,
      /Cannot write to the event file [^:]+: the program has no permission for it. Name a file in EVENT_FILE/,
    );
    // A compiled program takes no flags of Deno.
    assert(!refused.stderr.includes("run again"), refused.stderr);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

Deno.test("each task of development refuses wrong arguments with its usage", async (t) => {
  for (
    const [task, ...words] of [
      ["bench", "--help"],
      ["bench", "--rows", "3"],
      ["bench", "--only", "("],
      ["bench:rows", "--round", "3"],
      ["bench:http", "soon"],
      ["compile", "--outptu", "x"],
      ["demo", "--kep"],
      ["release", "1.0.0", "--targte", "x"],
      ["release", "1.0.0", "2.0.0"],
    ]
  ) {
    await t.step([task, ...words].join(" "), async () => {
      const { code, stdout, stderr } = await new Deno.Command(
        Deno.execPath(),
        {
          args: ["task", "--quiet", task!, ...words],
          cwd: new URL("../../", import.meta.url),
          stdin: "null",
        },
      ).output();
      const text = new TextDecoder();
      const output = text.decode(stdout) + text.decode(stderr);
      assertEquals(code, 64, output);
      assertStringIncludes(output, `Usage: deno task ${task}`);
    });
  }
});
