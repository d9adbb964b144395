/**
 * Runs the tests that depend on the version of PostgreSQL on each supported version
 * older than that of the demo. The servers come from npm.
 *
 * @module
 */
import { findMemoryFolder, startPostgres } from "../demo/postgres.ts";
import {
  BY_VERSION,
  HBA,
  print,
  type Result,
  runTests,
  SERVER_BYTES,
  summarize,
} from "./run.ts";

const isLinuxX64 = Deno.build.os === "linux" && Deno.build.arch === "x86_64";
const VERSIONS = [
  // npm has this one for Linux on x64 only.
  ...isLinuxX64 ? ["14.22.0-beta.17"] : [],
  "15.18.0-beta.17",
  "16.14.0-beta.17",
  "17.10.0-beta.17",
];

const results: Result[] = [];
for (const npmVersion of VERSIONS) {
  await using server = await startPostgres({
    npmVersion,
    hba: HBA,
    parent: findMemoryFolder(SERVER_BYTES),
  });
  results.push(
    await runTests(
      `PostgreSQL ${npmVersion}`,
      server.url(),
      BY_VERSION,
      navigator.hardwareConcurrency,
      print,
    ),
  );
}
Deno.exit(summarize(results));
