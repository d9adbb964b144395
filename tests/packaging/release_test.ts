import { Version } from "@cyclonedx/cyclonedx-library/Spec";
import { JsonStrictValidator } from "@cyclonedx/cyclonedx-library/Validation";
import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { parse } from "yaml";
import { licenseOf, lockedPackages } from "../../packaging/packages.ts";
import {
  releaseChangelog,
  softwareBill,
  withVersion,
} from "../../packaging/release.ts";
import { VERSION } from "../../src/identity.ts";
import { runProgram } from "../support/program.ts";

const ROOT = new URL("../../", import.meta.url);
const read = (file: string) => Deno.readTextFileSync(new URL(file, ROOT));

Deno.test("withVersion() finds one version in every file, and replaces it", () => {
  for (const [file, text] of withVersion(VERSION)) {
    assertEquals(text, read(file), file);
  }
  for (const [file, text] of withVersion("12.3.4")) {
    assertStringIncludes(text, "12.3.4", file);
    assert(!text.includes(`marketing-data-service:${VERSION}`), file);
  }
});

Deno.test("releaseChangelog() dates the section of a version once, and returns its text", () => {
  const text =
    "# Changelog\n\n## Unreleased\n\n- new\n\n## 0.1.0 - 2026\n\n- old\n";
  const { changelog, notes } = releaseChangelog(text, "0.2.0", "2027-01-01");
  assertStringIncludes(
    changelog,
    "## Unreleased\n\n## 0.2.0 - 2027-01-01\n\n- new\n\n## 0.1.0",
  );
  assertEquals(notes, "- new\n");
  assertEquals(releaseChangelog(changelog, "0.2.0", "2027-01-02"), {
    changelog,
    notes,
  });
});

Deno.test("softwareBill() lists every package of deno.lock, as CycloneDX requires", async () => {
  const bill = softwareBill(VERSION);
  const validator = new JsonStrictValidator(Version.v1dot6);
  const problemOf = (value: unknown) =>
    validator.validate(JSON.stringify(value));
  assertEquals(await problemOf(bill), null);
  assert(await problemOf({ ...bill, version: "one" }) !== null);
  const references = new Set(bill.components.map((c) => c["bom-ref"]));
  assertEquals(references.size, lockedPackages().length + 1);
  for (const { dependsOn } of bill.dependencies) {
    for (const one of dependsOn) assert(references.has(one), one);
  }
});

Deno.test("version --licenses names every package of deno.lock with its license and its copyright", async () => {
  const { code, stdout } = await runProgram(["version", "--licenses"]);
  assertEquals(code, 0);
  for (const one of lockedPackages()) {
    const { name, version } = one;
    // `deno task licenses` writes them.
    const at = stdout.indexOf(`\n${name} ${version} (`);
    assert(at >= 0, name);
    const { text = "" } = licenseOf(one);
    for (const [line] of text.matchAll(/^ *Copyright (?!\[).*$/gm)) {
      assert(stdout.includes(line.trim(), at), `${name}: ${line}`);
    }
  }
});

Deno.test("the example of a CI runs the two commands of the README", () => {
  const { jobs } = parse(read(".github/workflows/ci.yml"));
  const commands = jobs.test.steps.map((s: { run?: string }) => s.run);
  for (const [, command] of read("README.md").matchAll(/^(npx .+)$/gm)) {
    assert(commands.includes(command), command);
  }
});
