import { assert, assertEquals } from "@std/assert";
import fc from "fast-check";
import { printable, printableJson } from "../../src/format.ts";
import { printableLine } from "../../src/cli/terminal_table.ts";

/** Characters that a terminal acts on or that hide in a line. */
const HARMFUL = [
  "\x00",
  "\x07",
  "\x1b",
  "\x7f",
  "\x85",
  "\x9b",
  "\u00ad",
  "\u061c",
  "\u200b",
  "\u200e",
  "\u202e",
  "\u2028",
  "\u2029",
  "\u2066",
  "\ufeff",
  "\ud800",
  "\ue000",
  "\u{e0041}",
];

Deno.test("printable() leaves no harmful character and keeps all others", () => {
  for (const character of HARMFUL) {
    const shown = printable(`a${character}b`);
    assert(!shown.includes(character), JSON.stringify(character));
  }
  assertEquals(printable("a\x9b31mb"), "a\\u{9b}31mb");
  assertEquals(printable(" a\r\n\tb "), "a b");
  const kept = "Größe дб 数 👩‍🚀 “…” − ✓ می‌خواهم";
  assertEquals(printable(kept), kept);
});

Deno.test("printableJson() changes no data", () => {
  fc.assert(fc.property(fc.json(), fc.string({ unit: "binary" }), (a, b) => {
    const json = JSON.stringify([JSON.parse(a), b, ...HARMFUL]);
    const shown = printableJson(json);
    assertEquals(JSON.parse(shown), JSON.parse(json));
    for (const character of HARMFUL.slice(2, -3)) {
      assert(!shown.includes(character));
    }
  }));
});

Deno.test("printableLine() keeps our own colors and aligned columns only", () => {
  assertEquals(
    printableLine("\x1b[31m✗\x1b[0m  a   b \x1b[5mc\x1b]0;title\x07"),
    "\x1b[31m✗\x1b[0m  a   b \\u{1b}[5mc\\u{1b}]0;title\\u{7}",
  );
});
