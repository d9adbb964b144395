/**
 * Programs that some tests need in addition to Deno and the embedded PostgreSQL,
 * with their Debian packages. As a script, it prints the missing packages.
 *
 * @module
 */
import { findInstalledPostgres } from "../../demo/postgres.ts";
import { skip } from "./measure.ts";

/** Folders that are not in the PATH of users on Debian. */
const SYSTEM_FOLDERS = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

const LIBRARIES = `/usr/lib/${Deno.build.arch}-linux-gnu`;

/** Prints the variables of files with the syntax of EnvironmentFile=. */
export const ENVIRONMENT_GENERATOR =
  "/usr/lib/systemd/user-environment-generators/30-systemd-environment-d-generator";

/** Programs and their Debian packages. A name with a slash is the path of a file. */
const DEBIAN_PACKAGES = {
  bash: "bash",
  chromium: "chromium",
  curl: "curl",
  kubectl: "kubernetes-client",
  mount: "mount",
  nginx: "nginx-light",
  openssl: "openssl",
  pgbouncer: "pgbouncer",
  prlimit: "util-linux",
  promtool: "prometheus",
  psql: "postgresql-client",
  python3: "python3",
  script: "bsdutils",
  sed: "sed",
  "systemd-analyze": "systemd",
  [ENVIRONMENT_GENERATOR]: "systemd",
  [`${LIBRARIES}/faketime/libfaketime.so.1`]: "libfaketime",
} as const;

/** A program that some tests need. */
type Program = Exclude<keyof typeof DEBIAN_PACKAGES, number>;

/** Path of the library that changes the clock of a process. */
export const FAKETIME = `${LIBRARIES}/faketime/libfaketime.so.1`;

/** Returns the path of a program, or `undefined` when it is not installed. */
export function findProgram(name: string): string | undefined {
  // On other systems, a program of this name has other options.
  if (name === "script" && Deno.build.os !== "linux") return undefined;
  const folders = [
    ...(Deno.env.get("PATH") ?? "").split(":").filter(Boolean),
    ...SYSTEM_FOLDERS,
  ];
  return (name.includes("/") ? [name] : folders.map((f) => `${f}/${name}`))
    .find((path) => {
      try {
        return Deno.statSync(path).isFile;
      } catch {
        return false;
      }
    });
}

/** Returns the remedy for missing programs, or `undefined` when all are installed. */
function missing(programs: readonly Program[]): string | undefined {
  const packages = packagesOf(programs);
  if (packages.length === 0) return undefined;
  const noun = packages.length > 1 ? "packages" : "package";
  return `install the Debian ${noun} ${packages.join(" ")}`;
}

/**
 * Returns the remedy for the missing programs of a shell command, or `undefined`
 * when all are installed.
 */
export function missingOf(command: string): string | undefined {
  const words = command.split(/[^\w-]+/);
  return missing(
    (Object.keys(DEBIAN_PACKAGES) as Program[])
      .filter((name) => words.includes(name)),
  );
}

/**
 * Registers a test that needs programs. Without one of them, the test is ignored,
 * and its name contains the reason.
 */
export function testWith(
  programs: readonly Program[],
  name: string,
  fn: (t: Deno.TestContext) => unknown,
): void {
  const remedy = missing(programs);
  if (remedy) skip(name, remedy);
  Deno.test({
    name: remedy ? `SKIPPED, ${remedy}: ${name}` : name,
    ignore: remedy !== undefined,
    fn: async (t) => {
      await fn(t);
    },
  });
}

function packagesOf(programs: readonly Program[]): string[] {
  return [
    ...new Set<string>(
      programs.filter((name) => !findProgram(name))
        .map((name) => DEBIAN_PACKAGES[name]!),
    ),
  ];
}

if (import.meta.main) {
  const names = packagesOf(Object.keys(DEBIAN_PACKAGES) as Program[]);
  if (!findInstalledPostgres()) names.push("postgresql");
  Deno.stdout.writeSync(new TextEncoder().encode(`${names.join(" ")}\n`));
}
