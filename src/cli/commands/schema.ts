/** `schema`: prints or creates the objects of the warehouse. */
import { Session } from "../../postgres/session.ts";
import { identifier } from "../../postgres/sql.ts";
import { connectionOf } from "../../context.ts";
import { migrate } from "../../runs/schema.ts";
import { lookUpTargets } from "../../sync/find_target.ts";
import {
  createSchemas,
  createTableSql,
  ensureTarget,
  targetSchemas,
} from "../../sync/target.ts";
import { ServiceError } from "../../errors.ts";
import { describeTables } from "../../sync/snapshot.ts";
import { formatRelation } from "../../tables/declaration.ts";
import { usage } from "../arguments.ts";
import type { Command, CommandContext } from "../command.ts";
import { loadCommand } from "./load.ts";

export const schemaCommand: Command = {
  name: "schema",
  summary:
    "Prints the DDL of the target tables (print), creates missing ones (ensure), drops and reloads them (recreate), or prints a file for TABLES_FILE (discover).",
  flags: {
    target: {
      value: "SCHEMA",
      description:
        "Schema of the targets that discover prints. Defaults to that of the source",
    },
  },
  action: {
    allowed: ["print", "ensure", "recreate", "discover"],
    default: "print",
    operands: { discover: "PATTERN" },
  },
  async run(context) {
    const { action, values } = context.arguments;
    if (values.target?.length && action !== "discover") {
      throw usage("--target needs discover", "schema");
    }
    switch (action) {
      case "ensure":
        return await ensure(context);
      case "recreate":
        return await loadCommand.run({
          ...context,
          arguments: { ...context.arguments, flags: new Set(["recreate"]) },
        });
      case "discover":
        return await discover(context);
      default:
        return await print(context);
    }
  },
};

/** Prints the declarations of the source tables that match the pattern. */
async function discover(
  { arguments: { operand, values }, config, output, signal }: CommandContext,
): Promise<number> {
  // Other commands start faster without them.
  const { discoverTables } = await import("../../sync/discover_tables.ts");
  const { formatTablesFile, parseTablesFile } = await import(
    "../../tables/tables_file.ts"
  );
  const { tables, warnings } = await discoverTables(
    config(),
    connectionOf(config(), "discover", signal),
    operand,
    values.target?.[0],
  );
  for (const warning of warnings) output.progress(warning);
  if (tables.length === 0) {
    throw new ServiceError(
      "source_table_missing",
      `Cannot find a readable table in the source that matches ${
        JSON.stringify(operand)
      }`,
      { remedy: "Write the pattern as schema.table, such as 'ecommerce.*'." },
    );
  }
  let mistake = "";
  const accepted = tables.filter((table) => {
    const text = formatTablesFile([table]);
    const [problem] = parseTablesFile("", text).problems;
    if (problem === undefined) return true;
    // Without the place in this text.
    const reason = problem.replace(/^:\d+:\d+: /, "");
    output.progress(`${table.source} is left out: ${reason}`);
    mistake ||= reason;
    return false;
  });
  if (accepted.length === 0) throw usage(mistake, "schema");
  const text = formatTablesFile(accepted);
  output.show({ tables: accepted }, ...text.trimEnd().split("\n"));
  return 0;
}

async function print(
  { config, output, signal }: CommandContext,
): Promise<number> {
  const connection = connectionOf(config(), "schema", signal);
  const tables = await describeTables(config(), connection, config().tables);
  const statements = [
    ...targetSchemas(tables).map((schema) =>
      `create schema if not exists ${identifier(schema)}`
    ),
    ...tables.map((table) => createTableSql(table)),
  ];
  output.show({ statements }, ...`${statements.join(";\n")};`.split("\n"));
  return 0;
}

/** Creates missing schemas and tables, and changes no existing ones. */
async function ensure(context: CommandContext): Promise<number> {
  const { config, warehouse } = await context.app();
  const connection = connectionOf(config, "schema", context.signal);
  await migrate(warehouse, connection);
  const { missingSchemas } = await lookUpTargets(config.tables, warehouse);
  await createSchemas(warehouse, missingSchemas);
  const tables = await describeTables(config, connection, config.tables);
  const created: string[] = [];
  await using session = await Session.open(config.dwh, connection);
  await session.begin({
    mode: "read committed",
    lockTimeoutSeconds: config.lockTimeoutSeconds,
  });
  for (const table of tables) {
    if (!await ensureTarget(table, session)) continue;
    created.push(formatRelation(table.target));
  }
  await session.commit();
  context.output.show(
    { created },
    created.length > 0 ? `created ${created.join(", ")}` : "nothing is missing",
  );
  return 0;
}
