/** Keeps control characters out of responses. */
import type { MiddlewareHandler } from "hono";
import { printableJson, printableLines } from "../../format.ts";

/**
 * Escapes characters that control a terminal or a browser, such as directional
 * overrides. Names and messages of a database can contain them. Streams escape
 * their own messages.
 */
export function printableBodies(): MiddlewareHandler {
  return async (c, next) => {
    await next();
    const type = c.res.headers.get("content-type") ?? "";
    const escape = /^application\/(?:[\w.-]+\+)?json/.test(type)
      ? printableJson
      : /^text\/(?:html|plain)/.test(type)
      ? printableLines
      : undefined;
    if (!escape || !c.res.body) return;
    const text = await c.res.text();
    c.res = new Response(escape(text), c.res);
  };
}
