/** Runs the commands of the README and of docs/ unchanged. */
import { assert, assertEquals } from "@std/assert";
import { dirname } from "node:path";
import { PAGES } from "../../docs/generate.ts";
import { createDatabases, type Databases } from "../support/databases.ts";
import { missingOf } from "../support/debian.ts";
import { skip } from "../support/measure.ts";
import {
  ROOT,
  runShell,
  serveForAMoment,
  type Step,
  stepsOf,
} from "../support/documents.ts";
import { startServer } from "../support/server.ts";

/** Commands that are not run, with the reason. */
const NOT_RUN: readonly { command: RegExp; why: string }[] = [
  { command: /^npx -y deno@\S+ task demo$/, why: ".ci/run runs it" },
  { command: /^npx -y deno@\S+ task test$/, why: "it is what runs this" },
];

/** Sections whose commands change the host. Tests in tests/packaging/ run them. */
const OF_A_HOST = /^### (A host|The image)\n[^]*?(?=^##)/gm;

/** The placeholders of the documents, and their values here. */
function placeholders(db: Databases, url: string) {
  return (text: string) =>
    text.replaceAll("http://127.0.0.1:8000", url)
      .replaceAll(/\breader\b/g, db.reader)
      .replaceAll(/\bloader\b/g, db.loader)
      .replaceAll(
        /\bdatabase dwh\b/g,
        `database ${db.environment.DWH_DB_NAME}`,
      );
}

async function runSql(db: Databases, text: string): Promise<void> {
  const [, side, statements] = /^-- in the (source|warehouse)\n([^]+)$/.exec(
    text,
  )!;
  // One by one, because a transaction cannot create a database.
  for (const statement of statements!.split(";")) {
    if (statement.trim()) {
      await db[side as "source" | "warehouse"].unsafe(statement);
    }
  }
}

for (
  const document of [
    "README.md",
    "docs/http-api.md",
    "docs/operations.md",
    "docs/troubleshooting.md",
  ]
) {
  Deno.test(`every command of ${document} does what it says`, async () => {
    const page = await Deno.readTextFile(new URL(document, ROOT));
    const found = stepsOf(page.replaceAll(OF_A_HOST, ""));
    assert(found.length > 0, `${document} has lost its examples`);
    await using db = await createDatabases({ rows: { deals: 5, leads: 5 } });
    // The service and the first command create the same schema as the SQL of the document.
    const isSetUp = ({ text }: Step) => text.includes("create schema");
    for (const { text } of found.filter(isSetUp)) {
      await runSql(db, placeholders(db, "")(text));
    }
    const steps = found.filter((step) => !isSetUp(step));
    await using stack = new AsyncDisposableStack();
    const isAsked = steps.some(({ text }) => /127.0.0.1:8000/.test(text));
    const url = isAsked ? stack.use(await startServer(db)).url : "";
    const put = placeholders(db, url);
    const env: Record<string, string> = {
      ...db.environment,
      DENORT_BIN: Deno.env.get("DENORT_BIN") ?? Deno.execPath(),
      PATH: `${dirname(Deno.execPath())}:${Deno.env.get("PATH")}`,
    };
    let isLoaded = document === "README.md";
    for (const { language, text } of steps) {
      if (language === "sql") {
        await runSql(db, put(text));
        continue;
      }
      const assigned = /^export ((?:\w+=\S+ ?)+)$/.exec(text)?.[1];
      if (assigned) {
        for (const word of assigned.trim().split(" ")) {
          const [name, value] = word.split("=") as [string, string];
          // The test sets the addresses of the databases.
          if (!/^(OLIST|DWH)_DB_/.test(name)) env[name] = value;
        }
        continue;
      }
      if (!isLoaded && !/^deno task compile/.test(text)) {
        // All documents except the README are for readers who have loaded once.
        isLoaded = true;
        assertEquals((await runShell("deno task load", env)).code, 0);
      }
      if (NOT_RUN.some(({ command }) => command.test(text))) continue;
      const remedy = missingOf(text);
      if (remedy) {
        skip(`${document}: ${text}`, remedy);
        continue;
      }
      if (/\bdeno (task|run .* cli\.ts) serve$/.test(text)) {
        await serveForAMoment(text, env);
        continue;
      }
      const { code, said } = await runShell(put(text), env);
      assertEquals(code, 0, `${text}\n${said}`);
      if (text.startsWith("curl ")) assert(said.length > 0, text);
    }
  });
}

Deno.test("the generated pages of docs/ match the code", async () => {
  for (const [name, page] of Object.entries(PAGES)) {
    const written = await Deno.readTextFile(new URL(`docs/${name}`, ROOT));
    assertEquals(written, await page(), `run \`deno task docs\`: ${name}`);
  }
});

Deno.test("the README has at most 900 words", async () => {
  const text = await Deno.readTextFile(new URL("README.md", ROOT));
  const words = text.split(/\s+/).filter(Boolean).length;
  assert(words <= 900, `${words} words`);
});

Deno.test("links between the documents have targets", async () => {
  const pages = (await Array.fromAsync(Deno.readDir(new URL("docs/", ROOT))))
    .map(({ name }) => `docs/${name}`)
    .filter((name) => name.endsWith(".md"));
  assert(pages.length > 0);
  for (
    const document of [
      "README.md",
      "CONTRIBUTING.md",
      "SECURITY.md",
      "CHANGELOG.md",
      ...pages,
    ]
  ) {
    const from = new URL(document, ROOT);
    const text = await Deno.readTextFile(from);
    for (const [, target] of text.matchAll(/\]\((?!https?:)([^)]+)\)/g)) {
      const [path, anchor] = target!.split("#");
      const to = path ? new URL(path, from) : from;
      const stat = await Deno.stat(to).catch(() => undefined);
      assert(stat, `${document}: ${target} is not there`);
      if (!anchor) continue;
      const headings = (await Deno.readTextFile(to)).matchAll(/^#+ (.+)$/gm);
      const anchors = [...headings].map(([, heading]) =>
        heading!.toLowerCase().replaceAll(/[^\w\- ]/g, "").replaceAll(" ", "-")
      );
      assert(anchors.includes(anchor), `${document}: ${target} is not there`);
    }
  }
});
