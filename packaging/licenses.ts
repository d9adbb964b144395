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

/** Returns the text of all licenses. Packages with equal terms follow each other, with the terms once. */
function licenses(): string {
  const mit = Deno.readTextFileSync(OWN).split("\n\n").slice(2).join("\n\n");
  const groups = new Map<string, { terms: string; packages: string[] }>();
  for (const one of lockedPackages()) {
    const { id, text, author } = licenseOf(one);
    const given = text ??
      (id === "MIT"
        ? `Copyright (c) ${author}\n\n${mit}`
        : `${id}, by ${author}`);
    const paragraphs = given.replaceAll("\r\n", "\n").trim().split(/\n{2,}/);
    const isCopyright = (text: string) => /^\s*copyright (?!\[)/i.test(text);
    // The name of a license is printed beside the package.
    const terms = paragraphs
      .filter((text) => !isCopyright(text) && !/\bMIT license\b/i.test(text))
      .join("\n\n");
    // Equal terms differ in their line breaks, and in an appendix that shows their use.
    const key = terms.split("APPENDIX")[0]!.replaceAll(/\s+/g, " ").trim();
    const group = groups.get(key) ?? { terms, packages: [] };
    group.packages.push(
      [`${one.name} ${one.version} (${id})`, ...paragraphs.filter(isCopyright)]
        .map((text) => text.trim()).join("\n  "),
    );
    groups.set(key, group);
  }
  return [
    INTRODUCTION,
    ...[...groups.values()].map(({ terms, packages }) =>
      `${"=".repeat(72)}\n${packages.join("\n")}\n\n${terms}\n`
    ),
  ].join("\n");
}

if (import.meta.main) Deno.writeTextFileSync(FILE, licenses());
