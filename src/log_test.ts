import { assertEquals, assertStringIncludes } from "@std/assert";
import { captureConsole, setUpLogging } from "./log.ts";

Deno.test("captureConsole() logs and masks what libraries print", () => {
  const lines: string[] = [];
  const log = setUpLogging({
    level: "DEBUG",
    format: "json",
    colors: false,
    mask: (text) => text.replaceAll("secret", "***"),
    write: (line) => lines.push(line),
  });
  const { console } = globalThis;
  const original = { ...console };
  captureConsole(log);
  try {
    console.error("no", new Error("secret\u009b"));
    console.info("aborted");
  } finally {
    Object.assign(console, original);
  }
  const records = lines.map((line) => JSON.parse(line));
  assertEquals(records.map(({ level }) => level), ["WARNING", "DEBUG"]);
  assertStringIncludes(records[0].message, "no Error: ***");
  assertEquals(records[1].message, "A library reports: aborted");
});
