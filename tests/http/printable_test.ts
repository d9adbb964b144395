import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { createDatabases } from "../support/databases.ts";
import { startServer } from "../support/server.ts";

/** Controls, C1 controls, directional overrides and separators. */
const FORGED = "a\u009b31mb\u202ec\u2028d\u200bef\u00adg";

/** The same characters in a response, and any C1 control. */
const UNPRINTABLE = /[\u007f-\u009f\u00ad\u200b\u2028\u202e]/;

Deno.test("no response contains control or directional characters", async () => {
  await using db = await createDatabases({ rows: { deals: 3, leads: 3 } });
  await using server = await startServer(db);
  const { body: event } = await server.json("/load", { method: "POST" });
  await db.warehouse.unsafe(
    `update marketing_data_service.table_load
     set result = (result::jsonb || jsonb_build_object('warnings', jsonb_build_array($1::text)))::json`,
    [FORGED],
  );
  const run = `/runs/${event.run_id}`;
  const details = await server.json(run);
  // The data of JSON stays the same.
  assertEquals(details.body.table_loads[0].result.warnings, [FORGED]);
  for (
    const path of [run, "/", "/runs", "/docs", "/nowhere\u009b", "/metrics"]
  ) {
    for (const accept of ["text/html", "application/json"]) {
      const response = await server.fetch(path, { headers: { accept } });
      const text = await response.text();
      assert(!UNPRINTABLE.test(text), `${path} ${accept}: ${text}`);
    }
  }
  const page = await server.fetch(run, { headers: { accept: "text/html" } });
  assertStringIncludes(await page.text(), "a\\u{9b}31mb\\u{202e}c");
});
