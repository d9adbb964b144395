/** A card about one table. */
import type { Child } from "hono/jsx";
import {
  formatRelation,
  type TableDeclaration,
} from "../../../tables/declaration.ts";

/** The card with the names of the table, and further content. Old tables are not declared. */
export function TableCard(
  { name, table, children }: {
    name: string;
    table: TableDeclaration | undefined;
    children: Child;
  },
) {
  return (
    <section class="card" aria-labelledby={`t-${name}`}>
      <h2 id={`t-${name}`}>{name}</h2>
      {table && (
        <p class="path">
          {formatRelation(table.source)} → {formatRelation(table.target)}
        </p>
      )}
      {children}
    </section>
  );
}
