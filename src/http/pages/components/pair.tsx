/** A name with its value. */
import type { Child } from "hono/jsx";

/** The pair in a list of pairs. A missing value is a dash. */
export function Pair(
  { name, isLong = false, children }: {
    name: string;
    isLong?: boolean;
    children?: Child;
  },
) {
  return (
    <div class={isLong ? "long" : undefined}>
      <dt>{name}</dt>
      <dd>{children || "–"}</dd>
    </div>
  );
}
