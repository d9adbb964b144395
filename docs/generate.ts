/**
 * Writes the generated pages of `docs/` from the code: `deno task docs`.
 *
 * @module
 */
import type { Variable } from "../src/config/parsers.ts";
import { VARIABLES } from "../src/config/variables.ts";
import { type ErrorKind, ERRORS } from "../src/errors.ts";
import { tablesFileSchema } from "../src/tables/tables_file.ts";

/** The generated pages: name and content. */
export const PAGES: Readonly<Record<string, () => Promise<string>>> = {
  "configuration.md": configuration,
  "troubleshooting.md": troubleshooting,
  "tables.schema.json": tablesSchema,
};

const INTRODUCTION = `# Troubleshooting

<!-- Generated from src/errors.ts: run \`deno task docs\`. -->

A failure is one line with the failed action, the reason and the remedy.
Its code is in the failure event (\`details.results[].code\`), the HTTP answer, the output of \`--json\`, and the history:

\`\`\`sh
deno task cli runs --status failed
deno task cli events --limit 5
\`\`\`

Every log line of a run has its \`run_id\`. \`LOG_LEVEL=DEBUG\` logs more.
\`health\` checks both databases, and \`config\` prints the effective variables. \`load --dry-run\` prints the plan of a load, and \`verify --rows 20\` names rows that differ.

A failed load keeps the old rows. Nothing must be cleaned up before the next load.
A transient failure is reported after \`RETRY_ATTEMPTS\` attempts.

The exit code is that of the command line. A load of several tables ends with the code of the first table that failed by itself.
A signal ends a command with 129 (SIGHUP), 130 (SIGINT) or 143 (SIGTERM).
The HTTP status is that of a failed request. \`POST /load\` answers 500, with the failure event, for every run that began and failed.
Some messages have a more precise remedy than this table, such as the hint of the server.
`;

const CONFIGURATION = `# Configuration

<!-- Generated from src/config/variables.ts: run \`deno task docs\`. -->

Every variable comes from the environment, or from the file that \`--env-file\` names. The file has the syntax of \`EnvironmentFile=\` in systemd.exec(5). The environment overrides it.
An empty variable counts as unset.
All mistakes are reported together, with exit code 78, before any connection is made.
\`deno task cli config\` prints the effective variables, with secrets masked.
Words such as \`true\` and \`auto\` may be in upper or lower case. \`yes\`, \`on\`
and \`1\` mean \`true\`. \`no\`, \`off\` and \`0\` mean \`false\`.
`;

const CONFIGURATION_NOTES = `
## Secrets

\`*_PASSWORD_FILE\`, \`API_TOKEN_FILE\`, \`EVENT_WEBHOOK_SECRET_FILE\`, \`ALERT_SLACK_URL_FILE\` and \`ALERT_TEAMS_URL_FILE\` name files with the secret.
An empty secret file is a mistake, because treating it as unset would silently disable authentication.
Secrets of fewer than 8 characters, and secrets that are words of the output, are not masked.
A value that looks like a connection string or a key is never printed.

Password and certificate files are read again for each connection, so a new secret needs no restart.
If such a file is empty or unreadable then, the connection fails and names the file.
All other files are read once.
A password with non-ASCII characters is prepared as libpq does it (SASLprep).

## Several servers

\`DWH_DB_HOST=a,b\` with \`DWH_DB_PORT=5432,5433\` names two servers, as in libpq. One port stands for all hosts.
A connection tries the servers in order, each for at most \`CONNECT_TIMEOUT\`. It takes the first one that \`*_DB_TARGET_SESSION_ATTRS\` allows.
A process tries a silent server after the others, until it answers again.
A server that refuses the login ends the search.

| \`*_DB_TARGET_SESSION_ATTRS\` | server |
| --- | --- |
| \`any\` | any server |
| \`read-write\` | accepts writes. The default if \`DWH_DB_HOST\` names several servers |
| \`primary\` | is not a standby |
| \`standby\` | is a standby |
| \`prefer-standby\` | is a standby, or any server if none is |

All warehouse connections of a run use the server of its lock. All source connections use the server of its snapshot.

## TLS

| \`*_DB_SSLMODE\` | encrypted | checks |
| --- | --- | --- |
| \`disable\` | no | nothing |
| \`prefer\` | where the server allows it | nothing |
| \`require\` | yes | nothing, or the authority where \`*_DB_SSLROOTCERT\` is set |
| \`verify-ca\` | yes | the authority |
| \`verify-full\` | yes | the authority and the name of the host |

As in libpq, \`prefer\` continues without TLS if the handshake fails, or if the server's pg_hba.conf refuses TLS.
If \`*_DB_SSLROOTCERT\` is unset, the authorities of Deno are trusted.
The key of a client certificate must not be encrypted: \`openssl pkey -in encrypted.key -out client.key\`.

## Login methods

\`*_DB_REQUIRE_AUTH\` works as libpq's \`require_auth\`, but without \`!\`. A server that asks for another login method is refused, and gets no password.
The default is \`scram-sha-256,none\`, and every method under \`verify-full\`.
Add \`md5\` for a server that still stores MD5 hashes.
Leave out \`none\` to refuse a server that asks for no password.

## Time zone

\`LOAD_TIMEZONE\` sets the instant that a \`DATE\` or \`TIMESTAMP\` of the source becomes in a \`TIMESTAMPTZ\` column. A Mara pipeline used \`Europe/Berlin\`.
`;

/** Returns the JSON Schema of the file that TABLES_FILE names. */
async function tablesSchema(): Promise<string> {
  return await format(JSON.stringify(tablesFileSchema()), "json");
}

/** Returns the page of every variable, in the format of `deno fmt`. */
async function configuration(): Promise<string> {
  const rows = Object.entries<Variable>(VARIABLES).map(([name, variable]) =>
    `| \`${name}\` | ${variable.default ? `\`${variable.default}\`` : ""} | ${
      escape(variable.description)
    } | ${escape(variable.allowed)} |`
  );
  return await format(`${CONFIGURATION}
| variable | default | meaning | allowed |
| --- | --- | --- | --- |
${rows.join("\n")}
${CONFIGURATION_NOTES}`);
}

/** Returns the page of every error, in the format of `deno fmt`. */
async function troubleshooting(): Promise<string> {
  const rows = Object.entries<ErrorKind>(ERRORS).map(([code, kind]) =>
    `| \`${code}\` | ${kind.exit} | ${kind.status} | ${
      kind.transient ? "yes" : "no"
    } | ${escape(kind.remedy)} |`
  );
  return await format(`${INTRODUCTION}
| code | exit | HTTP | retried | remedy |
| --- | --- | --- | --- | --- |
${rows.join("\n")}
`);
}

/** Returns the text as a cell of a table. */
function escape(text: string): string {
  return text.replaceAll("*", "\\*").replaceAll("|", "\\|")
    // Stars in code need no escape.
    .replaceAll(/`[^`]*`/g, (code) => code.replaceAll("\\*", "*"));
}

async function format(text: string, extension = "md"): Promise<string> {
  const process = new Deno.Command(Deno.execPath(), {
    args: ["fmt", "--ext", extension, "-"],
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

if (import.meta.main) {
  for (const [name, page] of Object.entries(PAGES)) {
    await Deno.writeTextFile(new URL(name, import.meta.url), await page());
  }
}
