import { assert, assertEquals } from "@std/assert";
import { createDatabases } from "../support/databases.ts";
import { startServer } from "../support/server.ts";

Deno.test("every curl line of the README does what it says", async () => {
  const readme = await Deno.readTextFile(
    new URL("../../README.md", import.meta.url),
  );
  const lines = readme.split("\n").filter((line) => line.startsWith("curl "));
  assert(lines.length >= 5, "the README has lost its examples");
  await using db = await createDatabases({ rows: { deals: 5, leads: 5 } });
  await using server = await startServer(db);
  for (const line of lines) {
    const { code, stdout } = await new Deno.Command("sh", {
      args: ["-c", line.replaceAll("http://127.0.0.1:8000", server.url)],
    }).output();
    assertEquals(code, 0, line);
    assert(stdout.length > 0, line);
  }
});
