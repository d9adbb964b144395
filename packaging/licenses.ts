/**
 * Writes `src/cli/licenses.txt`, which `version --licenses` prints: the licenses of
 * the packages that a compiled program contains. Run `deno task licenses` after a
 * change of `deno.lock`.
 *
 * @module
 */
import { licenseOf, lockedPackages } from "./packages.ts";

const FILE = new URL("../src/cli/licenses.txt", import.meta.url);
const OWN = new URL("../LICENSE", import.meta.url);

const INTRODUCTION =
  `marketing-data-service contains the packages below. A compiled program also
contains Deno, under the MIT license, copyright 2018-2026 the Deno authors. Deno
contains V8 and other libraries: https://github.com/denoland/deno lists them.
`;

/** Returns the text of all licenses. Equal texts are printed once. */
function licenses(): string {
  const mit = Deno.readTextFileSync(OWN).split("\n\n").slice(2).join("\n\n");
  const groups = new Map<string, string[]>();
  for (const one of lockedPackages()) {
    const { id, text, author } = licenseOf(one);
    const terms = text ??
      (id === "MIT"
        ? `Copyright (c) ${author}\n\n${mit}`
        : `${id}, by ${author}`);
    const names = groups.get(terms.trim()) ?? [];
    names.push(`${one.name} ${one.version} (${id})`);
    groups.set(terms.trim(), names);
  }
  return [
    INTRODUCTION,
    ...[...groups].map(([terms, names]) =>
      `${"=".repeat(72)}\n${names.join("\n")}\n\n${
        terms.replaceAll("\r\n", "\n")
      }\n`
    ),
  ].join("\n");
}

if (import.meta.main) Deno.writeTextFileSync(FILE, licenses());
