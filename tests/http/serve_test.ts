import { assertEquals, assertStringIncludes } from "@std/assert";
import { runProgram } from "../support/program.ts";

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

Deno.test("serve refuses an address that is in use", async () => {
  using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const port = String(listener.addr.port);
  const { code, stderr } = await runProgram(["serve"], { PORT: port });
  assertEquals(code, 78, stderr);
  assertStringIncludes(stderr, `Cannot listen on 127.0.0.1:${port}`);
  assertStringIncludes(stderr, "Set HOST and PORT");
});
