/**
 * The user-defined column types in the warehouse: their names and layouts.
 *
 * @module
 */
import { OTHER_TYPE_REMEDY } from "../postgres/meanings.ts";
import type { Session } from "../postgres/session.ts";
import { literal } from "../postgres/sql.ts";
import { formatTypeName, isBuiltIn } from "../tables/column_types.ts";
import {
  formatRelation,
  LAYOUT,
  PARTS,
  type Table,
} from "../tables/declaration.ts";
import { tableError } from "./table_errors.ts";

/**
 * Returns the table with the names that its types have in the warehouse. An extension can
 * be in another schema there.
 *
 * @throws {ServiceError} `target_incompatible` for a type that does not exist.
 */
export async function withWarehouseTypes(
  table: Table,
  warehouse: Session,
): Promise<Table> {
  const foreign = table.columns.filter(({ type }) => !isBuiltIn(type));
  if (foreign.length === 0) return table;
  const rows = await warehouse.query<{ name: string; found: string | null }>(
    `select d.name, coalesce(pg_catalog.format_type(pg_catalog.to_regtype(d.name), null), (
       select case when pg_catalog.count(*) = 1 then pg_catalog.min(pg_catalog.format_type(t.oid, null)) end
       from pg_catalog.pg_type t
       where t.typname = (pg_catalog.parse_ident(d.name))[pg_catalog.array_upper(pg_catalog.parse_ident(d.name), 1)]
         -- Any role with a schema can create another type of that name, with functions.
         and exists (select from pg_catalog.pg_depend x
           where x.classid = 'pg_catalog.pg_type'::pg_catalog.regclass and x.objid = t.oid and x.deptype = 'e'))) as found
     from pg_catalog.unnest(array[${
      foreign.map(({ type }) => literal(type.base))
    }]::text[]) d(name)`,
  );
  const columns = table.columns.map((column) => {
    const row = rows.find(({ name }) => name === column.type.base);
    if (!row) return column;
    if (row.found === null) {
      const name = formatRelation(table.target);
      throw tableError(
        table.name,
        "target_incompatible",
        `type ${column.type.base}, which column "${column.name}" of ${name} needs, is missing in the warehouse`,
        "Run CREATE TYPE or CREATE EXTENSION in the warehouse, or declare the column as text in TABLES_FILE.",
      );
    }
    return { ...column, type: { ...column.type, base: row.found } };
  });
  return { ...table, columns };
}

/**
 * Checks that the types have the same attributes and built-in types inside of them, in
 * the same order. The binary form of a row or range does not name them.
 *
 * @param relation quoted name of the target, or `undefined` for the types of a table
 * with the names of the warehouse.
 * @throws {ServiceError} `target_incompatible`, naming the column.
 */
export async function checkLayout(
  table: Table,
  warehouse: Session,
  relation: string | undefined,
): Promise<void> {
  const columns = table.columns.filter(({ layout }) => layout);
  if (columns.length === 0) return;
  const found = relation === undefined
    ? `(values ${
      columns.map(({ name, type }) =>
        `(${literal(name)}, ${
          literal(formatTypeName(type))
        }::pg_catalog.regtype::pg_catalog.oid)`
      )
    }) a (attname, atttypid)`
    : `pg_catalog.pg_attribute a where a.attrelid = ${
      literal(relation)
    }::pg_catalog.regclass and a.attname in (${
      columns.map(({ name }) => literal(name))
    })`;
  const rows = await warehouse.query<{ name: string; layout: string[] | null }>(
    `select a.attname as name, (with ${PARTS} select ${LAYOUT} from part join pg_catalog.pg_type p on p.oid = part.oid) as layout
     from ${found}`,
  );
  for (const { name, layout } of columns) {
    const present = rows.find((row) => row.name === name)?.layout ?? [];
    if (JSON.stringify(present) === JSON.stringify(layout)) continue;
    throw tableError(
      table.name,
      "target_incompatible",
      `the type of column "${name}" of ${
        formatRelation(table.target)
      } contains (${present.join(", ")}) in the warehouse, and (${
        layout!.join(", ")
      }) in the source`,
      OTHER_TYPE_REMEDY,
    );
  }
}
