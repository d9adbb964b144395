import {
  assert,
  assertEquals,
  assertMatch,
  assertStringIncludes,
} from "@std/assert";
import { VARIABLES } from "../../src/config/variables.ts";
import { createDatabases } from "../support/databases.ts";

const ROOT = new URL("../../", import.meta.url);
const decoder = new TextDecoder();

/** Runs the script of the task with additional variables. */
async function compile(words: string[], env: Record<string, string>) {
  const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["task", "compile", ...words],
    cwd: ROOT,
    env: { NO_COLOR: "1", ...env },
    stdin: "null",
  }).output();
  return {
    code,
    output: decoder.decode(stdout) + decoder.decode(stderr),
  };
}

/** Returns the bytes that `deno compile` appended to the base binary, one character per byte. */
async function embeddedIn(file: string, base: string): Promise<string> {
  const bytes = await Deno.readFile(file);
  const { size } = await Deno.stat(base);
  return new TextDecoder("latin1").decode(bytes.subarray(size));
}

async function* sources(folder: string): AsyncGenerator<string> {
  for await (const entry of Deno.readDir(new URL(folder, ROOT))) {
    if (entry.isDirectory) yield* sources(`${folder}${entry.name}/`);
    else if (!entry.name.endsWith(".d.ts")) yield `${folder}${entry.name}`;
  }
}

/** A line that no other file has. */
async function longestLine(path: string): Promise<string> {
  const text = await Deno.readTextFile(new URL(path, ROOT));
  return text.split("\n").filter((line) => /^[\x20-\x7e]+$/.test(line))
    .reduce((a, b) => b.length > a.length ? b : a, "");
}

Deno.test("compile embeds only the program, its migrations and its pages, and keeps no code cache", async () => {
  const folder = await Deno.makeTempDir();
  try {
    // Deno is the base binary here. The embedded files do not depend on it.
    const base = Deno.execPath();
    const file = `${folder}/program`;
    const { code, output } = await compile(["--output", file], {
      DENORT_BIN: base,
    });
    assertEquals(code, 0, output);
    const embedded = await embeddedIn(file, base);
    // With a key, the program runs code from a file with a fixed name in TMPDIR.
    assertStringIncludes(embedded, '"code_cache_key":null');
    for await (const path of sources("src/")) {
      if (path.endsWith("_test.ts")) {
        const line = await longestLine(path);
        assert(!embedded.includes(line), `${path} is embedded`);
        continue;
      }
      const text = await Deno.readTextFile(new URL(path, ROOT));
      // A module with only types is empty after compilation.
      const isOfTypes = path.endsWith(".ts") &&
        !/^(export )?(async )?(function|const|class|let) /m.test(text);
      const line = await longestLine(path);
      assert(isOfTypes || embedded.includes(line), `${path} is missing`);
    }
    for (const folder of ["demo/", "tests/", "bench/", "packaging/"]) {
      for await (const path of sources(folder)) {
        const line = await longestLine(path);
        assert(!embedded.includes(line), `${path} is embedded`);
      }
    }
    // Programs of the embedded PostgreSQL, fast-check, test data of bintrees.
    for (const absent of ["pg_ctl", "asyncProperty", "test_correctness"]) {
      assert(!embedded.includes(absent), `${absent} is embedded`);
    }
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

Deno.test("compile explains how to provide a missing denort", async () => {
  const { code, output } = await compile([], { DENORT_BIN: "/no/such/denort" });
  assert(code !== 0);
  assertStringIncludes(output, "Cannot compile: denort is missing");
  assertStringIncludes(output, "DENORT_BIN=");
  assertStringIncludes(
    output,
    `dl/release/v${Deno.version.deno}/denort-${Deno.build.target}.zip`,
  );
});

Deno.test("compile refuses an unknown platform", async () => {
  const { code, output } = await compile(["--target", "vax"], {});
  assertEquals(code, 64);
  assertStringIncludes(output, "aarch64-apple-darwin");
});

const denort = Deno.env.get("DENORT_BIN");

Deno.test({
  name: denort
    ? "the compiled program loads, from an empty folder, with nothing but its configuration, as an ordinary user"
    : "SKIPPED, DENORT_BIN names no base binary: the compiled program loads as an ordinary user",
  ignore: !denort,
  async fn() {
    const folder = await Deno.makeTempDir();
    try {
      await Deno.chmod(folder, 0o755);
      const file = `${folder}/program`;
      const empty = `${folder}/empty`;
      const temporary = `${folder}/temporary`;
      for (const path of [empty, temporary]) {
        await Deno.mkdir(path);
        await Deno.chmod(path, 0o777);
      }
      const { code, output } = await compile(["--output", file], {});
      assertEquals(code, 0, output);
      await using db = await createDatabases({ rows: { deals: 5, leads: 9 } });
      const run = async (words: string[], env: Record<string, string>) => {
        const { code, stdout, stderr } = await new Deno.Command(file, {
          args: words,
          cwd: empty,
          clearEnv: true,
          env: { ...db.environment, TMPDIR: temporary, ...env },
          ...(Deno.uid() === 0 ? { uid: 65534, gid: 65534 } : {}),
        }).output();
        return { code, text: decoder.decode(stdout) + decoder.decode(stderr) };
      };
      const load = await run(["load"], {
        EVENT_PUBLISHER_TYPE: "file",
        EVENT_FILE: `${empty}/said.jsonl`,
      });
      assertEquals(load.code, 0, load.text);
      assertMatch(load.text, /marketing_qualified_lead +full +9 /);
      const [line] = (await Deno.readTextFile(`${empty}/said.jsonl`))
        .split("\n");
      assertEquals(JSON.parse(line!).status, "success");
      assertEquals((await run(["verify"], {})).code, 0);
      const config = await run(["config", "--json"], {});
      assertEquals(
        Object.keys(JSON.parse(config.text)),
        [...Object.keys(VARIABLES), "tables"],
      );
      // No code cache, because another user could have planted it.
      assertEquals([...Deno.readDirSync(temporary)], []);
    } finally {
      await Deno.remove(folder, { recursive: true });
    }
  },
});
