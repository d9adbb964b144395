/** A card about one table. */
import type { Child } from "hono/jsx";
import type { TableDeclaration } from "../../../tables/declaration.ts";

/** The card with the names of the table, and further content. */
export function TableCard(
  { table: { name, source, target }, children }: {
    table: TableDeclaration;
    children: Child;
  },
) {
  return (
    <section class="card" aria-labelledby={`t-${name}`}>
      <h2 id={`t-${name}`}>{name}</h2>
      <p class="path">
        {source.schema}.{source.name} → {target.schema}.{target.name}
      </p>
      {children}
    </section>
  );
}
