/**
 * Checks that a text is one SQL expression or query and cannot become another statement.
 *
 * @module
 */

/** The parts of SQL in which brackets and semicolons have no meaning, and the brackets. */
const TOKENS = new RegExp(
  [
    String.raw`(?<escaped>\b[eE]'(?:[^'\\]|''|\\.)*')`,
    String
      .raw`(?<dollar>\$(?<tag>(?:[A-Za-z_\u0080-\uffff][\w\u0080-\uffff]*)?)\$[\s\S]*?\$\k<tag>\$)`,
    String
      .raw`(?<open>\b[eE]'|\$(?:[A-Za-z_\u0080-\uffff][\w\u0080-\uffff]*)?\$)`,
    String.raw`(?<quoted>'(?:[^']|'')*')`,
    String.raw`(?<identifier>"(?:[^"]|"")*")`,
    String.raw`(?<comment>--[^\n]*|/\*)`,
    String.raw`(?<word>[A-Za-z_\u0080-\uffff][\w$\u0080-\uffff]*)`,
    String.raw`(?<other>[\s\S])`,
  ].join("|"),
  "g",
);

/** The words that begin a query without side effects. */
const QUERY = /^\s*(select|with|values|table)\b/i;

/** Returns why the text is not one query, or `undefined` when it is. See {@linkcode fragmentMistake}. */
export function queryMistake(text: string): string | undefined {
  return fragmentMistake(text) ??
    (QUERY.test(text)
      ? undefined
      : "does not begin with SELECT, WITH, VALUES or TABLE");
}

const CLOSING: Readonly<Record<string, string>> = {
  "(": ")",
  "[": "]",
};

/**
 * Returns why the text is not one expression, or `undefined` when it is. The
 * server checks the rest: the text then stays between the brackets around it.
 */
export function fragmentMistake(text: string): string | undefined {
  if (text.trim() === "") return "is empty";
  if (text.includes("\0")) return "contains a zero character";
  const open: string[] = [];
  for (const { groups, 0: token } of text.matchAll(TOKENS)) {
    if (groups!.comment) return "contains a comment";
    if (groups!.open) return `contains a ${token} that is not closed`;
    if (groups!.other === undefined) continue;
    switch (token) {
      case "'":
      case '"':
        return `contains a ${token} that is not closed`;
      case ";":
        return "contains a semicolon outside of quotes";
      case "(":
      case "[":
        open.push(CLOSING[token]!);
        break;
      case ")":
      case "]":
        if (open.pop() !== token) {
          return `contains a ${token} without its opening bracket`;
        }
    }
  }
  return open.length > 0
    ? `contains a bracket that is not closed with ${open.at(-1)}`
    : undefined;
}
