/** Runs the commands of docs/migration.md unchanged, each SQL block as the role that it names. */
import { assert, assertEquals } from "@std/assert";
import { dirname } from "node:path";
import {
  createDatabases,
  type Databases,
  type Sql,
} from "../support/databases.ts";
import { testWith } from "../support/debian.ts";
import {
  ROOT,
  runShell,
  serveForAMoment,
  type Step,
  stepsOf,
} from "../support/documents.ts";
import { loadWithMara } from "../support/mara_load.ts";
import {
  createEcommerce,
  fillCatalog,
  OLIST_TABLES,
} from "../support/olist.ts";
import { startServer } from "../support/server.ts";

/** The databases of a project that Mara has loaded, as a role that is not a superuser. */
interface Project extends AsyncDisposable {
  readonly db: Databases;
  readonly mara: string;
  readonly analyst: string;
  readonly folder: string;
}

async function createProject(): Promise<Project> {
  const stack = new AsyncDisposableStack();
  const id = crypto.randomUUID().slice(0, 8);
  const [mara, analyst] = [`mds_${id}_mara`, `mds_${id}_read_only`];
  await using servers = await createDatabases();
  await servers.warehouse.unsafe(`create role ${mara}; create role ${analyst}`);
  stack.defer(async () => {
    // Roles are dropped after the database in which they have objects.
    await using server = await createDatabases();
    await server.warehouse.unsafe(`drop role ${mara}, ${analyst}`);
  });
  const db = stack.use(
    await createDatabases({ rows: { deals: 20, leads: 40 } }),
  );
  await createEcommerce(db, { customers: 50, items: 60, geolocations: 80 });
  await fillCatalog(db);
  const { DWH_DB_NAME: database } = db.environment;
  await db.source.unsafe(
    `revoke all on all tables in schema marketing, ecommerce from ${db.reader};
     revoke all on schema marketing, ecommerce from ${db.reader}`,
  );
  await db.warehouse.unsafe(
    `revoke create on database ${database} from ${db.loader};
     alter database ${database} owner to ${mara};
     alter default privileges for role ${mara} grant usage on schemas to ${analyst};
     alter default privileges for role ${mara} grant select on tables to ${analyst}`,
  );
  await loadWithMara(db, "plain", { tables: OLIST_TABLES, role: mara });
  const folder = await Deno.makeTempDir();
  stack.defer(() => Deno.remove(folder, { recursive: true }));
  await Deno.mkdir(`${folder}/app/pipelines`, { recursive: true });
  return {
    db,
    mara,
    analyst,
    folder,
    [Symbol.asyncDispose]: () => stack.disposeAsync(),
  };
}

/** Runs SQL as a role. */
async function runAs(sql: Sql, role: string | undefined, statements: string) {
  await sql.unsafe(role ? `set role ${role}` : "reset role");
  // One by one, because a transaction cannot create a database.
  for (const statement of statements.split(";")) {
    if (statement.trim()) await sql.unsafe(statement);
  }
}

/** Checks that Mara and the analysts read the tables, and that Mara may grant that to others. */
async function checkReaders(
  warehouse: Sql,
  { mara, analyst }: Project,
): Promise<void> {
  for (const { target } of OLIST_TABLES) {
    for (const role of [mara, analyst]) {
      await runAs(warehouse, role, `select from ${target} limit 1`);
    }
    const [may] = await warehouse.unsafe(
      `select has_table_privilege('${mara}', '${target}', 'select with grant option') as grants`,
    );
    assert(may!.grants, target);
  }
}

async function ownersOf(warehouse: Sql): Promise<string[]> {
  const rows = await warehouse.unsafe(
    `select distinct tableowner collate "C" as owner from pg_tables where schemaname in ('m_data', 'ec_data') order by 1`,
  );
  return rows.map(({ owner }) => owner);
}

testWith(
  ["psql", "sed", "python3"],
  "every command of docs/migration.md does what it says, as the role that it names",
  async (t) => {
    await using project = await createProject();
    const { db, mara, analyst, folder } = project;
    await using warehouse = db.connect("warehouse");
    await using source = db.connect("source");
    const { DWH_DB_NAME: database } = db.environment;
    const trial = `${database}_trial`;
    await using stack = new AsyncDisposableStack();
    stack.defer(async () => {
      await runAs(
        warehouse,
        undefined,
        `drop database if exists ${trial} with (force)`,
      );
    });
    const env: Record<string, string> = {
      ...db.environment,
      MARA_PROJECT: folder,
      PATH: `${dirname(Deno.execPath())}:${Deno.env.get("PATH")}`,
    };
    const roles: Record<string, string | undefined> = {
      mara,
      loader: db.loader,
      "the owner of the database": mara,
      "the owner of the tables": undefined,
      "a superuser": undefined,
    };
    const runSql = async (text: string) => {
      const [, side, role, statements] =
        /^-- in the (source|warehouse), as (.+)\n([^]+)$/.exec(text)!;
      assert(role! in roles, role);
      await runAs(
        side === "source" ? source : warehouse,
        roles[role!],
        statements!
          .replaceAll(/\breader\b/g, db.reader)
          .replaceAll(/\bloader\b/g, db.loader)
          .replaceAll(/\bmara\b/g, mara)
          .replaceAll(/\bdwh_read_only\b/g, analyst)
          .replaceAll(/\bdwh_trial\b/g, trial)
          .replaceAll(/\bdatabase dwh\b/g, `database ${database}`),
      );
    };
    const runLine = async (text: string) => {
      const [, name, value] = /^export (\w+)=(\S+)$/.exec(text) ?? [];
      if (name) {
        env[name] = value!;
      } else if (text === "deno task serve") {
        await serveForAMoment(text, env);
      } else {
        if (/^python3 /.test(text) && !env.MARKETING_DATA_SERVICE_URL) {
          const server = stack.use(await startServer({ environment: env }));
          env.MARKETING_DATA_SERVICE_URL = server.url;
        }
        const { code, said } = await runShell(
          text.replaceAll(/\bdwh_trial\b/g, trial),
          env,
        );
        assertEquals(code, 0, `${text}\n${said}`);
      }
    };
    const guide = await Deno.readTextFile(new URL("docs/migration.md", ROOT));
    const sections = new Map(
      guide.split(/^## /m).map((section): [string, Step[]] => [
        section.slice(0, section.indexOf("\n")),
        stepsOf(section),
      ]),
    );
    const follow = async (section: string) => {
      const steps = sections.get(section) ?? [];
      assert(steps.length > 0, section);
      for (const { language, text } of steps) {
        await (language === "sql" ? runSql(text) : runLine(text));
      }
    };
    const runMara = (keepsSchemas: boolean) =>
      loadWithMara(db, "plain", {
        tables: OLIST_TABLES,
        role: mara,
        keepsSchemas,
      });

    await t.step("how Mara loads", () => follow("How Mara loads"));
    await t.step("phase 1", async () => {
      await follow("Phase 1: side by side");
      await runMara(false);
      await runLine("deno task cli verify --against-mara");
      const [history] = await warehouse.unsafe(
        "select to_regnamespace('marketing_data_service') as schema",
      );
      assertEquals(history!.schema, null);
    });
    await t.step("phase 2", async () => {
      await follow("Phase 2: Mara calls the service");
      assertEquals(await ownersOf(warehouse), [mara]);
      await checkReaders(warehouse, project);
      for (const pipeline of ["load_marketing_data", "load_ecommerce_data"]) {
        await Deno.stat(
          `${folder}/app/pipelines/load_data/${pipeline}/__init__.py`,
        );
      }
      await runAs(
        warehouse,
        mara,
        "drop table ec_data.seller; drop table m_data.closed_deal",
      );
      await db.source.unsafe(
        `delete from ecommerce.geolocation where geolocation_state = 'RJ';
         insert into ecommerce.customers values ('new')`,
      );
      await runLine("deno task load");
      await runLine("deno task cli verify");
      assertEquals(await ownersOf(warehouse), [db.loader, mara].sort());
      await checkReaders(warehouse, project);
    });
    await t.step("phase 3", () => follow("Phase 3: compare and watch"));
    await t.step("phase 4", async () => {
      await follow("Phase 4: without Mara");
      assertEquals(await ownersOf(warehouse), [db.loader]);
      await checkReaders(warehouse, project);
      await source.unsafe("insert into ecommerce.sellers values ('new')");
      await runLine("deno task load");
    });
    await t.step("going back", async () => {
      await runMara(true);
      assertEquals(await ownersOf(warehouse), [mara]);
      await checkReaders(warehouse, project);
      await runLine("deno task cli verify --against-mara");
      await follow("Going back");
      const [left] = await warehouse.unsafe(
        `select has_schema_privilege('${db.loader}', 'ec_data', 'usage') as reads,
           to_regnamespace('marketing_data_service') as schema`,
      );
      assertEquals({ ...left }, { reads: false, schema: null });
      await runMara(false);
      await checkReaders(warehouse, project);
    });
  },
);
