/**
 * Finds the tables of the source that a pattern names, and returns the
 * declarations that load them.
 *
 * @module
 */
import type { Config } from "../config/config.ts";
import { type ConnectionOptions, Session } from "../postgres/session.ts";
import { literal } from "../postgres/sql.ts";
import { isUnloadable, parseTypeName } from "../tables/column_types.ts";
import { BASE_TYPE, formatRelation } from "../tables/declaration.ts";

/** A declaration as the file that TABLES_FILE names has it. */
interface DiscoveredTable {
  readonly name?: string;
  readonly source: string;
  readonly target: string;
  readonly columns: Readonly<Record<string, string>>;
  readonly key?: readonly string[];
}

/** The tables of a pattern, and warnings about the tables and columns that are left out. */
interface Discovery {
  readonly tables: readonly DiscoveredTable[];
  readonly warnings: readonly string[];
}

/**
 * Returns the readable tables and views of the source whose `schema.table` matches the
 * pattern. `*` matches any text.
 *
 * @param targetSchema schema of the targets, or `undefined` for that of the source.
 */
export async function discoverTables(
  config: Config,
  connection: ConnectionOptions,
  pattern: string,
  targetSchema: string | undefined,
): Promise<Discovery> {
  await using session = await Session.open(config.olist, connection);
  await session.begin({
    mode: "read committed read only",
    lockTimeoutSeconds: config.lockTimeoutSeconds,
  });
  const rows = await session.query(
    `select n.nspname as schema, c.relname as name, a.attname as column,
       pg_catalog.format_type(base.oid, base.typmod) as type,
       pg_catalog.array_position(x.indkey::int2[], a.attnum) as key_position,
       pg_catalog.has_schema_privilege(n.oid, 'USAGE')
         and pg_catalog.has_table_privilege(c.oid, 'SELECT') as readable
     from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
       left join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
       left join lateral ${BASE_TYPE} base on true
       left join pg_catalog.pg_index x on x.indrelid = c.oid and x.indisprimary
     where c.relkind in ('r', 'p', 'v', 'm') and not c.relispartition
       and n.nspname not in ('pg_catalog', 'information_schema') and n.nspname not like 'pg\\_%'
       and n.nspname || '.' || c.relname like ${literal(likeOf(pattern))}
     order by n.nspname, c.relname, a.attnum`,
  );
  const warnings: string[] = [];
  const names = new Set<string>();
  const tables: DiscoveredTable[] = [];
  const relations = Map.groupBy(
    rows,
    ({ schema, name }) => formatRelation({ schema, name }),
  );
  for (const [source, columns] of relations) {
    const { schema, name, readable } = columns[0]!;
    if (!readable) {
      warnings.push(
        `${source} is left out: role "${session.config.user}" cannot read it`,
      );
      continue;
    }
    const target = formatRelation({ schema: targetSchema ?? schema, name });
    const other = tables.find((table) => table.target === target);
    if (other) {
      warnings.push(
        `${source} is left out: ${other.source} has the same target ${target}`,
      );
      continue;
    }
    const loadable = columns.filter(({ column, type }) => {
      if (column === null) return false;
      if (isLoadableType(type)) return true;
      warnings.push(
        `column "${column}" of ${source} is left out: type ${type} cannot be loaded`,
      );
      return false;
    });
    if (loadable.length === 0) {
      warnings.push(`${source} is left out: it has no column to load`);
      continue;
    }
    for (const { column, type } of loadable) {
      // The name of a type with a schema is not PostgreSQL's own.
      if (!type.includes(".")) continue;
      warnings.push(
        `column "${column}" of ${source} has type ${type}: create it in the warehouse, or declare the column as text`,
      );
    }
    const key = columns.filter(({ key_position }) => key_position !== null)
      .sort((a, b) => a.key_position - b.key_position);
    const hasKey = key.length > 0 && key.every((c) => loadable.includes(c));
    tables.push({
      ...(names.has(name) ? { name: `${schema}.${name}` } : {}),
      source,
      target,
      columns: Object.fromEntries(
        loadable.map(({ column, type }) => [column, type]),
      ),
      ...(hasKey ? { key: key.map(({ column }) => column) } : {}),
    });
    names.add(name);
  }
  return { tables, warnings };
}

/** Returns the pattern for LIKE. Only `*` has a meaning. */
function likeOf(pattern: string): string {
  return pattern.replace(/[\\%_]/g, "\\$&").replaceAll("*", "%");
}

function isLoadableType(type: string): boolean {
  try {
    return !isUnloadable(parseTypeName(type).base);
  } catch {
    return false;
  }
}
