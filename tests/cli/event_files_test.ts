import {
  assert,
  assertEquals,
  assertMatch,
  assertStringIncludes,
} from "@std/assert";
import { createDatabases, type Databases } from "../support/databases.ts";
import { findFreePort } from "../support/server.ts";
import * as program from "../support/program.ts";
import { runProgram } from "../support/program_here.ts";

async function inScene(
  work: (
    db: Databases,
    folder: string,
    environment: Record<string, string>,
  ) => Promise<void>,
): Promise<void> {
  await using db = await createDatabases({ rows: { deals: 3, leads: 3 } });
  const folder = await Deno.makeTempDir();
  try {
    await work(db, folder, {
      ...db.environment,
      EVENT_PUBLISHER_TYPE: "file",
      EVENT_FILE: `${folder}/events.jsonl`,
      EVENT_SPOOL_FILE: `${folder}/spool.jsonl`,
      RETRY_ATTEMPTS: "1",
    });
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

/** Runs `serve` in a process, because only a signal ends it if it starts. */
const runWords: typeof runProgram = (words, environment) =>
  (words[0] === "serve" ? program.runProgram : runProgram)(words, environment);

const modeOf = (path: string) => Deno.statSync(path).mode! & 0o777;

Deno.test("load creates the event file and the spool readable by their owner only", () =>
  inScene(async (_, folder, environment) => {
    const loaded = await program.runTask(["load"], environment);
    assertEquals(loaded.code, 0, loaded.stderr);
    const away = await program.runTask(["load"], {
      ...environment,
      DWH_DB_PORT: "1",
    });
    assertEquals(away.code, 69, away.stderr);
    for (const name of ["events.jsonl", "spool.jsonl"]) {
      assertEquals(modeOf(`${folder}/${name}`), 0o600);
    }
  }));

Deno.test("load, serve and config refuse the same file for events and spool, for every spelling", (t) =>
  inScene(async (db, folder, environment) => {
    await Deno.symlink(".", `${folder}/here`);
    const spellings = [
      "events.jsonl",
      "./events.jsonl",
      "here/events.jsonl",
      "here/../events.jsonl",
      "soft",
      "hard",
    ];
    for (const spelling of spellings) {
      for (const words of [["load"], ["serve"], ["config"]]) {
        await t.step(`${words} with ${spelling}`, async () => {
          if (["soft", "hard"].includes(spelling)) {
            const link = spelling === "soft" ? Deno.symlink : Deno.link;
            const event = `${folder}/events.jsonl`;
            await Deno.writeTextFile(event, "");
            await Deno.remove(`${folder}/${spelling}`).catch(() => {});
            await link(event, `${folder}/${spelling}`);
          }
          // Permissions of the process decide how Deno reads a path.
          const { code, stderr } = await program.runProgram(words, {
            ...environment,
            PORT: String(findFreePort()),
            EVENT_SPOOL_FILE: `${folder}/${spelling}`,
          });
          assertEquals(code, 78, stderr);
          assertMatch(
            stderr,
            /EVENT_FILE=\S+ and EVENT_SPOOL_FILE=\S+ are the same file\. Set/,
          );
        });
      }
    }
    await t.step("a relative and an absolute path", async () => {
      const { code, stderr } = await program.runProgram(["load"], {
        ...environment,
        EVENT_FILE: "same-events.jsonl",
        EVENT_SPOOL_FILE: `${Deno.cwd()}/same-events.jsonl`,
      });
      assertEquals(code, 78, stderr);
      assertStringIncludes(stderr, "are the same file");
    });
    const [row] = await db.warehouse.unsafe(
      "select to_regnamespace('marketing_data_service') is null as untouched",
    );
    assertEquals(row!.untouched, true);
  }));

Deno.test("load, serve and config refuse an event file and a spool that are not regular files", (t) =>
  inScene(async (_, folder, environment) => {
    await new Deno.Command("mkfifo", { args: [`${folder}/pipe`] }).output();
    using _socket = Deno.listen({
      transport: "unix",
      path: `${folder}/socket`,
    });
    await Deno.mkdir(`${folder}/folder`);
    await Deno.symlink("pipe", `${folder}/link`);
    for (const variable of ["EVENT_FILE", "EVENT_SPOOL_FILE"]) {
      for (
        const path of ["pipe", "socket", "folder", "link"]
          .map((name) => `${folder}/${name}`).concat("/dev/null")
      ) {
        for (const words of [["load"], ["serve"], ["config"]]) {
          await t.step(`${words} with ${variable}=${path}`, async () => {
            const { code, stdout, stderr } = await runWords(words, {
              ...environment,
              PORT: String(findFreePort()),
              [variable]: path,
            });
            assertEquals(code, 78, stderr);
            assertEquals(stdout, "");
            assertMatch(
              stderr,
              /^Cannot write to the (event file|spool) \S+: it is .*, not a regular file\. Name another file in EVENT_/m,
            );
          });
        }
      }
    }
  }));

Deno.test("load and config refuse an event file and a spool in a missing folder, and config creates none", (t) =>
  inScene(async (_, folder, environment) => {
    for (const variable of ["EVENT_FILE", "EVENT_SPOOL_FILE"]) {
      for (const command of ["config", "load"]) {
        await t.step(`${command} with ${variable}`, async () => {
          const { code, stdout, stderr } = await runProgram([command], {
            ...environment,
            [variable]: `${folder}/missing/file`,
          });
          assertEquals([code, stdout], [78, ""], stderr);
          assertStringIncludes(
            stderr,
            `Create the folder ${folder}/missing, or name another file in ${variable}.`,
          );
        });
      }
    }
    await t.step("config with files that it could create", async () => {
      const { code, stderr } = await runProgram(["config"], environment);
      assertEquals(code, 0, stderr);
      assertEquals([...Deno.readDirSync(folder)], []);
    });
  }));

Deno.test("load keeps every byte of a spool with other data, and reports it", () =>
  inScene(async (db, folder, environment) => {
    const path = `${folder}/spool.jsonl`;
    // Invalid UTF-8 with some JSON, and without a newline at the end.
    const other = [
      [...new TextEncoder().encode("id,name\n\n")],
      [0xff, 0xfe, 0x0d, 0x0a],
      [...new TextEncoder().encode('{"a": 1}\n[1]\n"x"\n{"torn": "li')],
    ].flat();
    await Deno.writeFile(path, new Uint8Array(other));
    const first = await program.runTask(["load"], environment);
    assertEquals(first.code, 0, first.stderr);
    assertStringIncludes(first.stderr, `of the spool ${path}`);
    assertStringIncludes(first.stderr, "Other lines stay.");
    assertEquals([...await Deno.readFile(path)], other);

    // A failure is appended and removed again. The earlier content stays.
    const away = await program.runTask(["load"], {
      ...environment,
      DWH_DB_PORT: "1",
    });
    assertEquals(away.code, 69, away.stderr);
    assert((await Deno.readTextFile(path)).includes("connection_failed"));
    const next = await program.runTask(["load"], environment);
    assertEquals(next.code, 0, next.stderr);
    const left = new TextDecoder("latin1").decode(await Deno.readFile(path));
    const before = new TextDecoder("latin1").decode(new Uint8Array(other));
    assertEquals(left.replaceAll("\n", ""), before.replaceAll("\n", ""));
    const rows = await db.warehouse.unsafe(
      "select code from marketing_data_service.run where state = 'failed'",
    );
    assertEquals(rows.map((row) => row.code), ["connection_failed"]);
  }));
