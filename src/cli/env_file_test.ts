import { assertEquals, assertThrows } from "@std/assert";
import { parseEnvFile } from "./env_file.ts";

Deno.test("parseEnvFile() keeps #, blanks and quotes inside a value", () => {
  assertEquals(
    Object.fromEntries(parseEnvFile(
      `# a comment = with an assignment
; another one \\
A=plain # with hash
B="quoted # x"\x20\x20
C='single \\ x'   tail
D=back\\slash \\# and \\\\ and \\
continued
E=mid"quote"d 'x'
F="multi
line \\q \\" \\\\ \`\\$end"trailing
no assignment
H = spaced
J=
K="a"'b' c\\ \x20
 N=\tlead\r
A=last`,
    )),
    {
      A: "last",
      B: "quoted # x",
      C: "single \\ xtail",
      D: "backslash # and \\ and continued",
      E: `mid"quote"d 'x'`,
      F: 'multi\nline \\q " \\ `$endtrailing',
      H: "spaced",
      J: "",
      K: "abc ",
      N: "lead",
    },
  );
});

Deno.test("parseEnvFile() ends an open quote at the end of the text", () => {
  for (const text of ["A='x\ny", 'A="x\ny', 'A="x\ny\\', "A='x\ny'\\"]) {
    assertEquals([...parseEnvFile(text)], [["A", "x\ny"]], text);
  }
});

Deno.test("parseEnvFile() refuses export, which systemd ignores with its variable", () => {
  assertThrows(
    () => parseEnvFile("A=x\n export  HOST=y"),
    Error,
    "write HOST= without export",
  );
});
