/**
 * Writes `docs/troubleshooting.md` from the error table: `deno task docs`.
 *
 * @module
 */
import { type ErrorKind, ERRORS } from "../src/errors.ts";

const FILE = new URL("troubleshooting.md", import.meta.url);

const INTRODUCTION = `# Troubleshooting

<!-- Written by docs/troubleshooting.ts from src/errors.ts: run \`deno task docs\`. -->

A failure says what could not be done, why, and what to do about it, in one
line. Its code is in the failure event (\`details.results[].code\`), in the
answer of the HTTP service (\`code\`), in what a command prints with \`--json\`,
and in the history:

\`\`\`sh
deno task cli runs --status failed
deno task cli events --limit 5
\`\`\`

Every log line of a run carries its \`run_id\`. \`LOG_LEVEL=DEBUG\` logs more.
\`health\` tells whether both databases answer, \`config\` what is in force, and
\`load --dry-run\` what a load would do.

A failed load leaves the old rows in place: nothing has to be cleaned up, and the
next load starts from what is there. Failures that are tried again were tried
\`RETRY_ATTEMPTS\` times before they were reported.

The exit code is the one of the command line; a load of several tables ends with
that of the first table that failed by itself. The HTTP status is the one of a
request that fails so; \`POST /load\` answers 500, with the failure event, for
every run that failed.
`;

if (import.meta.main) await Deno.writeTextFile(FILE, await troubleshooting());

/** The document, formatted as `deno fmt` has it. */
export async function troubleshooting(): Promise<string> {
  const rows = Object.entries<ErrorKind>(ERRORS).map(([code, kind]) =>
    `| \`${code}\` | ${kind.exit} | ${kind.status} | ${
      kind.transient ? "yes" : "no"
    } | ${escape(kind.remedy)} |`
  );
  return await format(`${INTRODUCTION}
| code | exit | HTTP | tried again | what to do |
| --- | --- | --- | --- | --- |
${rows.join("\n")}
`);
}

/** Text as the cell of a table. */
function escape(text: string): string {
  return text.replaceAll("*", "\\*").replaceAll("|", "\\|")
    // In code, stars are only stars.
    .replaceAll(/`[^`]*`/g, (code) => code.replaceAll("\\*", "*"));
}

async function format(text: string): Promise<string> {
  const process = new Deno.Command(Deno.execPath(), {
    args: ["fmt", "--ext", "md", "-"],
    stdin: "piped",
    stdout: "piped",
  }).spawn();
  const writer = process.stdin.getWriter();
  await writer.write(new TextEncoder().encode(text));
  await writer.close();
  const { success, stdout } = await process.output();
  if (!success) throw new Error("Cannot format the document");
  return new TextDecoder().decode(stdout);
}
