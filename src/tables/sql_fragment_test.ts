import { assertEquals } from "@std/assert";
import { fragmentMistake } from "./sql_fragment.ts";

Deno.test("fragmentMistake() accepts expressions with brackets and semicolons inside quotes", () => {
  for (
    const text of [
      "regexp_replace(geolocation_city, ';', '.')",
      "a > 1 and (b is null or c[1] = 2)",
      "E'it\\'s; (' || \"odd ) column\"",
      "$$ ; ) $$ || $t$ $$ ( $t$",
      "'it''s' || '--' || '/*'",
      "name_e'x'",
      "price$ + 1",
      "a - -1",
    ]
  ) assertEquals(fragmentMistake(text), undefined, text);
});

Deno.test("fragmentMistake() refuses a text that can leave its brackets", () => {
  const cases = {
    "": /empty/,
    "  \n": /empty/,
    "1); drop table x; --": /bracket/,
    "1; drop table x": /semicolon/,
    "1 -- the rest": /comment/,
    "1 /* the rest": /comment/,
    "'open": /not closed/,
    '"open': /not closed/,
    "E'open\\'": /not closed/,
    "(1": /not closed/,
    "a[1": /not closed/,
    "(a]": /without its opening/,
    "$$ open": /not closed/,
    "$t$ open $$": /not closed/,
    "a\0b": /zero/,
  };
  for (const [text, reason] of Object.entries(cases)) {
    const mistake = fragmentMistake(text);
    assertEquals(reason.test(mistake ?? ""), true, `${text}: ${mistake}`);
  }
});
