/**
 * The stylesheet and the script of the pages. Their paths contain a hash of the
 * content, so browsers can cache them forever.
 */
import { createHash } from "node:crypto";

export const STYLESHEET = readAsset("dashboard.css", "text/css");
export const SCRIPT = readAsset("dashboard.js", "text/javascript");
/** For pages with a list of tables. */
export const LIST_STYLESHEET = readAsset("table_list.css", "text/css");
export const LIST_SCRIPT = readAsset("table_list.js", "text/javascript");

export const ASSETS = [STYLESHEET, SCRIPT, LIST_STYLESHEET, LIST_SCRIPT];

function readAsset(file: string, type: string) {
  const text = Deno.readTextFileSync(new URL(file, import.meta.url));
  const hash = createHash("sha256").update(text).digest("hex").slice(0, 12);
  const [name, extension] = file.split(".");
  return {
    path: `/assets/${name}.${hash}.${extension}`,
    contentType: `${type}; charset=utf-8`,
    text,
  };
}
