import { assert, assertEquals } from "@std/assert";
import { createDatabases } from "../support/databases.ts";
import { runProgram } from "../support/program_here.ts";
import { startServer } from "../support/server.ts";

/** An escape sequence of each kind, a forged log line, and reversed text. */
const HARMFUL =
  "\x1b]0;title\x07 \x9b31m \u202egnp.exe \u200b\n2026-01-01 INFO forged";

/** Control and format characters, except the newline and the escape of the program's colors. */
// deno-lint-ignore no-control-regex -- these are what is looked for
const RAW = /[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b\u202e\u2028]/;

Deno.test("no output contains control or bidirectional characters of a server's message", async (t) => {
  await using db = await createDatabases({ rows: { deals: 3, leads: 3 } });
  await db.source.unsafe(
    `create function public.fail() returns text language plpgsql as $f$ begin
       raise exception using message = ${
      "U&'" + [...HARMFUL].map((c) =>
        `\\+${c.codePointAt(0)!.toString(16).padStart(6, "0")}`
      ).join("") + "'"
    }, hint = E'\\x1b[31mhint\\n\\u202e', detail = E'\\x1bdetail'; end $f$;
     alter table marketing.closed_deals rename to kept;
     create view marketing.closed_deals as select mql_id, seller_id, sdr_id, sr_id, won_date,
       business_segment, lead_type, lead_behaviour_profile, has_company, has_gtin, average_stock,
       public.fail() as business_type, declared_product_catalog_size, declared_monthly_revenue
     from marketing.kept;
     grant select on marketing.closed_deals, marketing.kept to public`,
  );
  const folder = await Deno.makeTempDir();
  const environment = {
    ...db.environment,
    EVENT_PUBLISHER_TYPE: "file",
    EVENT_FILE: `${folder}/events.jsonl`,
  };
  try {
    for (
      const [words, changes] of [
        [["load"], { LOG_FORMAT: "text" }],
        [["load"], { LOG_FORMAT: "json", LOG_LEVEL: "TRACE" }],
        [["load", "--json"], {}],
        [["load", "--dry-run"], {}],
        [["verify"], {}],
        [["verify", "--json", "--rows", "5"], {}],
        [["runs"], {}],
        [["runs", "--json"], {}],
        [["events"], {}],
        [["events", "--json"], {}],
      ] as [string[], Record<string, string>][]
    ) {
      await t.step(
        `${words.join(" ")} ${JSON.stringify(changes)}`,
        async () => {
          const { stdout, stderr } = await runProgram(words, {
            ...environment,
            ...changes,
          });
          for (const text of [stdout, stderr]) {
            assert(!RAW.test(text), JSON.stringify(text));
            assert(!/^2026-01-01 INFO forged/m.test(text), text);
          }
          if (words[0] === "load") assert(/gnp\.exe/.test(stdout + stderr));
        },
      );
    }
    await t.step("the event file", async () => {
      const text = await Deno.readTextFile(`${folder}/events.jsonl`);
      assert(!RAW.test(text), JSON.stringify(text));
      const event = JSON.parse(text.split("\n")[0]!);
      assert(!RAW.test(event.error), event.error);
      assert(!event.error.includes("\n"), event.error);
    });
    await t.step("the service", async () => {
      await using server = await startServer({ environment });
      for (const accept of ["application/json", "text/html"]) {
        for (const path of ["/", "/runs", "/events", "/health"]) {
          const response = await server.fetch(path, { headers: { accept } });
          const text = await response.text();
          assertEquals(response.status, 200, text);
          assert(!RAW.test(text), `${path} ${JSON.stringify(text.match(RAW))}`);
        }
      }
    });
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});
