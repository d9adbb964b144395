/**
 * Runs the tests. Starts the servers that they need, passes their addresses, and
 * stops them in every case. Arguments go to `deno test`. With `TEST_DATABASE_URL`,
 * the tests use that server. Otherwise all tests run on the embedded server. Those
 * in `tests/load/` that depend on the version of the server also run on an installed
 * PostgreSQL of another version, if there is one.
 *
 * @module
 */
import {
  findInstalledPostgres,
  findMemoryFolder,
  type PostgresServer,
  startPostgres,
} from "../demo/postgres.ts";

const HBA = [
  "host all postgres 127.0.0.1/32 trust",
  "host all all 127.0.0.1/32 scram-sha-256",
];

/** Free memory that the files of the test server may need, in bytes. */
const SERVER_BYTES = 4 * 2 ** 30;

/** The files that take longest. They start first, so that none runs alone at the end. */
const SLOWEST_FILES = [
  "tests/faults/random_test.ts",
  "tests/faults/kill_test.ts",
  "tests/faults/stall_test.ts",
  "tests/browser/looks_test.ts",
  "tests/faults/backend_test.ts",
  "tests/faults/cut_test.ts",
  "tests/deliveries/webhook_test.ts",
  "tests/faults/service_test.ts",
  "tests/faults/pipeline_test.ts",
  "tests/load/many_tables_test.ts",
  "tests/load/queue_test.ts",
];

/**
 * What a healthy server does not log: a crash, and limits of the machine. Such a
 * fault fails tests that happen to run at that moment.
 */
const SERVER_FAULTS =
  /terminated by signal|PANIC:|"base.*No space left|[Oo]ut of memory|could not fork|too many clients|connection slots/;

/**
 * Tests of loads that do not depend on the version of PostgreSQL, or that start
 * servers of both versions.
 */
const SAME_ON_ALL_VERSIONS = [
  "declared_tables",
  "many_tables",
  "mara",
  "olist",
  "olist_tables",
  "pgbouncer",
  "queue",
  "random_tables",
  "row_versions",
].map((name) => `tests/load/${name}_test.ts`);

if (import.meta.main) Deno.exit(await main(Deno.args));

async function main(words: string[]): Promise<number> {
  const given = Deno.env.get("TEST_DATABASE_URL");
  if (given) {
    return summarize([await runTests("the given server", given, words)]);
  }
  const results: Result[] = [];
  const parent = findMemoryFolder(SERVER_BYTES);
  {
    await using server = await startPostgres({ hba: HBA, parent });
    results.push(
      await runTests(`PostgreSQL ${major(server)}`, server.url(), words),
    );
    printFaults(server);
  }
  const installed = findInstalledPostgres();
  if (installed && words.length === 0) {
    await using server = await startPostgres({
      hba: HBA,
      parent,
      binDirectory: installed,
    });
    results.push(
      await runTests(`PostgreSQL ${major(server)}`, server.url(), [
        "tests/load/",
        `--ignore=${SAME_ON_ALL_VERSIONS.join(",")}`,
      ]),
    );
    printFaults(server);
  } else if (words.length === 0) {
    print(
      "SKIPPED, install the Debian package postgresql: the load tests on another version.",
    );
  }
  return summarize(results);
}

interface Result {
  readonly code: number;
  readonly passed: number;
  readonly failed: number;
  readonly ignored: number;
  /** The names of the failed tests, each with the beginning of its error. */
  readonly errors: readonly string[];
}

/** Runs `deno test`, prints its output, and reads its last line. */
async function runTests(
  label: string,
  url: string,
  words: string[],
): Promise<Result> {
  print(`Tests on ${label}`);
  const process = new Deno.Command(Deno.execPath(), {
    args: [
      "test",
      "--parallel",
      "--no-check",
      "--lock=dev.lock",
      // The tests need all permissions: they look in /proc for the remains of a crash.
      "--allow-all",
      ...(words.length > 0 ? words : [...SLOWEST_FILES, "tests/", "src/"]),
    ],
    env: {
      TEST_DATABASE_URL: url,
      NO_COLOR: "1",
      // Tests of faults mostly wait, so three files per processor keep it busy.
      DENO_JOBS: Deno.env.get("DENO_JOBS") ??
        String(3 * navigator.hardwareConcurrency),
    },
    stdin: "null",
    stdout: "piped",
  }).spawn();
  let output = "";
  for await (
    const text of process.stdout.pipeThrough(new TextDecoderStream())
  ) {
    Deno.stdout.writeSync(new TextEncoder().encode(text));
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
    errors: [...output.matchAll(/^(.+ => .+)\nerror: ([^]{0,500})/gm)]
      .map(([, name, error]) =>
        `${name}\n  ${error!.replaceAll("\n", "\n  ")}`
      ),
  };
}

function summarize(results: readonly Result[]): number {
  const sum = (of: (result: Result) => number) =>
    results.reduce((n, r) => n + of(r), 0);
  const skipped = sum((r) => r.ignored);
  const failed = results.some((r) => r.code !== 0 && r.failed === 0) ? 1 : 0;
  for (const error of results.flatMap(({ errors }) => errors)) print(error);
  print(
    `${sum((r) => r.passed)} passed, ${sum((r) => r.failed) + failed} failed${
      skipped > 0 ? `, ${skipped} skipped` : ""
    }`,
  );
  return results.every((r) => r.code === 0) ? 0 : 1;
}

/** Prints the first lines of the server's log that explain failures of several tests. */
function printFaults(server: PostgresServer): void {
  const lines = server.logged(SERVER_FAULTS);
  if (lines.length === 0) return;
  print(
    `The log of PostgreSQL ${major(server)} has ${lines.length} lines like`,
  );
  for (const line of lines.slice(0, 5)) print(`  ${line}`);
}

function major(server: PostgresServer): number {
  return Math.floor(server.version / 10_000);
}

function print(text: string): void {
  Deno.stdout.writeSync(new TextEncoder().encode(`${text}\n`));
}
