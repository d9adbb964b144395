/**
 * A declared table as programs read it.
 *
 * @module
 */
import { formatTypeName } from "./column_types.ts";
import {
  formatCheck,
  formatRelation,
  type TableDeclaration,
} from "./declaration.ts";

/** Returns the declaration of a table with its names and types as texts. */
export function describeTable(
  { name, group, source, target, columns, key, maxShrink, checks = [] }:
    TableDeclaration,
) {
  return {
    name,
    group: group ?? null,
    source: formatRelation(source),
    target: formatRelation(target),
    /** Null where every column of the source is loaded. */
    columns: columns?.map(({ name, type }) => ({
      name,
      type: formatTypeName(type),
    })) ?? null,
    key: key ? [...key] : null,
    /** Null where MAX_SHRINK applies. */
    max_shrink: maxShrink ?? null,
    checks: checks.map(formatCheck),
  };
}
