/** A value as JSON on a page. */
import { raw } from "hono/html";

/** The block. Keys scroll it. Quotes are not escaped, which halves the size. A dense block has none around names. */
export function Json(
  { value, isDense = false }: { value: unknown; isDense?: boolean },
) {
  const lines = JSON.stringify(value, null, isDense ? 1 : 2);
  const text = (isDense ? joinShort(lines).replace(/"(\w+)":/g, "$1:") : lines)
    .replaceAll("&", "&amp;").replaceAll("<", "&lt;");
  return <pre tabindex={0}>{raw(text)}</pre>;
}

/** Maximum length of an object or a list on one line. */
const LINE_LENGTH = 72;

/** Joins the lines of short lists, then those of short objects that contain no others. */
function joinShort(json: string): string {
  return [/(\[)\n([^[\]{}]*)\n\s*(\])/g, /(\{)\n([^{}]*)\n\s*(\})/g].reduce(
    (text, pattern) =>
      text.replace(pattern, (lines, open, body, close) => {
        const line = `${open}${body.trim().replace(/\n\s*/g, " ")}${close}`;
        return line.length > LINE_LENGTH ? lines : line;
      }),
    json,
  );
}
