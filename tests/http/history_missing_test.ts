import { assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { documented } from "../support/api_document.ts";
import { createDatabases } from "../support/databases.ts";
import { startServer, until } from "../support/server.ts";

const ROWS = { deals: 3, leads: 3 };

Deno.test("GET /runs and /events answer 503 history_missing without the schema", async () => {
  await using db = await createDatabases({ rows: ROWS });
  await using server = await documented(await startServer(db));
  await db.warehouse.unsafe("drop schema marketing_data_service cascade");
  for (const path of ["/runs", `/runs/${crypto.randomUUID()}`, "/events"]) {
    const { status, body } = await server.json(path);
    assertEquals([status, body.code], [503, "history_missing"], path);
  }
});

Deno.test("the pages of a warehouse without the schema say why the service cannot create it", async () => {
  await using db = await createDatabases({ rows: ROWS });
  const { DWH_DB_NAME: name } = db.environment;
  await db.warehouse.unsafe(
    `revoke create on database ${name} from ${db.loader}`,
  );
  await using server = await documented(
    await startServer(db, {}, undefined, "/health/live"),
  );
  const cause = `permission denied for database ${name}`;
  const remedy = "Grant";
  for (const path of ["/", "/runs"]) {
    await until(`${path} says why`, async () => {
      const response = await server.fetch(path, {
        headers: { accept: "text/html" },
      });
      const page = await response.text();
      return page.includes(cause) && page.includes(remedy);
    });
  }
  const { status, body } = await server.json("/tables");
  assertEquals([status, body.code], [503, "history_missing"]);
  assertStringIncludes(body.detail, cause);
  await db.warehouse.unsafe(`grant create on database ${name} to ${db.loader}`);
  await until("the page is right again", async () => {
    const response = await server.fetch("/", {
      headers: { accept: "text/html" },
    });
    return (await response.text()).includes("No load has run yet");
  });
});

Deno.test("GET /runs/{id}/stream ends when the run is deleted", async () => {
  await using db = await createDatabases({ rows: ROWS });
  await using server = await startServer(db);
  const id = crypto.randomUUID();
  await db.warehouse.unsafe(
    `insert into marketing_data_service.run
       (id, state, trigger, tables, mode, atomic, recreate, wait_until)
     values ('${id}', 'queued', 'http', '{closed_deal}', 'auto', false, false, now() + interval '1 hour')`,
  );
  const stream = await server.fetch(`/runs/${id}/stream`);
  const reader = stream.body!.getReader();
  await reader.read();
  await db.warehouse.unsafe("delete from marketing_data_service.run");
  while (!(await reader.read()).done);
});

Deno.test("GET /runs/{id} matches its schema for succeeded and failed runs, in snake_case", async () => {
  await using db = await createDatabases({ rows: ROWS });
  await using server = await documented(await startServer(db));
  await server.json("/load", { method: "POST" });
  await db.source.unsafe("drop table marketing.closed_deals cascade");
  await server.json("/load", { method: "POST" });
  const { body: document } = await server.json("/openapi.json");
  assertEquals(
    document.components.schemas.RunList.properties.runs.items,
    { $ref: "#/components/schemas/RunSummary" },
  );
  assertEquals(document.components.schemas.RunSummary.type, "object");
  const { body: list } = await server.json("/runs");
  assertEquals(
    list.runs.map((run: { status: string }) => run.status),
    ["failed", "succeeded"],
  );
  for (const { run_id } of list.runs) {
    const response = await server.fetch(`/runs/${run_id}`);
    assertEquals(response.headers.get("cache-control"), "no-store");
    const run = await response.json();
    for (const load of run.table_loads) {
      for (const phase of load.phases) {
        assertEquals(Object.keys(phase), ["phase", "started_after", "seconds"]);
      }
    }
  }
});

Deno.test("the page of a run shows tables that are no longer declared", async () => {
  await using db = await createDatabases({ rows: ROWS });
  await using server = await startServer(db);
  const { body } = await server.json("/load", { method: "POST" });
  await db.warehouse.unsafe(
    "update marketing_data_service.run set tables = '{old_table,closed_deal}'",
  );
  await db.warehouse.unsafe(
    "update marketing_data_service.table_load set table_name = 'old_table' where table_name <> 'closed_deal'",
  );
  const response = await server.fetch(`/runs/${body.run_id}`, {
    headers: { accept: "text/html" },
  });
  const page = await response.text();
  for (const name of ["old_table", "closed_deal"]) {
    assertMatch(
      page,
      new RegExp(`<h2 id="t-${name}">.*?full \\+${ROWS.leads}<`),
    );
  }
});
