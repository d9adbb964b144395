/** A value as JSON on a page. */
import { raw } from "hono/html";

/** The block; it can be scrolled by keys. Quotes stay as they are, which halves its size. */
export function Json(
  { value, indent = 2 }: { value: unknown; indent?: number },
) {
  const text = JSON.stringify(value, null, indent)
    .replaceAll("&", "&amp;").replaceAll("<", "&lt;");
  return <pre tabindex={0}>{raw(text)}</pre>;
}
