import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { createDatabases } from "../support/databases.ts";
import { findProgram, testWith } from "../support/debian.ts";
import {
  createEcommerce,
  fillCatalog,
  OLIST_TABLES,
  OLIST_TABLES_FILE,
} from "../support/olist.ts";
import { type Server, startServer, until } from "../support/server.ts";

const FOLDER = new URL("../../deploy/mara/load_data", import.meta.url).pathname;

/**
 * The parts of mara-pipelines 3.1.1 that the pipelines use, for hosts without it.
 * `RunFunction.run` reads the function's name and passes it the arguments.
 * `Task.run` stops at the first false. Ids have lowercase letters, digits and `_`.
 * See mara_pipelines/commands/python.py and pipelines.py.
 */
const STAND_IN = {
  "__init__.py": "",
  "commands/__init__.py": "",
  "commands/python.py": `
from .. import pipelines

class RunFunction(pipelines.Command):
    def __init__(self, function=None, args=None, file_dependencies=None):
        self.function, self.args = function, args or []

    def run(self):
        self.function.__name__
        return True if self.function(*self.args) else False
`,
  "pipelines.py": `
import re

class Command:
    parent = None

class Node:
    def __init__(self, id, description, labels=None):
        if not re.match('^[a-z0-9_]+$', id):
            raise ValueError(id)
        self.id = id

class Task(Node):
    def __init__(self, id, description, commands=None, max_retries=None):
        super().__init__(id, description)
        self.commands = commands or []

    def run(self):
        return all(command.run() for command in self.commands)

class Pipeline(Node):
    def __init__(self, id, description, max_number_of_parallel_tasks=None, base_path=None, labels=None):
        super().__init__(id, description, labels)
        self.nodes = {}

    def add(self, node, upstreams=None):
        self.nodes[node.id] = node
        return self
`,
};

/** Runs both pipelines at the same time, each in a process, as Mara runs its tasks. Exits with 1 when one fails. */
const RUN_PIPELINES = `
import importlib, multiprocessing, sys
sys.path.insert(0, sys.argv[1])

def run(name):
    pipeline = importlib.import_module('app.pipelines.load_data.' + name).pipeline
    assert pipeline.id == name
    sys.exit(0 if all([task.run() for task in pipeline.nodes.values()]) else 1)

names = ['load_marketing_data', 'load_ecommerce_data']
processes = [multiprocessing.get_context('fork').Process(target=run, args=(name,)) for name in names]
for process in processes:
    process.start()
for process in processes:
    process.join()
for name, process in zip(names, processes):
    print(name, 'succeeded' if process.exitcode == 0 else 'failed')
sys.exit(max(process.exitcode for process in processes))
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

/** Writes a project with the pipelines. It has a stand-in for `mara_pipelines` when that is not installed. */
async function createProject(): Promise<string> {
  const folder = await Deno.makeTempDir();
  const files: Record<string, string> = {
    "app/__init__.py": "",
    "app/pipelines/__init__.py": "",
    "app/pipelines/load_data/__init__.py": "",
  };
  for (
    const path of [
      "marketing_data_service.py",
      "load_marketing_data/__init__.py",
      "load_ecommerce_data/__init__.py",
    ]
  ) {
    files[`app/pipelines/load_data/${path}`] = await Deno.readTextFile(
      `${FOLDER}/${path}`,
    );
  }
  for (const [path, text] of hasMara ? [] : Object.entries(STAND_IN)) {
    files[`mara_pipelines/${path}`] = text;
  }
  for (const [path, text] of Object.entries(files)) {
    const file = `${folder}/${path}`;
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

testWith(
  ["python3"],
  `both Mara pipelines (${
    hasMara ? "in Mara" : "on a stand-in for Mara"
  }) load the nine tables, and a failure fails its pipeline with table, cause and remedy`,
  async (t) => {
    const folder = await createProject();
    const tokenFile = `${folder}/token`;
    await Deno.writeTextFile(tokenFile, `${TOKEN}\n`);
    try {
      await using db = await createDatabases({ rows: { deals: 3, leads: 4 } });
      await createEcommerce(db, {
        customers: 300,
        items: 400,
        geolocations: 500,
      });
      await fillCatalog(db);
      await using server = await startServer(db, {
        API_TOKEN: TOKEN,
        TABLES_FILE: OLIST_TABLES_FILE,
      });
      const run = (env: Record<string, string>) =>
        python(["-c", RUN_PIPELINES, folder], env);

      await t.step("success is exit 0", async () => {
        const { code, said } = await run(environmentOf(server, tokenFile));
        assertEquals(code, 0, said);
        await using warehouse = db.connect("warehouse");
        const columnsOf = async (relation: string) => {
          const [row] = await warehouse.unsafe(
            `select string_agg(attname || ' ' || format_type(atttypid, atttypmod), ', ' order by attnum) as columns
             from pg_attribute where attrelid = '${relation}'::regclass and attnum > 0`,
          );
          return row!.columns;
        };
        for (const { name, target, columns, select } of OLIST_TABLES) {
          await warehouse.unsafe(`create temp table expected (${columns})`);
          assertEquals(await columnsOf(target), await columnsOf("expected"));
          await warehouse.unsafe("drop table expected");
          const [expected] = await db.source.unsafe(
            `select count(*)::int as rows from (${select}) t`,
          );
          const [loaded] = await db.warehouse.unsafe(
            `select count(*)::int as rows from ${target}`,
          );
          assertEquals(loaded!.rows, expected!.rows, name);
          assert(loaded!.rows > 0, name);
          assertStringIncludes(said, `${name}: ${loaded!.rows} rows (full)`);
        }
      });
      await t.step("without the token both fail", async () => {
        const { code, said } = await run(environmentOf(server));
        assertEquals(code, 1, said);
        assertStringIncludes(said, "Authorization: Bearer");
        assertStringIncludes(said, "load_ecommerce_data failed");
      });
      await t.step("a missing column fails its pipeline", async () => {
        await db.source.unsafe(
          `alter table marketing.closed_deals drop column won_date;
           insert into ecommerce.sellers values ('new')`,
        );
        const { code, said } = await run(environmentOf(server, tokenFile));
        assertEquals(code, 1, said);
        assertStringIncludes(said, "won_date");
        assertStringIncludes(said, "Add the column");
        assertStringIncludes(said, "marketing_qualified_lead: 4 rows");
        assertStringIncludes(said, "seller: 101 rows (delta)");
        assertStringIncludes(said, "load_marketing_data failed");
        assertStringIncludes(said, "load_ecommerce_data succeeded");
        assertEquals(said.includes(TOKEN), false);
      });
      await t.step("the error names a service that is gone", async () => {
        server.kill("SIGKILL");
        await server.finished;
        const { code, said } = await run(environmentOf(server, tokenFile));
        assertEquals(code, 1);
        assertStringIncludes(said, new URL(server.url).port);
      });
    } finally {
      await Deno.remove(folder, { recursive: true });
    }
  },
);

testWith(
  ["python3"],
  "marketing_data_service.py runs without packages, and keeps a refused token out of its output",
  async () => {
    const tokenFile = await Deno.makeTempFile();
    const script = `${FOLDER}/marketing_data_service.py`;
    // -S leaves out the folder of installed packages.
    const run = (env: Record<string, string>, ...words: string[]) =>
      python(["-S", script, ...words], env);
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
      const missing = await run({
        MARKETING_DATA_SERVICE_TOKEN_FILE: `${tokenFile}.missing`,
      });
      assertEquals(missing.code, 1);
      assertStringIncludes(missing.said, "Cannot read the token");
      assertEquals(missing.said.includes("Traceback"), false, missing.said);
      for (const url of ["127.0.0.1:8000", "ftp://127.0.0.1", "http://h:x"]) {
        const { code, said } = await run({ MARKETING_DATA_SERVICE_URL: url });
        assertEquals(code, 1);
        assertStringIncludes(said, `Cannot reach marketing-data-service`);
        assertEquals(said.includes("Traceback"), false, said);
      }
      await using proxy = Deno.serve(
        { hostname: "127.0.0.1", port: 0, onListen() {} },
        () => new Response('["no event"]'),
      );
      const strange = await run({
        MARKETING_DATA_SERVICE_URL: `http://127.0.0.1:${proxy.addr.port}`,
      });
      assertEquals(strange.code, 1);
      assertStringIncludes(strange.said, '(200): ["no event"]');
      // Without TABLES_FILE the service has no groups.
      await using db = await createDatabases({ rows: { deals: 3, leads: 4 } });
      await using server = await startServer(db, { LOCK_TIMEOUT: "0.5" });
      const env = { MARKETING_DATA_SERVICE_URL: server.url };
      const all = await run(env);
      assertEquals(all.code, 0, all.said);
      assertStringIncludes(all.said, "closed_deal: 3 rows (full)");
      // Another load that lasts longer than LOCK_TIMEOUT.
      await using other = db.connect("warehouse");
      await other.unsafe(
        "begin; lock table marketing_data_service.load_lock in exclusive mode",
      );
      const waiting = run(env);
      await until("the first request is refused", async () => {
        const [run] = await db.warehouse.unsafe(
          "select from marketing_data_service.run where state = 'failed'",
        );
        return run !== undefined;
      });
      await other.unsafe("rollback");
      const { code, said } = await waiting;
      assertEquals(code, 0, said);
      assertStringIncludes(said, "Cannot start a load within 0.5 s");
      assertStringIncludes(said, "closed_deal: 3 rows (unchanged)");
      const group = await run(env, "marketing");
      assertEquals(group.code, 1);
      assertStringIncludes(group.said, "group");
    } finally {
      await Deno.remove(tokenFile);
    }
  },
);
