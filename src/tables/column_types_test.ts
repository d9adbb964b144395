import { assertEquals, assertThrows } from "@std/assert";
import { formatTypeName, parseTypeName } from "./column_types.ts";

for (
  const [text, printed] of [
    ["numeric(10)", "numeric(10,0)"],
    ["decimal(010, +2)", "numeric(10,2)"],
    ["numeric(5,-2)[]", "numeric(5,-2)[]"],
    ["varchar(007)", "character varying(7)"],
    ["timestamp(03) with time zone", "timestamp(3) with time zone"],
    ["interval day to second ( 02 )", "interval day to second(2)"],
    ["float(24)", "real"],
    ["float(25)", "double precision"],
    ["ext.vector(0003)", "ext.vector(0003)"],
    ["geometry(Point,4326)", "geometry(Point,4326)"],
  ] as const
) {
  Deno.test(`parseTypeName() spells ${text} as the server does`, () => {
    assertEquals(formatTypeName(parseTypeName(text)), printed);
  });
}

for (
  const [text, message] of [
    ["int(11)", "int takes no number in brackets"],
    ["text(5)", "text takes no number in brackets"],
    ["timestamp(9)", "timestamp takes a number from 0 to 6 in brackets"],
    ["interval second(7)", "interval takes a number from 0 to 6 in brackets"],
    ["varchar(0)", "varchar takes a number from 1 to 10485760 in brackets"],
    ["bit(2,1)", "bit takes a number from 1 to 83886080 in brackets"],
    ["float(54)", "float takes a number from 1 to 53 in brackets"],
    ["numeric(0)", "takes a number from 1 to 1000 and one from -1000 to 1000"],
    ["numeric(1,2,3)", "from 1 to 1000 and one from -1000 to 1000"],
    ["numeric(a)", "from 1 to 1000 and one from -1000 to 1000"],
  ] as const
) {
  Deno.test(`parseTypeName() refuses ${text}`, () => {
    assertThrows(() => parseTypeName(text), Error, message);
  });
}
