/**
 * Runs the tests. Starts the servers that they need, passes their addresses, and
 * stops them in every case. Arguments go to `deno test`. With `TEST_DATABASE_URL`,
 * the tests use that server. Otherwise all tests run on the embedded server. At the
 * same time, those in `tests/load/` that depend on the version of the server run on
 * an installed PostgreSQL of another version, if there is one.
 *
 * @module
 */
import {
  findInstalledPostgres,
  findMemoryFolder,
  type PostgresServer,
  startPostgres,
} from "../demo/postgres.ts";
import { createTemplates } from "./support/databases.ts";

export const HBA = [
  "host all postgres 127.0.0.1/32 trust",
  "host all all 127.0.0.1/32 scram-sha-256",
];

/** Free memory that the files of the test server may need, in bytes. */
export const SERVER_BYTES = 4 * 2 ** 30;

/** The files that take longest. They start first, so that none runs alone at the end. */
const SLOWEST_FILES = [
  "faults/random",
  "faults/kill",
  "faults/stall",
  "browser/looks",
  "faults/server",
  "security/early_commit",
  "faults/slow",
  "load/queue",
  "faults/index_build",
  "faults/service",
  "faults/failover",
  "browser/dashboard",
  "packaging/compile",
  "load/row_versions",
  "faults/copy_stall",
  "faults/cut",
  "faults/backend",
  "faults/settings",
  "browser/many_tables",
  "load/pgbouncer",
  "deliveries/webhook",
  "faults/pipeline",
  "http/api",
  "http/many_tables",
  "packaging/docker",
  "packaging/mara_guide",
  "http/readme",
].map((name) => `tests/${name}_test.ts`);

/**
 * What a healthy server does not log: a crash, and limits of the machine. Such a
 * fault fails tests that happen to run at that moment.
 */
const SERVER_FAULTS =
  /terminated by signal|PANIC:|"base.*No space left|[Oo]ut of memory|could not fork|too many clients|connection slots/;

/**
 * Tests of loads that depend on the version of PostgreSQL: on its catalogs, its
 * plans and its errors. `column_types_test.ts` and `row_versions_test.ts` are not
 * among them, because they start another version by themselves.
 */
export const BY_VERSION = [
  "attachments",
  "cli_load",
  "delta",
  "differing_rows",
  "failures",
  "harmless",
  "key",
  "partitioned_target",
  "refusals",
  "target",
  "views",
].map((name) => `tests/load/${name}_test.ts`);

/** Test files per processor, which mostly wait. Few run on the other version meanwhile. */
const FILES_PER_PROCESSOR = { all: 3, byVersion: 1 };

if (import.meta.main) Deno.exit(await main(Deno.args));

async function main(words: string[]): Promise<number> {
  const jobs = (perProcessor: number) =>
    Number(
      Deno.env.get("DENO_JOBS") ?? perProcessor * navigator.hardwareConcurrency,
    );
  const { all, byVersion } = FILES_PER_PROCESSOR;
  const given = Deno.env.get("TEST_DATABASE_URL");
  if (given) {
    return summarize([
      await runTests("the given server", given, words, jobs(all), print),
    ]);
  }
  const parent = findMemoryFolder(SERVER_BYTES);
  const runOn = async (
    binDirectory: string | undefined,
    files: string[],
    count: number,
    write: typeof print,
  ) => {
    await using server = await startPostgres({
      hba: HBA,
      parent,
      ...(binDirectory && { binDirectory }),
    });
    await createTemplates(server.url());
    const label = `PostgreSQL ${Math.floor(server.version / 10_000)}`;
    const result = await runTests(label, server.url(), files, count, write);
    printFaults(server, label, write);
    return result;
  };
  const installed = findInstalledPostgres();
  if (words.length > 0 || !installed) {
    const result = await runOn(undefined, words, jobs(all), print);
    if (words.length === 0) {
      print(
        "SKIPPED, install the Debian package postgresql: the load tests on another version.\n",
      );
    }
    return summarize([result]);
  }
  let later = "";
  const results = await Promise.all([
    runOn(undefined, words, jobs(all), print),
    runOn(installed, BY_VERSION, jobs(byVersion), (text) => later += text),
  ]);
  print(later);
  return summarize(results);
}

export interface Result {
  readonly code: number;
  readonly passed: number;
  readonly failed: number;
  readonly ignored: number;
  /** The names of the failed tests, each with the beginning of its error. */
  readonly errors: readonly string[];
}

/** Runs `deno test` on as many files at once, writes its output, and reads its last line. */
export async function runTests(
  label: string,
  url: string,
  words: string[],
  jobs: number,
  write: typeof print,
): Promise<Result> {
  write(`Tests on ${label}\n`);
  const process = new Deno.Command(Deno.execPath(), {
    args: [
      "test",
      "--parallel",
      "--no-check",
      "--lock=dev.lock",
      // The tests need all permissions: they look in /proc for the remains of a crash.
      "--allow-all",
      "--preload=tests/support/suppressed_errors.ts",
      ...(words.length > 0 ? words : [...SLOWEST_FILES, "tests/", "src/"]),
    ],
    env: {
      TEST_DATABASE_URL: url,
      NO_COLOR: "1",
      DENO_JOBS: String(jobs),
    },
    stdin: "null",
    stdout: "piped",
  }).spawn();
  let output = "";
  for await (
    const text of process.stdout.pipeThrough(new TextDecoderStream())
  ) {
    write(text);
    output += text;
  }
  const { code } = await process.status;
  const last = [
    ...output.matchAll(
      /(\d+) passed[^|]*?\| (\d+) failed(?: \| (\d+) ignored)?/g,
    ),
  ].at(-1);
  return {
    code,
    passed: Number(last?.[1] ?? 0),
    failed: Number(last?.[2] ?? 0),
    ignored: Number(last?.[3] ?? 0),
    errors: [...output.matchAll(/^(.+ => .+)\nerror: ([^]{0,1000})/gm)]
      .map(([, name, error]) =>
        `${name}\n  ${error!.replaceAll("\n", "\n  ")}`
      ),
  };
}

export function summarize(results: readonly Result[]): number {
  const sum = (of: (result: Result) => number) =>
    results.reduce((n, r) => n + of(r), 0);
  const skipped = sum((r) => r.ignored);
  const failed = results.some((r) => r.code !== 0 && r.failed === 0) ? 1 : 0;
  for (const error of results.flatMap(({ errors }) => errors)) {
    print(`${error}\n`);
  }
  print(
    `${sum((r) => r.passed)} passed, ${sum((r) => r.failed) + failed} failed${
      skipped > 0 ? `, ${skipped} skipped` : ""
    }\n`,
  );
  return results.every((r) => r.code === 0) ? 0 : 1;
}

/** Writes the first lines of the server's log that explain failures of several tests. */
function printFaults(
  server: PostgresServer,
  label: string,
  write: typeof print,
): void {
  const lines = server.logged(SERVER_FAULTS);
  if (lines.length === 0) return;
  write(`The log of ${label} has ${lines.length} lines like\n`);
  for (const line of lines.slice(0, 5)) write(`  ${line}\n`);
}

export function print(text: string): void {
  let bytes = new TextEncoder().encode(text);
  while (bytes.length > 0) {
    bytes = bytes.subarray(Deno.stdout.writeSync(bytes));
  }
}
