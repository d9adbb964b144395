/**
 * Compiles the program into one file that needs nothing else on its host.
 *
 * Usage: `deno task compile [--target TRIPLE] [--output FILE] [--write PATHS]`,
 * `deno task compile:all`. The permissions are baked in: those of the task
 * `cli`, with the variables taken from `src/config/variables.ts`.
 *
 * @module
 */
import { parseArgs } from "@std/cli/parse-args";
import { VARIABLES } from "../src/config/variables.ts";

/** The platforms of `compile:all`. */
export const TARGETS = [
  "x86_64-unknown-linux-gnu",
  "aarch64-unknown-linux-gnu",
  "x86_64-apple-darwin",
  "aarch64-apple-darwin",
  "x86_64-pc-windows-msvc",
] as const;

/** Variables that are read in addition to the configuration. */
const OTHER_VARIABLES = ["NO_COLOR", "OTEL_DENO", "OTEL_DENO_CONSOLE"];

const ROOT = new URL("../", import.meta.url).pathname;
const OUTPUT = "dist/marketing-data-service";

const USAGE =
  `Usage: deno task compile [--target TRIPLE] [--output FILE] [--write PATHS]
       deno task compile:all

--target  one of ${TARGETS.join(", ")} (default: the host)
--output  default: ${OUTPUT}
--write   files and folders that the program may write to, separated by commas
          (default: all that its user may write to)`;

if (import.meta.main) Deno.exit(await main(Deno.args));

async function main(args: readonly string[]): Promise<number> {
  let isWrong = false;
  const flags = parseArgs([...args], {
    string: ["target", "output", "write"],
    boolean: ["all", "help"],
    unknown: () => !(isWrong = true),
  });
  const { target, write } = flags as { target?: string; write?: string };
  if (target && !(TARGETS as readonly string[]).includes(target)) {
    isWrong = true;
  }
  if (flags.help || isWrong) {
    printError(USAGE);
    return flags.help ? 0 : 64;
  }
  const targets = flags.all ? TARGETS : [target ?? Deno.build.target];
  for (const target of targets) {
    const output = flags.all
      ? `${OUTPUT}-${target}`
      : (flags.output as string | undefined) ?? OUTPUT;
    const code = await compileFor(target, output, write);
    if (code !== 0) return code;
  }
  return 0;
}

interface Compilation {
  readonly target: string;
  readonly output: string;
  readonly write: string | undefined;
}

/**
 * Compiles for one platform, and returns the exit code. Explains how to provide a
 * missing base binary. `write` limits the paths that the program may write to.
 */
export async function compileFor(
  target: string,
  output: string,
  write?: string,
): Promise<number> {
  // Fill Deno's cache, which `unparsablePaths` searches.
  const cached = await deno(["cache", "--frozen", "main.ts"]);
  if (cached.code !== 0) return cached.code;
  const { code, stderr } = await deno(
    compileArguments({ target, output, write }, await newerFlags()),
    environmentFor(target),
  );
  if (code !== 0 && /denort|base binary/i.test(stderr)) {
    printError(missingRuntime(target));
  }
  return code;
}

/** Returns the environment, without a base binary for another platform than the target. */
function environmentFor(target: string): Record<string, string> {
  const { DENORT_BIN, ...others } = Deno.env.toObject();
  return target === Deno.build.target && DENORT_BIN
    ? { ...others, DENORT_BIN }
    : others;
}

/** Runs Deno in the project's folder. Returns its exit code and its standard error. */
async function deno(
  args: string[],
  env = Deno.env.toObject(),
): Promise<{ code: number; stderr: string }> {
  const process = new Deno.Command(Deno.execPath(), {
    args,
    cwd: ROOT,
    clearEnv: true,
    env,
    stdin: "null",
    stderr: "piped",
  }).spawn();
  let stderr = "";
  for await (const bytes of process.stderr) {
    Deno.stderr.writeSync(bytes);
    stderr += new TextDecoder().decode(bytes);
  }
  const { code } = await process.status;
  return { code, stderr };
}

function compileArguments(
  { target, output, write }: Compilation,
  optional: readonly string[],
): string[] {
  const variables = [...Object.keys(VARIABLES), ...OTHER_VARIABLES];
  return [
    "compile",
    "--no-prompt",
    "--frozen",
    // The cache has a fixed name in TMPDIR, where another user can plant code.
    "--no-code-cache",
    "--unstable-cron",
    ...optional,
    // A small young generation halves the memory of the program.
    "--v8-flags=--max-semi-space-size=1",
    "--allow-net",
    "--allow-read",
    // The program recognizes files of other users by their id.
    "--allow-sys=uid",
    // The path of EVENT_FILE is not known yet.
    write ? `--allow-write=${write}` : "--allow-write",
    `--allow-env=${variables}`,
    "--ignore-env",
    "--include=src/serve.ts",
    "--include=src/runs/migrations",
    "--include=src/cli/licenses.txt",
    "--include=src/http/pages/dashboard.css",
    "--include=src/http/pages/dashboard.js",
    "--include=src/http/pages/table_list.css",
    "--include=src/http/pages/table_list.js",
    ...unparsablePaths().map((path) => `--exclude=${path}`),
    ...(target === Deno.build.target ? [] : [`--target=${target}`]),
    `--output=${output}`,
    "cli.ts",
  ];
}

/** Returns the flags that only some versions of Deno have. */
async function newerFlags(): Promise<string[]> {
  const { stdout } = await new Deno.Command(Deno.execPath(), {
    args: ["compile", "--help"],
    env: { NO_COLOR: "1" },
  }).output();
  const help = new TextDecoder().decode(stdout);
  return ["--exclude-unused-npm"].filter((flag) => help.includes(flag));
}

/**
 * Returns the paths of test data that Deno 2.9 parses as JavaScript, because they
 * have no file extension. Their hundred thousand additions overflow the stack of
 * its parser (denoland/deno#36746).
 */
function unparsablePaths(): string[] {
  const cache = denoDirectory();
  const registries = cache ? foldersIn(`${cache}/npm`) : [];
  return registries.flatMap((registry) =>
    foldersIn(`${registry}/bintrees`).map((version) =>
      `${Deno.realPathSync(version)}/test`
    )
  );
}

/** Returns the path of Deno's cache. */
function denoDirectory(): string | undefined {
  const { stdout } = new Deno.Command(Deno.execPath(), {
    args: ["info", "--json"],
  }).outputSync();
  return JSON.parse(new TextDecoder().decode(stdout)).denoDir;
}

function foldersIn(path: string): string[] {
  try {
    return [...Deno.readDirSync(path)]
      .filter((entry) => entry.isDirectory)
      .map((entry) => `${path}/${entry.name}`);
  } catch {
    return []; // Not every registry has every package.
  }
}

function missingRuntime(target: string): string {
  const version = Deno.version.deno;
  return `
Cannot compile: denort is missing. It is the runtime of a compiled program, and
Deno downloads it on first use. If that is not possible, fetch
denort-${target}.zip
of the release of Deno ${version} elsewhere. Then unpack it and name the file,

  DENORT_BIN=/path/to/denort deno task compile

or put the archive into Deno's cache (\`deno info\` names the folder). This also
serves \`compile:all\`:

  DENO_DIR/dl/release/v${version}/denort-${target}.zip`;
}

function printError(text: string): void {
  Deno.stderr.writeSync(new TextEncoder().encode(`${text}\n`));
}
