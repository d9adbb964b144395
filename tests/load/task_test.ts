import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { createDatabases } from "../support/databases.ts";
import { runTask } from "../support/program.ts";

Deno.test("the task writes to the files that are named, however they are called, and to no others", async (t) => {
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
        // Another file by the environment file, which the task does not read.
        await Deno.writeTextFile(`${folder}/env`, `EVENT_FILE=${folder}/other`);
        const { EVENT_SPOOL_FILE: _, ...others } = db.environment;
        const refused = await runTask(
          ["load", "--env-file", `${folder}/env`],
          { ...others, EVENT_PUBLISHER_TYPE: "file", EVENT_FILE: "" },
        );
        assertEquals(refused.code, 78, refused.stderr);
        assertStringIncludes(refused.stderr, "Cannot write to the event file");
      });
    }

    for (const name of ["EVENT_FILE", "EVENT_SPOOL_FILE"]) {
      await t.step(`${name} is set and empty: the default`, async () => {
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
          `${name}=${JSON.stringify(value)}: the program's own message`,
          async () => {
            const { code, stdout, stderr } = await runTask(["load"], {
              ...db.environment,
              [name]: value,
            });
            assertEquals(code, 78, stdout + stderr);
            // A message is one line, with its white space folded.
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
