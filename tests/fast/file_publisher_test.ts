import { assertEquals, assertRejects } from "@std/assert";
import { ServiceError } from "../../src/errors.ts";
import { appendLine, checkEventFile } from "../../src/delivery/file.ts";

async function inFolder(work: (file: string) => Promise<void>): Promise<void> {
  const folder = await Deno.makeTempDir();
  try {
    await work(`${folder}/events.jsonl`);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

Deno.test("appendLine() appends whole lines", () =>
  inFolder(async (file) => {
    await appendLine(file, '{"a":  1}');
    await appendLine(file, '{"b":2}');
    assertEquals(await Deno.readTextFile(file), '{"a":  1}\n{"b":2}\n');
  }));

Deno.test("appendLine() cuts off a torn last line, however long", () =>
  inFolder(async (file) => {
    for (const torn of ['{"torn": "', `{"torn": "${"é".repeat(10_000)}`]) {
      await Deno.writeTextFile(file, `{"a":1}\n${torn}`);
      await appendLine(file, '{"b":2}');
      assertEquals(await Deno.readTextFile(file), '{"a":1}\n{"b":2}\n');
    }
  }));

Deno.test("appendLine() keeps a whole last line that only lacks its newline", () =>
  inFolder(async (file) => {
    await Deno.writeTextFile(file, '{"a":1}');
    await appendLine(file, '{"b":2}');
    assertEquals(await Deno.readTextFile(file), '{"a":1}\n{"b":2}\n');
  }));

Deno.test("checkEventFile() tells of a folder that is not there", async () => {
  const error = await assertRejects(
    () => checkEventFile("/no/such/folder/e.jsonl"),
    ServiceError,
  );
  assertEquals(error.code, "event_file_unwritable");
});
