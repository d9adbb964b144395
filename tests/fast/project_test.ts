import { assert, assertEquals } from "@std/assert";
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

/** The specifiers that a module imports, resolved to paths where they are relative. */
async function importsOf(path: string): Promise<string[]> {
  const text = await Deno.readTextFile(new URL(path, ROOT));
  return [...text.matchAll(/(?:from|import\()\s*"([^"]+)"/g)].map((
    [, specifier],
  ) =>
    specifier!.startsWith(".")
      ? new URL(specifier!, new URL(path, ROOT)).pathname.slice(
        ROOT.pathname.length,
      )
      : specifier!
  );
}

Deno.test("the import rules hold", async () => {
  const pure = [
    "croner",
    "src/config/config.ts",
    "src/config/crontab.ts",
    "src/config/parsers.ts",
    "src/config/variables.ts",
    "src/errors.ts",
    "src/format.ts",
    "src/tables/declaration.ts",
  ];
  for await (const path of modules("src/")) {
    const imports = await importsOf(path);
    const text = await Deno.readTextFile(new URL(path, ROOT));
    if (!path.startsWith("src/postgres/")) {
      assert(!imports.includes("postgres"), `${path} imports postgres`);
    }
    if (pure.includes(path)) {
      for (const i of imports) assert(pure.includes(i), `${path} imports ${i}`);
    }
    for (const edge of ["src/http/", "src/cli/", "src/service/schedule.ts"]) {
      const others = ["src/http/", "src/cli/", "src/service/schedule.ts"]
        .filter((
          e,
        ) => e !== edge);
      if (!path.startsWith(edge)) continue;
      for (const i of imports) {
        assert(
          !others.some((other) => i.startsWith(other)),
          `${path} imports ${i}`,
        );
      }
    }
    for (
      const forbidden of ["Deno.env", "Deno.exit", "Deno.addSignalListener"]
    ) {
      // The one place that reads variables: it keeps Deno's errors, which hold their values.
      if (path === "src/cli/environment.ts") continue;
      assert(!text.includes(forbidden), `${path} uses ${forbidden}`);
    }
    const { imports: production } = JSON.parse(
      await Deno.readTextFile(new URL("deno.json", ROOT)),
    );
    for (const i of imports) {
      assert(
        /^(src|main|cli|node:)/.test(i) || i in production ||
          i.startsWith("hono/"),
        `${path} imports ${i}`,
      );
    }
  }
});

Deno.test("the permission set of deno.json allows every variable and nothing wholesale", async () => {
  const { tasks, permissions } = JSON.parse(
    await Deno.readTextFile(new URL("deno.json", ROOT)),
  );
  assertEquals(
    new Set(permissions.default.env.allow),
    new Set([...Object.keys(VARIABLES), "NO_COLOR", "OTEL_DENO"]),
  );
  const { command } = tasks.cli;
  assert(/ -P /.test(command), command);
  assert(!/ -A\b|--allow-/.test(command), command);
  for (const [name, task] of Object.entries<{ description: string }>(tasks)) {
    assert(/^[A-Z].*[^.]$/.test(task.description), name);
  }
});

Deno.test("deno.lock holds the packages of src and no others", async () => {
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
  // Both name the same versions, or tests would not test what is run.
  for (const key of held) assert(key in development.npm, key);
});

Deno.test("every error has a remedy that is a sentence", async () => {
  const { ERRORS } = await import("../../src/errors.ts");
  for (const [code, { remedy }] of Object.entries(ERRORS)) {
    assert(/^[A-Z].*[.]$/.test(remedy), `${code}: ${remedy}`);
  }
});

Deno.test("no file of the project is named after nothing", async () => {
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
