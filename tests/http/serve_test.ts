import { assertEquals, assertStringIncludes } from "@std/assert";

Deno.test("main.ts runs cli.ts serve", async () => {
  const run = async (...words: string[]) => {
    const { code, stdout } = await new Deno.Command(Deno.execPath(), {
      args: ["run", "--quiet", "-P", ...words, "--help"],
      cwd: new URL("../../", import.meta.url),
      stdin: "null",
    }).output();
    return { code, text: new TextDecoder().decode(stdout) };
  };
  const main = await run("main.ts");
  assertEquals(main, await run("cli.ts", "serve"));
  assertEquals(main.code, 0);
  assertStringIncludes(main.text, "serve");
});
