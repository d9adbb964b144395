import { createConfig, lintFromString } from "@redocly/openapi-core";
import { assert, assertEquals } from "@std/assert";
// The generated client imports it. This line keeps it in dev.lock.
import "openapi-fetch";
import { createDatabases } from "../support/databases.ts";
import { startServer } from "../support/server.ts";

const ROOT = new URL("../../", import.meta.url);
const TOKEN = "a-token-of-the-openapi-test";

/** A program that uses the generated types. A wrong path or field does not compile. */
const CLIENT = `
import createClient from "openapi-fetch";
import type { paths } from "./types.ts";

const [baseUrl, token] = Deno.args;
// Pages are for browsers.
type Json = "application/json" | "application/problem+json";
const client = createClient<paths, Json>({
  baseUrl: baseUrl!,
  headers: { authorization: \`Bearer \${token}\` },
});
const load = await client.POST("/load", { body: { tables: ["closed_deal"] } });
if (!load.data) throw new Error(JSON.stringify(load.error));
const [loaded] = load.data.results.results;
const run = await client.GET("/runs/{id}", {
  params: { path: { id: load.data.run_id } },
});
const list = await client.GET("/runs", {
  params: { query: { status: "succeeded", limit: 5 } },
});
const missing = await client.GET("/runs/{id}", {
  params: { path: { id: crypto.randomUUID() } },
});
// @ts-expect-error the path does not exist
const unknown = client.GET("/nowhere");
await unknown;
const rows: number | undefined = loaded?.records_loaded;
console.log(JSON.stringify([
  rows,
  run.data?.status,
  run.data?.table_loads[0]?.integrity_check?.integrity_ok,
  list.data?.runs.length,
  missing.error?.code,
]));
`;

Deno.test("the OpenAPI document passes the recommended rules of Redocly, and a generated client compiles and runs", async (t) => {
  await using db = await createDatabases({ rows: { deals: 4, leads: 3 } });
  await using server = await startServer(db, { API_TOKEN: TOKEN });
  const response = await server.fetch("/openapi.json", {
    headers: { authorization: `Bearer ${TOKEN}` },
  });
  const source = await response.text();

  await t.step("Redocly", async () => {
    const config = await createConfig({ extends: ["recommended"] });
    const lint = async (text: string) =>
      (await lintFromString({ source: text, config })).map((problem) =>
        `${problem.ruleId}: ${problem.message} ${
          problem.location[0]?.pointer ?? ""
        }`
      );
    assertEquals(await lint(source), []);
    assert((await lint(source.replaceAll("operationId", "x-id"))).length > 0);
  });

  await t.step("openapi-typescript and openapi-fetch", async () => {
    const { default: openapi, astToString } = await import(
      "openapi-typescript"
    );
    // Inside of the tests, because the import map names the client for them only.
    const folder = await Deno.makeTempDir({
      dir: new URL("tests/", ROOT).pathname,
    });
    try {
      const types = astToString(await openapi(source));
      await Deno.writeTextFile(`${folder}/types.ts`, types);
      await Deno.writeTextFile(`${folder}/client.ts`, CLIENT);
      const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
        args: [
          "run",
          "--check",
          "--quiet",
          "--lock=dev.lock",
          "--allow-net",
          `${folder}/client.ts`,
          server.url,
          TOKEN,
        ],
        cwd: ROOT,
        env: { NO_COLOR: "1" },
      }).output();
      const decoder = new TextDecoder();
      assertEquals(code, 0, decoder.decode(stderr).slice(0, 2000));
      assertEquals(
        JSON.parse(decoder.decode(stdout)),
        [4, "succeeded", true, 1, "not_found"],
      );
    } finally {
      await Deno.remove(folder, { recursive: true });
    }
  });
});
