/**
 * Checks that a load can compare and write the warehouse table.
 *
 * @module
 */
import type { Session } from "../postgres/session.ts";
import { identifier, qualified } from "../postgres/sql.ts";
import { hasSqlstate } from "../errors.ts";
import { rowSecurityRemedy } from "../postgres/meanings.ts";
import {
  formatTypeName,
  hasSameName,
  isBuiltIn,
  parseTypeName,
  type TypeName,
} from "../tables/column_types.ts";
import {
  formatName,
  formatRelation,
  type Table,
  type TableDeclaration,
} from "../tables/declaration.ts";
import { tableError } from "./table_errors.ts";
import type { FoundTarget, Reference, Target } from "./find_target.ts";

/** Returns whether a column that `format_type` prints so has the declared type. */
function hasType(printed: string, declared: TypeName): boolean {
  if (printed === formatTypeName(declared)) return true;
  if (isBuiltIn(declared)) return false;
  const present = parseTypeName(printed);
  return hasSameName(present, declared) &&
    present.isArray === declared.isArray &&
    present.modifiers === declared.modifiers;
}

/**
 * Checks that the table can be compared: its kind, columns and policies.
 *
 * @throws {ServiceError} `target_incompatible`, naming the column;
 * `target_inherited`, naming the tables; `permission_denied`.
 */
export function checkTarget(table: Table, found: FoundTarget): void {
  const name = formatRelation(table.target);
  const fail = (what: string, remedy?: string) => {
    throw tableError(table.name, "target_incompatible", what, remedy);
  };
  checkKind(table, found);
  checkChildren(table, found);
  if (found.foreignParts.length > 0) {
    fail(
      `${name} in the warehouse has foreign partitions, and another server commits those separately: ${
        found.foreignParts.join(", ")
      }`,
      `Detach them with ALTER TABLE ${name} DETACH PARTITION ….`,
    );
  }
  for (const column of table.columns) {
    const present = found.columns.find((c) => c.name === column.name);
    if (!present) {
      fail(
        `column "${column.name}" is missing in ${name} of the warehouse`,
      );
    } else if (
      !hasType(present.type, column.type) &&
      !hasType(present.declared, column.type)
    ) {
      const { declared, type } = present;
      fail(
        `column "${column.name}" of ${name} in the warehouse is ${declared}${
          declared === type ? "" : ` (${type})`
        }, not ${formatTypeName(column.type)}`,
      );
    }
  }
  const extra = found.columns.find((c) =>
    !table.columns.some((t) => t.name === c.name)
  );
  if (extra) {
    fail(
      `${name} in the warehouse has a column "${extra.name}", which is ${
        table.newColumns === undefined
          ? "not declared"
          : `missing in ${formatRelation(table.source)}`
      }`,
    );
  }
  if (!found.mayUseSchema) {
    throw tableError(
      table.name,
      "permission_denied",
      `role "${found.role}" has no USAGE privilege on schema ${
        formatName(table.target.schema)
      } in the warehouse`,
      `Run GRANT USAGE ON SCHEMA ${identifier(table.target.schema)} TO ${
        identifier(found.role)
      };`,
    );
  }
  checkRowSecurity(table, found);
}

/** @throws {ServiceError} `permission_denied` when a policy hides rows from the role. */
export function checkRowSecurity(
  { name, target }: TableDeclaration,
  { hasRowSecurity, role }: FoundTarget,
): void {
  if (!hasRowSecurity) return;
  throw tableError(
    name,
    "permission_denied",
    `row-level security of ${
      formatRelation(target)
    } in the warehouse applies to role "${role}"`,
    rowSecurityRemedy(identifier(role)),
  );
}

/**
 * Checks that a load can write the table, so that it fails before it locks or
 * deletes anything.
 *
 * @throws {ServiceError} `target_incompatible`, `permission_denied`.
 */
export function checkWritable(
  table: TableDeclaration,
  found: FoundTarget,
  { config: { database } }: Pick<Session, "config">,
): void {
  const name = formatRelation(table.target);
  const generated = found.columns.find(({ isGenerated }) => isGenerated);
  if (generated) {
    const column = identifier(generated.name);
    throw tableError(
      table.name,
      "target_incompatible",
      `column ${column} of ${name} in the warehouse is generated, and a load writes every column`,
      `Run ALTER TABLE ${
        qualified(table.target)
      } ALTER COLUMN ${column} DROP EXPRESSION;, or run \`load --recreate --table NAME\`, which replaces the table.`,
    );
  }
  checkKept(table, found);
  if (table.key && !found.mayUseTemporary) {
    throw tableError(
      table.name,
      "permission_denied",
      `role "${found.role}" may not create temporary tables in the warehouse, which an update by key needs`,
      `Run GRANT TEMPORARY ON DATABASE ${identifier(database)} TO ${
        identifier(found.role)
      };`,
    );
  }
}

/**
 * Checks the properties that a recreated table gets from the old one.
 *
 * @throws {ServiceError} `target_incompatible`, `permission_denied`.
 */
export function checkKept(
  table: TableDeclaration,
  found: FoundTarget,
): void {
  const name = formatRelation(table.target);
  if (found.obstructingRules.length > 0) {
    const rules = found.obstructingRules.join(", ");
    throw tableError(
      table.name,
      "target_incompatible",
      table.key
        ? `an update by key does not support rules, and ${name} in the warehouse has: ${rules}`
        : `a rule of ${name} in the warehouse runs in place of DELETE: ${rules}`,
      `Drop the rule, or use a trigger: DROP RULE … ON ${
        qualified(table.target)
      };`,
    );
  }
  if (found.missingPrivileges.length > 0) {
    throw tableError(
      table.name,
      "permission_denied",
      `role "${found.role}" lacks ${
        found.missingPrivileges.join(", ")
      } on ${name} in the warehouse`,
      `Run GRANT SELECT, INSERT, ${table.key ? "UPDATE, " : ""}DELETE ON ${
        qualified(table.target)
      } TO ${identifier(found.role)};`,
    );
  }
}

/**
 * Checks that rows can be deleted from the table.
 *
 * @throws {ServiceError} `target_incompatible`.
 */
export function checkDeletable(
  table: TableDeclaration,
  { lacksReplicaIdentity }: Pick<Target, "lacksReplicaIdentity">,
): void {
  if (!lacksReplicaIdentity) return;
  const name = formatRelation(table.target);
  throw tableError(
    table.name,
    "target_incompatible",
    `${name} in the warehouse is published and has no replica identity, so no row can be deleted or updated`,
    `Run ALTER TABLE ${
      qualified(table.target)
    } REPLICA IDENTITY FULL;, or give it a primary key.`,
  );
}

/**
 * Checks by {@linkcode checkReferences} that rows of the target can be replaced.
 *
 * @param condition SQL condition for the rows, or `undefined` for all.
 *
 * @throws {ServiceError} `target_incompatible`.
 */
export async function checkReplacing(
  warehouse: Session,
  target: Pick<Target, "table" | "relation" | "references">,
  condition: (() => string) | undefined,
): Promise<void> {
  if (target.references.length === 0) return;
  const [row] = await warehouse.scan(
    `select exists (select from ${target.relation}${
      condition ? ` where ${condition()}` : ""
    }) as found`,
  );
  if (row!.found) checkReferences(target);
}

/**
 * Checks that no foreign key changes other rows. It could do so because a row is deleted
 * and inserted again, or because an update moves a value to another row. Neither happens
 * where the key has exactly the columns that it refers to.
 *
 * @param replacing why rows with the same key are deleted and inserted, where they are.
 * @throws {ServiceError} `target_incompatible`.
 */
export function checkReferences(
  { table, references }: Pick<Target, "table" | "references">,
  replacing?: Replacing,
): void {
  const { target, key } = table;
  const isKey = ({ columns }: Reference) =>
    columns.length === key?.length &&
    columns.every((column) => key.includes(column));
  const acting = references.find((reference) => {
    const { actsOnDelete, actsOnUpdate } = reference;
    if (!key || replacing) return actsOnDelete;
    return !isKey(reference) && (actsOnDelete || actsOnUpdate);
  });
  if (!acting) return;
  const isKeyNeeded = references.some((reference) =>
    isKey(reference) && reference.actsOnDelete
  );
  throw tableError(
    table.name,
    "target_incompatible",
    `foreign key ${acting.name} of ${acting.from} changes rows that refer to a replaced row of ${
      formatRelation(target)
    }`,
    replacing
      ? `${noActionRemedy(acting)}. ${replacingRemedy(table, replacing)}`
      : isKeyNeeded
      ? `${noActionRemedy(acting)}.`
      : keyRemedy(acting),
  );
}

/** The reason to delete and insert rows that have the same key. */
export type Replacing =
  /** They exchange values of a unique index or an exclusion constraint. */
  | { readonly kind: "exchange" }
  /** These columns are GENERATED ALWAYS AS IDENTITY. */
  | { readonly kind: "identity"; readonly columns: readonly string[] };

function replacingRemedy({ target }: Table, replacing: Replacing): string {
  return replacing.kind === "exchange"
    ? "Or make the constraint whose values the rows exchange DEFERRABLE, if no foreign key refers to it."
    : `Or run ALTER TABLE ${qualified(target)} ${
      replacing.columns.map((name) =>
        `ALTER COLUMN ${identifier(name)} SET GENERATED BY DEFAULT`
      ).join(", ")
    };`;
}

/** Returns a remedy without its period. A row that is deleted and inserted keeps such a foreign key. */
function noActionRemedy({ name, from }: Reference): string {
  return `Create foreign key ${name} of ${from} again with NO ACTION`;
}

function keyRemedy({ columns }: Reference): string {
  return `Declare the table in TABLES_FILE with \`key: [${
    columns.join(", ")
  }]\`, so that a load updates rows in place.`;
}

/**
 * Returns the error of a write, with a remedy that fits where a foreign key refers to
 * a deleted row.
 */
export function referenceError(
  error: unknown,
  { references, table }: Target,
): unknown {
  // 23503 and 23001: NO ACTION and RESTRICT.
  const reference = hasSqlstate(error, "23503", "23001") &&
    references.find(({ name }) => error.reason.includes(name));
  if (!reference) return error;
  const deleting = `elete the rows of ${reference.from} that refer to it`;
  return error.with({
    table: table.name,
    remedy: table.key
      ? `${
        reference.restricts
          ? `${noActionRemedy(reference)}, or d${deleting}`
          : `D${deleting}`
      }. If they are loaded, too, set LOAD_ATOMIC=true and make the foreign key DEFERRABLE.`
      : keyRemedy(reference),
  });
}

/** Kinds of objects by `pg_class.relkind`. */
const KIND_NAMES: Readonly<Record<string, string>> = {
  v: "a view",
  m: "a materialized view",
  f: "a foreign table",
  S: "a sequence",
  i: "an index",
  I: "an index",
  c: "a composite type",
  T: "a type",
};

export function checkKind(
  table: TableDeclaration,
  { kind }: FoundTarget,
): void {
  if (kind === "r" || kind === "p") return;
  const name = formatRelation(table.target);
  throw tableError(
    table.name,
    "target_incompatible",
    `${name} in the warehouse is not a table but ${
      KIND_NAMES[kind] ?? "something else"
    }`,
    "Drop or rename it. The next load creates the table.",
  );
}

export function checkChildren(
  table: TableDeclaration,
  { children }: FoundTarget,
): void {
  if (children.length === 0) return;
  const name = formatRelation(table.target);
  throw tableError(
    table.name,
    "target_inherited",
    `${children.join(", ")} ${
      children.length === 1 ? "inherits" : "inherit"
    } from ${name} in the warehouse, whose rows a load would delete as well`,
    `Detach first: ${
      children.map((child) => `ALTER TABLE ${child} NO INHERIT ${name};`).join(
        " ",
      )
    }`,
  );
}
