import { assertEquals, assertStringIncludes } from "@std/assert";
import { createDatabases } from "../support/databases.ts";
import { findProgram, testWith } from "../support/debian.ts";
import { type Server, startServer } from "../support/server.ts";

const FOLDER = new URL("../../deploy/mara", import.meta.url).pathname;

/**
 * The parts of mara-pipelines that `marketing_data_pipeline.py` uses, for hosts
 * without it. `HttpRequest` returns a `curl -sf` line. `Command.run` passes it to
 * `bash -o pipefail -c`, and returns false on a non-zero exit. `Task.run` stops at
 * the first false. See mara_pipelines/commands/http.py, shell.py and pipelines.py.
 */
const STAND_IN = {
  "__init__.py": "",
  "commands/__init__.py": "",
  "commands/http.py": `
import shlex
from ..pipelines import Command

class HttpRequest(Command):
    def __init__(self, url, headers=None, method=None, body=None):
        self.url, self.headers, self.method, self.body = url, headers, method, body

    def shell_command(self):
        return ' '.join(['curl -sf', '-X ' + self.method] + [
            f'-H "{name}: {value}"' for name, value in (self.headers or {}).items()
        ] + ([f'--data {shlex.quote(self.body)}'] if self.body else []) + [shlex.quote(self.url)])
`,
  "pipelines.py": `
import subprocess

class Command:
    def run(self):
        return subprocess.run(['bash', '-o', 'pipefail', '-c', self.shell_command()]).returncode == 0

class Task:
    def __init__(self, id, description, commands=None, max_retries=None):
        self.id, self.commands = id, commands or []

    def run(self):
        return all(command.run() for command in self.commands)

class Pipeline:
    def __init__(self, id, description, labels=None):
        self.id, self.nodes = id, {}

    def add(self, node, upstreams=None):
        self.nodes[node.id] = node
        return self
`,
};

/** Runs the pipeline's tasks, and exits with 1 when one fails, as Mara's run does. */
const RUN_PIPELINE = `
import sys
sys.path[:0] = sys.argv[1:]
import marketing_data_pipeline
pipeline = marketing_data_pipeline.pipeline
assert pipeline.id == 'load_marketing_data'
sys.exit(0 if all(task.run() for task in pipeline.nodes.values()) else 1)
`;

const RUN_FUNCTION = `
import sys
sys.path[:0] = sys.argv[1:]
from load_marketing_data import load_marketing_data
sys.exit(0 if load_marketing_data() else 1)
`;

async function python(
  words: string[],
  env: Record<string, string> = {},
) {
  const { code, stdout, stderr } = await new Deno.Command("python3", {
    args: ["-B", ...words],
    env,
  }).output();
  const decoder = new TextDecoder();
  return { code, said: decoder.decode(stdout) + decoder.decode(stderr) };
}

const hasMara = findProgram("python3") !== undefined &&
  (await python(["-c", "import mara_pipelines"])).code === 0;

/** A folder for imports of `mara_pipelines`. It is empty when the package is installed. */
async function maraFolder(): Promise<string> {
  const folder = await Deno.makeTempDir();
  for (const [path, text] of hasMara ? [] : Object.entries(STAND_IN)) {
    const file = `${folder}/mara_pipelines/${path}`;
    await Deno.mkdir(file.slice(0, file.lastIndexOf("/")), { recursive: true });
    await Deno.writeTextFile(file, text);
  }
  return folder;
}

function environmentOf(server: Server, tokenFile?: string) {
  return {
    MARKETING_DATA_SERVICE_URL: server.url,
    ...(tokenFile ? { MARKETING_DATA_SERVICE_TOKEN_FILE: tokenFile } : {}),
  };
}

const TOKEN = "a-token-of-the-pipeline";

for (
  const [name, programs, run] of [
    [
      `the Mara pipeline (${hasMara ? "in Mara" : "on a stand-in for Mara"})`,
      ["python3", "curl"],
      RUN_PIPELINE,
    ],
    ["the plain function", ["python3"], RUN_FUNCTION],
  ] as const
) {
  testWith(
    programs,
    `${name}: success is exit 0, failure a failed task with the event's message`,
    async () => {
      const folder = await maraFolder();
      const tokenFile = `${folder}/token`;
      await Deno.writeTextFile(tokenFile, `${TOKEN}\n`);
      try {
        await using db = await createDatabases({
          rows: { deals: 3, leads: 4 },
        });
        await using server = await startServer(db, { API_TOKEN: TOKEN });
        const load = (env: Record<string, string>) =>
          python(["-c", run, folder, FOLDER], env);

        const success = await load(environmentOf(server, tokenFile));
        assertEquals(success.code, 0, success.said);
        assertStringIncludes(success.said, "marketing_qualified_lead");
        const [row] = await db.warehouse.unsafe(
          "select count(*)::int as rows from m_data.marketing_qualified_lead",
        );
        assertEquals(row!.rows, 4);

        const refused = await load(environmentOf(server));
        assertEquals(refused.code, 1, refused.said);
        assertStringIncludes(refused.said, "Authorization: Bearer");

        await db.source.unsafe(
          "alter table marketing.closed_deals drop column won_date",
        );
        const failure = await load(environmentOf(server, tokenFile));
        assertEquals(failure.code, 1, failure.said);
        assertStringIncludes(failure.said, "won_date");
        assertStringIncludes(failure.said, "Add the column");
        assertEquals(failure.said.includes(TOKEN), false);

        server.kill("SIGKILL");
        await server.finished;
        const gone = await load(environmentOf(server, tokenFile));
        assertEquals(gone.code, 1);
        assertStringIncludes(gone.said, new URL(server.url).port);
      } finally {
        await Deno.remove(folder, { recursive: true });
      }
    },
  );
}

testWith(
  ["python3"],
  "load_marketing_data.py runs without packages and keeps a refused token out of its output",
  async () => {
    const tokenFile = await Deno.makeTempFile();
    const script = `${FOLDER}/load_marketing_data.py`;
    // -S ignores installed packages.
    const run = (env: Record<string, string>) => python(["-S", script], env);
    try {
      for (const token of ["sécret-token", "secret\ntoken"]) {
        await Deno.writeTextFile(tokenFile, token);
        const { code, said } = await run({
          MARKETING_DATA_SERVICE_TOKEN_FILE: tokenFile,
        });
        assertEquals(code, 1);
        assertStringIncludes(said, "Cannot use the token");
        assertEquals(/cret|Traceback/.test(said), false, said);
      }
      for (const url of ["127.0.0.1:8000", "ftp://127.0.0.1", "http://h:x"]) {
        const { code, said } = await run({ MARKETING_DATA_SERVICE_URL: url });
        assertEquals(code, 1);
        assertStringIncludes(said, `Cannot reach marketing-data-service`);
        assertEquals(said.includes("Traceback"), false, said);
      }
    } finally {
      await Deno.remove(tokenFile);
    }
  },
);
