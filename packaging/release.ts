/**
 * Makes a release in `dist/` from one version number. It has a program for each
 * platform, checksums, a list of the packages (CycloneDX), and the notes.
 *
 * Usage: `deno task release VERSION [--target TRIPLE]…`. Writes the number to the
 * files that contain it, and dates the section of the changelog.
 *
 * @module
 */
import { parseArgs } from "@std/cli/parse-args";
import { compileFor, TARGETS } from "./compile.ts";
import { licenseOf, lockedPackages, type Package } from "./packages.ts";

const ROOT = new URL("../", import.meta.url);
const NAME = "marketing-data-service";

/** The places of the version: files, and what stands before the number. */
const PLACES: readonly (readonly [file: string, before: RegExp])[] = [
  ["deno.json", /"version": "/g],
  ["src/identity.ts", /VERSION = "/g],
  ["Dockerfile", /(?:ARG VERSION=|marketing-data-service:)/g],
  ["deploy/kubernetes/kustomization.yaml", /newTag: /g],
  ["deploy/kubernetes/service.yaml", /marketing-data-service:/g],
  ["deploy/kubernetes/cronjob.yaml", /marketing-data-service:/g],
  ["docs/operations.md", /marketing-data-service:/g],
];

/** Returns the files that contain the version, with another version. */
export function withVersion(version: string): Map<string, string> {
  return new Map(PLACES.map(([file, before]) => {
    const text = read(file);
    const pattern = new RegExp(`(${before.source})\\d+\\.\\d+\\.\\d+`, "g");
    if (!pattern.test(text)) throw new Error(`${file} contains no version`);
    return [file, text.replaceAll(pattern, `$1${version}`)];
  }));
}

/** Returns the changelog with a dated section for a version, and the text of that section. */
export function releaseChangelog(
  changelog: string,
  version: string,
  date: string,
): { changelog: string; notes: string } {
  const dated = changelog.includes(`\n## ${version} - `)
    ? changelog
    : changelog.replace(
      "\n## Unreleased\n",
      `\n## Unreleased\n\n## ${version} - ${date}\n`,
    );
  const [, notes] = dated.split(`\n## ${version} - `)[1]!
    .split(/\n## /)[0]!.match(/^[^\n]*\n([^]*)$/)!;
  return { changelog: dated, notes: `${notes!.trim()}\n` };
}

/** Returns the packages of the program as a CycloneDX document. */
export function softwareBill(version: string) {
  const reference = ({ name, version }: Pick<Package, "name" | "version">) =>
    `pkg:npm/${name.replace("@", "%40")}@${version}`;
  const byId = (id: string) => {
    const [, name, version] = /^(.+)@(.+)$/.exec(id)!;
    return reference({ name: name!, version: version! });
  };
  const packages = lockedPackages();
  const runtime = `pkg:github/denoland/deno@v${Deno.version.deno}`;
  const own = `pkg:generic/${NAME}@${version}`;
  return {
    bomFormat: "CycloneDX",
    specVersion: "1.6",
    version: 1,
    metadata: {
      component: {
        type: "application",
        "bom-ref": own,
        name: NAME,
        version,
        licenses: [{ license: { id: "MIT" } }],
      },
    },
    components: [
      {
        type: "platform",
        "bom-ref": runtime,
        name: "deno",
        version: Deno.version.deno,
        purl: runtime,
        licenses: [{ license: { id: "MIT" } }],
      },
      ...packages.map((one) => ({
        type: "library",
        "bom-ref": reference(one),
        name: one.name,
        version: one.version,
        purl: reference(one),
        licenses: [{ license: { id: licenseOf(one).id } }],
        hashes: [{
          alg: "SHA-512",
          content: hex(one.integrity.replace("sha512-", "")),
        }],
      })),
    ],
    dependencies: [
      { ref: own, dependsOn: [runtime, ...packages.map(reference)] },
      ...packages.map((one) => ({
        ref: reference(one),
        dependsOn: one.dependencies.map(byId),
      })),
    ],
  };
}

async function main(args: readonly string[]): Promise<number> {
  let isWrong = false;
  const flags = parseArgs([...args], {
    string: ["target", "_"],
    collect: ["target"],
    unknown: (word) => !word.startsWith("-") || !(isWrong = true),
  });
  const [given, ...others] = flags._;
  isWrong ||= others.length > 0;
  const target = flags.target as string[];
  const version = String(given ?? "");
  const targets = target.length > 0 ? target : TARGETS;
  const unknown = targets.filter((t) =>
    !(TARGETS as readonly string[]).includes(t)
  );
  if (isWrong || !/^\d+\.\d+\.\d+$/.test(version) || unknown.length > 0) {
    print(
      `Usage: deno task release VERSION [--target TRIPLE]…\n\nVERSION  three numbers, such as 1.0.0\nTRIPLE   one of ${
        TARGETS.join(", ")
      } (default: all)`,
    );
    return 64;
  }
  const { changelog, notes } = releaseChangelog(
    read("CHANGELOG.md"),
    version,
    new Date().toISOString().slice(0, 10),
  );
  for (const [file, text] of withVersion(version)) write(file, text);
  write("CHANGELOG.md", changelog);
  Deno.mkdirSync(new URL("dist/", ROOT), { recursive: true });
  const files: string[] = [];
  for (const target of targets) {
    const suffix = target.includes("windows") ? ".exe" : "";
    const file = `${NAME}-${version}-${target}${suffix}`;
    const code = await compileFor(target, `dist/${file}`);
    if (code !== 0) return code;
    files.push(file);
  }
  const bill = `${NAME}-${version}.cdx.json`;
  write(`dist/${bill}`, `${JSON.stringify(softwareBill(version), null, 2)}\n`);
  write(`dist/${NAME}-${version}.md`, notes);
  let sums = "";
  for (const file of [...files, bill]) {
    const bytes = Deno.readFileSync(new URL(`dist/${file}`, ROOT));
    sums += `${await sha256(bytes)}  ${file}\n`;
  }
  write("dist/SHA256SUMS", sums);
  print(
    `Wrote ${files.length} programs, SHA256SUMS, ${bill} and the notes to dist/.
Commit the changed files, and tag the commit v${version}. Then build the image:

  docker build --tag ${NAME}:${version} --build-arg REVISION=$(git rev-parse HEAD) .`,
  );
  return 0;
}

function hex(base64: string): string {
  return [...atob(base64)].map((c) =>
    c.charCodeAt(0).toString(16).padStart(2, "0")
  ).join("");
}

async function sha256(bytes: Uint8Array<ArrayBuffer>): Promise<string> {
  const digest = await crypto.subtle.digest("SHA-256", bytes);
  return [...new Uint8Array(digest)].map((b) => b.toString(16).padStart(2, "0"))
    .join("");
}

const read = (file: string) => Deno.readTextFileSync(new URL(file, ROOT));
const write = (file: string, text: string) =>
  Deno.writeTextFileSync(new URL(file, ROOT), text);

function print(text: string): void {
  Deno.stderr.writeSync(new TextEncoder().encode(`${text}\n`));
}

if (import.meta.main) Deno.exit(await main(Deno.args));
