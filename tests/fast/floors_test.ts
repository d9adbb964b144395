import { assertEquals } from "@std/assert";

const ROOT = new URL("../../", import.meta.url);

/**
 * The floors of the program, from the ground up. A file imports from its own
 * floor or from a lower one. A path with a trailing slash is a folder.
 */
const FLOORS: readonly (readonly string[])[] = [
  [
    "src/errors.ts",
    "src/identity.ts",
    "src/append_file.ts",
    "src/format.ts",
    "src/suggest.ts",
    "src/timeout.ts",
  ],
  ["src/tables/"],
  ["src/config/"],
  ["src/log.ts"],
  ["src/postgres/"],
  ["src/context.ts"],
  ["src/diff/"],
  ["src/sync/"],
  ["src/runs/"],
  ["src/delivery/"],
  ["src/load/"],
  ["src/mara/"],
  ["src/service/"],
  ["src/http/"],
  ["src/cli/"],
  ["src/serve.ts"],
  ["cli.ts"],
  ["main.ts"],
];

/** Edges of the program, which never import each other. */
const EDGES = ["src/http/", "src/cli/"];

/** Packages, and the place that alone imports them. */
const OWNERS = { postgres: "src/postgres/driver.ts" };

/** Modules without side effects. They import only these packages, and no module of the system. */
const PURE = ["src/errors.ts", "src/format.ts", "src/config/", "src/tables/"];
const PURE_PACKAGES = ["croner", "yaml", "zod"];

/** Uses of the process, and the only files that may contain them. */
const PROCESS_USERS: Readonly<Record<string, readonly string[]>> = {
  // This module catches Deno's errors, because they contain the values of variables.
  "Deno.env": ["cli.ts", "main.ts", "src/cli/environment.ts"],
  "Deno.exit": ["cli.ts", "main.ts"],
  "Deno.addSignalListener": ["cli.ts", "main.ts"],
};

/** The text of every module by its path, relative to the root. */
type Modules = ReadonlyMap<string, string>;

/** Reads the modules of the program without its tests. */
async function readProgram(): Promise<Modules> {
  const modules = new Map<string, string>();
  const readFolder = async (folder: string) => {
    for await (const entry of Deno.readDir(new URL(folder, ROOT))) {
      const path = `${folder}${entry.name}`;
      if (entry.isDirectory) await readFolder(`${path}/`);
      else if (/(?<!_test|\.d)\.tsx?$/.test(path)) await readFile(path);
    }
  };
  const readFile = async (path: string) => {
    modules.set(path, await Deno.readTextFile(new URL(path, ROOT)));
  };
  await readFolder("src/");
  await readFile("cli.ts");
  await readFile("main.ts");
  return modules;
}

/** Returns the specifiers of a module's imports, as paths where they are relative. */
function importsOf(path: string, text: string): string[] {
  const specifiers = text.matchAll(
    /(?:\bfrom|^import|\bimport\()\s*"([^"]+)"/gm,
  );
  return [...specifiers].map(([, specifier]) =>
    specifier!.startsWith(".")
      ? new URL(specifier!, new URL(path, ROOT)).href.slice(ROOT.href.length)
      : specifier!
  );
}

function isUnder(place: string, path: string): boolean {
  return place.endsWith("/") ? path.startsWith(place) : path === place;
}

/** Returns the number of a path's floor, or -1 for a path outside of the program. */
function floorOf(path: string): number {
  return FLOORS.findIndex((places) =>
    places.some((place) => isUnder(place, path))
  );
}

/** Returns a line for each import and each use of the process that breaks a rule. */
function findViolations(
  modules: Modules,
  imports: Readonly<Record<string, string>>,
): string[] {
  const violations: string[] = [];
  for (const [path, text] of modules) {
    if (floorOf(path) < 0) violations.push(`${path} is on no floor`);
    for (const target of importsOf(path, text)) {
      const reason = modules.has(target)
        ? reasonAgainstModule(path, target)
        : reasonAgainstPackage(path, target, imports);
      if (reason) violations.push(`${path} imports ${target}: ${reason}`);
    }
    for (const [use, users] of Object.entries(PROCESS_USERS)) {
      if (text.includes(use) && !users.includes(path)) {
        violations.push(`${path} uses ${use}`);
      }
    }
  }
  return [...violations, ...findCircles(modules)];
}

function reasonAgainstModule(path: string, target: string): string | undefined {
  const edge = (of: string) => EDGES.find((edge) => isUnder(edge, of));
  if (edge(path) && edge(target) && edge(path) !== edge(target)) {
    return "edges do not import each other";
  }
  return floorOf(target) > floorOf(path)
    ? "it is on a higher floor"
    : undefined;
}

function reasonAgainstPackage(
  path: string,
  target: string,
  imports: Readonly<Record<string, string>>,
): string | undefined {
  if (
    !PURE_PACKAGES.includes(target) &&
    PURE.some((place) => isUnder(place, path))
  ) {
    return "it is not pure";
  }
  if (target.startsWith("node:")) return undefined;
  const isProduction = Object.keys(imports).some((name) =>
    name === target || name.endsWith("/") && target.startsWith(name)
  );
  if (!isProduction) return "it is not a part of the program";
  const owner = OWNERS[target as keyof typeof OWNERS];
  return owner && !isUnder(owner, path) ? `only ${owner} does` : undefined;
}

/** Returns a line for each circle of imports, with its modules in order. */
function findCircles(modules: Modules): string[] {
  const circles: string[] = [];
  const finished = new Set<string>();
  const visit = (path: string, trail: readonly string[]) => {
    const start = trail.indexOf(path);
    if (start >= 0) {
      circles.push(`circle: ${[...trail.slice(start), path].join(" → ")}`);
      return;
    }
    if (finished.has(path)) return;
    for (const target of importsOf(path, modules.get(path)!)) {
      if (modules.has(target)) visit(target, [...trail, path]);
    }
    finished.add(path);
  };
  for (const path of modules.keys()) visit(path, []);
  return circles;
}

async function readImportMap(): Promise<Record<string, string>> {
  const text = await Deno.readTextFile(new URL("deno.json", ROOT));
  return JSON.parse(text).imports;
}

Deno.test("every import leads to the same floor or to a lower one", async () => {
  assertEquals(
    findViolations(await readProgram(), await readImportMap()),
    [],
  );
});

for (
  const [path, line, violation] of [
    [
      "src/diff/fingerprint.ts",
      'import { load } from "../load/load.ts";',
      "src/diff/fingerprint.ts imports src/load/load.ts: it is on a higher floor",
    ],
    [
      "src/errors.ts",
      'export * from "./config/config.ts";',
      "src/errors.ts imports src/config/config.ts: it is on a higher floor",
    ],
    [
      "src/sync/target.ts",
      'const { load } = await import("../load/load.ts");',
      "src/sync/target.ts imports src/load/load.ts: it is on a higher floor",
    ],
    [
      "src/cli/command.ts",
      'import type { App } from "../http/app.ts";',
      "src/cli/command.ts imports src/http/app.ts: edges do not import each other",
    ],
    [
      "src/http/app.ts",
      'import "../cli/command.ts";',
      "src/http/app.ts imports src/cli/command.ts: edges do not import each other",
    ],
    [
      "src/load/load.ts",
      'import postgres from "postgres";',
      "src/load/load.ts imports postgres: only src/postgres/driver.ts does",
    ],
    [
      "src/load/load.ts",
      'import { assert } from "@std/assert";',
      "src/load/load.ts imports @std/assert: it is not a part of the program",
    ],
    [
      "src/load/load.ts",
      'import { startPostgres } from "../../demo/postgres.ts";',
      "src/load/load.ts imports demo/postgres.ts: it is not a part of the program",
    ],
    [
      "src/load/load.ts",
      'const home = Deno.env.get("HOME");',
      "src/load/load.ts uses Deno.env",
    ],
    ["src/load/load.ts", "Deno.exit(1);", "src/load/load.ts uses Deno.exit"],
    [
      "src/config/config.ts",
      'import { readFileSync } from "node:fs";',
      "src/config/config.ts imports node:fs: it is not pure",
    ],
    ["src/utilities.ts", "", "src/utilities.ts is on no floor"],
  ] as const
) {
  Deno.test(`the check of the floors finds: ${violation}`, async () => {
    const modules = new Map(await readProgram());
    const imports = await readImportMap();
    const before = findViolations(modules, imports);
    modules.set(path, `${line}\n${modules.get(path) ?? ""}`);
    const found = findViolations(modules, imports)
      .filter((violation) => !before.includes(violation));
    assertEquals(found.filter((line) => !line.startsWith("circle")), [
      violation,
    ]);
  });
}

Deno.test("the check of the floors finds a circle within a folder", () => {
  const modules = new Map([
    ["src/diff/a.ts", 'import { b } from "./b.ts";'],
    ["src/diff/b.ts", 'import { c } from "./c.ts";'],
    ["src/diff/c.ts", 'export { a } from "./a.ts";'],
  ]);
  assertEquals(findViolations(modules, {}), [
    "circle: src/diff/a.ts → src/diff/b.ts → src/diff/c.ts → src/diff/a.ts",
  ]);
});

Deno.test("cli.ts starts without the driver, the log and the service", async () => {
  const { stdout } = await new Deno.Command(Deno.execPath(), {
    args: ["info", "--json", "cli.ts"],
    cwd: ROOT,
    stdin: "null",
  }).output();
  const { modules } = JSON.parse(new TextDecoder().decode(stdout)) as {
    modules: {
      specifier: string;
      dependencies?: {
        specifier: string;
        isDynamic?: boolean;
        code?: { specifier: string };
      }[];
    }[];
  };
  const byUrl = new Map(modules.map((module) => [module.specifier, module]));
  const loaded = new Set<string>();
  const names = new Set<string>();
  const load = (url: string) => {
    if (loaded.has(url)) return;
    loaded.add(url);
    for (const found of byUrl.get(url)?.dependencies ?? []) {
      if (found.isDynamic || !found.code) continue;
      names.add(found.specifier);
      load(found.code.specifier);
    }
  };
  load(`${ROOT}cli.ts`);
  assertEquals(loaded.has(`${ROOT}src/config/config.ts`), true);
  for (const name of ["postgres", "@logtape/logtape", "node:net"]) {
    assertEquals(names.has(name), false, name);
  }
  // Deno reads the files of all these imports before it starts the program.
  const imported = modules.flatMap(({ dependencies = [] }) =>
    dependencies.map(({ code }) => code?.specifier)
  );
  assertEquals(imported.includes(`${ROOT}src/cli/app_context.ts`), true);
  assertEquals(imported.includes(`${ROOT}src/serve.ts`), false);
});

Deno.test("docs/architecture.md lists the floors in the order of this check", async () => {
  const file = new URL("docs/architecture.md", ROOT);
  assertEquals(listedFloors(await Deno.readTextFile(file)), FLOORS);
});

/** Returns the floors of the code block whose first line names the ground. */
function listedFloors(text: string): string[][] {
  const [, block] = /^```text\n(ground [^]*?)^```/m.exec(text)!;
  return block!.trimEnd().split("\n").map((line) => {
    const [, ground] = /^ground +([\w. ]+):/.exec(line) ?? [];
    const names = ground?.split(" ") ?? [line.split(" ")[0]!];
    return names.map((name) =>
      ["cli.ts", "main.ts"].includes(name) ? name : `src/${name}`
    );
  });
}
