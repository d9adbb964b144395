import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { VARIABLES } from "../../src/config/variables.ts";

const ROOT = new URL("../../", import.meta.url);

/** Returns the paths of a folder's modules without tests, relative to the root. */
async function* modules(folder: string): AsyncGenerator<string> {
  for await (const entry of Deno.readDir(new URL(folder, ROOT))) {
    if (entry.isDirectory) yield* modules(`${folder}${entry.name}/`);
    else if (/(?<!_test|\.d)\.tsx?$/.test(entry.name)) {
      yield `${folder}${entry.name}`;
    }
  }
}

Deno.test("the tasks of commands repeat the task cli, because a task in a task takes 10 ms", async () => {
  const { tasks } = JSON.parse(
    await Deno.readTextFile(new URL("deno.json", ROOT)),
  );
  for (const name of ["load", "serve", "health"]) {
    assertEquals(tasks[name].command, `${tasks.cli.command} ${name}`);
  }
});

Deno.test("a task prints an error of Deno itself", async () => {
  const { tasks } = JSON.parse(
    await Deno.readTextFile(new URL("deno.json", ROOT)),
  );
  const cwd = await Deno.makeTempDir();
  try {
    const { cli } = tasks;
    await Deno.writeTextFile(
      `${cwd}/deno.json`,
      JSON.stringify({ tasks: { cli }, permissions: { default: {} } }),
    );
    await Deno.writeTextFile(`${cwd}/cli.ts`, `import "./missing.ts";`);
    const { code, stderr } = await new Deno.Command(Deno.execPath(), {
      args: ["task", "cli"],
      cwd,
    }).output();
    assertEquals(code, 1);
    assertStringIncludes(new TextDecoder().decode(stderr), "missing.ts");
  } finally {
    await Deno.remove(cwd, { recursive: true });
  }
});

Deno.test("the permission set of deno.json allows every variable and nothing wholesale", async () => {
  const { tasks, permissions } = JSON.parse(
    await Deno.readTextFile(new URL("deno.json", ROOT)),
  );
  assertEquals(
    new Set(permissions.default.env.allow),
    new Set([
      ...Object.keys(VARIABLES),
      "NO_COLOR",
      "OTEL_DENO",
      "OTEL_DENO_CONSOLE",
    ]),
  );
  const { command } = tasks.cli;
  assert(/ -P /.test(command), command);
  assert(!/ -A\b|--allow-/.test(command), command);
  for (const [name, task] of Object.entries<{ description: string }>(tasks)) {
    assert(/^[A-Z].*[^.]$/.test(task.description), name);
  }
});

Deno.test("deno.lock contains only the packages of src", async () => {
  const lock = async (name: string) =>
    JSON.parse(await Deno.readTextFile(new URL(name, ROOT)));
  const { imports, scopes } = await lock("deno.json");
  const production = await lock("deno.lock");
  const development = await lock("dev.lock");
  const nameOf = (specifier: string) =>
    /^npm:\/?(@?[^@]+)@/.exec(specifier)![1]!;
  const direct = new Set(Object.values<string>(imports).map(nameOf));
  assertEquals(new Set(Object.keys(production.specifiers).map(nameOf)), direct);
  const held = Object.keys(production.npm);
  for (const scope of Object.values<Record<string, string>>(scopes)) {
    for (const specifier of Object.values(scope)) {
      const name = nameOf(specifier);
      if (name === "yaml" || name === "deno-std") continue; // Also dependencies of production packages.
      assert(!held.some((key) => key.startsWith(`${name}@`)), name);
    }
  }
  // Both lock the same versions, so that tests use the packages of the program.
  for (const key of held) assert(key in development.npm, key);
});

Deno.test("every error is used, and has a remedy that is a sentence", async () => {
  const { ERRORS } = await import("../../src/errors.ts");
  let text = "";
  for await (const path of modules("src/")) {
    text += await Deno.readTextFile(new URL(path, ROOT));
  }
  for (const [code, { remedy }] of Object.entries(ERRORS)) {
    assert(text.includes(`"${code}"`), code);
    assert(/^[A-Z].*[.]$/.test(remedy), `${code}: ${remedy}`);
  }
});

Deno.test("messages name relations with formatRelation(), which quotes as SQL does", async () => {
  for await (const path of modules("src/")) {
    const text = await Deno.readTextFile(new URL(path, ROOT));
    const joined = /.*schema\}\.\$\{.*/.exec(text)?.[0];
    // A short name of a table, which is not SQL.
    if (joined?.includes("? { name: `${schema}.${name}` }")) continue;
    assertEquals(joined, undefined, path);
  }
});

Deno.test("texts count with formatQuantity(), which also has the singular", async () => {
  // `${more} more tables`, `{count} events`
  const fixedPlural =
    /(?:\$?\{[^{}]*\} more|(?<!\$)\{count\}|\$\{\w+\.length\}) [a-z]+s\b/;
  for await (const path of modules("src/")) {
    const text = await Deno.readTextFile(new URL(path, ROOT));
    assertEquals(fixedPlural.exec(text)?.[0], undefined, path);
  }
});

Deno.test("no file has an empty or meaningless name", async () => {
  const names = (await Array.fromAsync(modules("src/"))).map((path) =>
    path.split("/").at(-1)!
  );
  assertEquals(
    names.filter((name) =>
      /^(utils?|types|index|helpers?|misc|common)\.tsx?$/.test(name)
    ),
    [],
  );
});

/** Returns the paths of all modules of a folder, tests included. */
async function* allModules(folder: string): AsyncGenerator<string> {
  for await (const entry of Deno.readDir(new URL(folder, ROOT))) {
    if (entry.isDirectory) yield* allModules(`${folder}${entry.name}/`);
    else if (/\.tsx?$/.test(entry.name)) yield `${folder}${entry.name}`;
  }
}

/** Returns the text of all imports of a module, and of names that it takes from a namespace. */
function importsOf(text: string): string {
  const named = text.matchAll(
    /\{([^{}]*)\}(?:: typeof import\([^()]*\))?\s*(?:from\b|= await import\()|\(await import\([^()]*\)\)\.\w+/g,
  );
  const spaces = [...text.matchAll(/import \* as (\w+)/g)].flatMap((
    [, name],
  ) => [...text.matchAll(new RegExp(`\\b${name}\\.\\w+`, "g"))]);
  return [...named, ...spaces].map(([names]) => names).join(" ");
}

Deno.test("no module exports what no other one imports", async () => {
  const texts = new Map<string, string>();
  const read = async (path: string) =>
    texts.set(path, await Deno.readTextFile(new URL(path, ROOT)));
  for (
    const folder of ["src/", "tests/", "demo/", "bench/", "packaging/", "docs/"]
  ) {
    for await (const path of allModules(folder)) await read(path);
  }
  for (const path of ["cli.ts", "main.ts"]) await read(path);
  const imports = new Map(
    [...texts].map(([path, text]) => [path, importsOf(text)]),
  );
  const unused: string[] = [];
  for (const [path, text] of texts) {
    const exported = text.matchAll(
      /^export (?:async )?(?:function\*?|const|class|interface|type|let) (\w+)/gm,
    );
    for (const [, name] of exported) {
      const word = new RegExp(`\\b${name}\\b`);
      const isUsed = [...imports].some(([other, names]) =>
        other !== path && word.test(names)
      );
      if (!isUsed) unused.push(`${path}: ${name}`);
    }
  }
  assertEquals(unused, []);
});

Deno.test("no diagram has a semicolon, which ends a line in Mermaid", async () => {
  for (const path of ["README.md", "docs/architecture.md"]) {
    const text = await Deno.readTextFile(new URL(path, ROOT));
    const diagrams = [...text.matchAll(/```mermaid\n([^]*?)```/g)];
    assert(diagrams.length > 0, path);
    for (const [diagram] of diagrams) assert(!diagram.includes(";"), diagram);
  }
});

Deno.test("every path that the documents name exists", async () => {
  const documents = ["README.md", "CONTRIBUTING.md"];
  for await (const { name } of Deno.readDir(new URL("docs/", ROOT))) {
    if (name.endsWith(".md")) documents.push(`docs/${name}`);
  }
  const folders = "src|tests|docs|deploy|packaging|bench|demo|\\.ci|\\.github";
  for (const path of documents) {
    const text = await Deno.readTextFile(new URL(path, ROOT));
    const named = text.matchAll(
      new RegExp(`\`((?:${folders})/[\\w./-]+)\``, "g"),
    );
    for (const [, name] of named) {
      const found = await Deno.stat(new URL(name!, ROOT)).catch(() => null);
      assert(found, `${path}: ${name}`);
    }
  }
});
