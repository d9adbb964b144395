/** Files of variables, with the syntax of `EnvironmentFile=` in systemd.exec(5). */

/** An empty line, a comment, or a line without an assignment. */
const OTHER_LINE = /[ \t\r\n]+|[#;][^\r\n]*|[^\r\n][^=\r\n]*(?![^=\r\n]*=)/y;
const NAME = /([^\r\n][^=\r\n]*?)[ \t]*=/y;
const SINGLE_QUOTED = /[ \t]*'([^']*)'?/y;
const DOUBLE_QUOTED = /[ \t]*"((?:\\[^]?|[^"\\])*)"?/y;
/** The rest of a value, without the blanks around it. */
const UNQUOTED = /[ \t]*((?:\\[^]?|[^\\\r\n])*?)[ \t]*(?=[\r\n]|$)/y;

/**
 * Returns the variables of a text. Like systemd, it ignores lines that assign nothing.
 *
 * @throws {Error} for a line of a shell that systemd would ignore.
 */
export function parseEnvFile(text: string): Map<string, string> {
  const variables = new Map<string, string>();
  let position = 0;
  const next = (pattern: RegExp): string | undefined => {
    pattern.lastIndex = position;
    const match = pattern.exec(text);
    if (match === null) return undefined;
    position = pattern.lastIndex;
    return match[1] ?? "";
  };
  while (position < text.length) {
    if (next(OTHER_LINE) !== undefined) continue;
    const name = next(NAME)!;
    if (/^export\s/.test(name)) {
      throw new Error(`write ${name.slice(6).trim()}= without export`);
    }
    let value = "";
    for (;;) {
      const single = next(SINGLE_QUOTED);
      const double = single ?? next(DOUBLE_QUOTED);
      if (double === undefined) break;
      value += single ??
        double.replaceAll(
          /\\([^]?)/g,
          (pair, c) => '"\\`$'.includes(c) ? c : c === "\n" ? "" : pair,
        );
    }
    value += next(UNQUOTED)!.replaceAll(
      /\\([^]?)/g,
      (_, c) => c === "\n" || c === "\r" ? "" : c,
    );
    variables.set(name, value);
  }
  return variables;
}
