/** A value as JSON on a page. */
import { raw } from "hono/html";

/** The block. Keys scroll it. Quotes are not escaped, which halves the size. */
export function Json(
  { value, indent = 2 }: { value: unknown; indent?: number },
) {
  const text = JSON.stringify(value, null, indent)
    .replaceAll("&", "&amp;").replaceAll("<", "&lt;");
  return <pre tabindex={0}>{raw(text)}</pre>;
}
