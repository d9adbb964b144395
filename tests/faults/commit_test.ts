import { assertEquals } from "@std/assert";
import { sayOutcome, startLoad } from "../support/local_load.ts";
import { proxied } from "../support/phases.ts";
import {
  changeSource,
  loadedDatabases,
  recover,
  settle,
} from "../support/fault_scene.ts";
import { some } from "../support/thorough.ts";

const LEAD = "marketing_qualified_lead";

for (
  const { name, text, tables } of [
    {
      name: "the first of two commits",
      text: "commit\0",
      tables: ["closed_deal", LEAD],
    },
    { name: "the last commit", text: "commit\0", tables: [LEAD] },
    {
      name: "the statement that closes the run",
      text: "pg_notify",
      tables: [LEAD],
    },
  ] as const
) {
  Deno.test(`load resolves the outcome when the connection is lost around ${name}`, async (t) => {
    await using db = await loadedDatabases({ deals: 20, leads: 60 });
    for (const when of ["before", "after"] as const) {
      for (const isHalfOpen of [false, true]) {
        for (const attempts of some(["3", "1"], isHalfOpen ? 1 : 2)) {
          const fault = `${when} ${name}${
            isHalfOpen ? ", unseen by the server" : ""
          }, RETRY_ATTEMPTS=${attempts}`;
          await t.step(fault, async () => {
            const scene = await changeSource(db);
            const old = { ...scene.old };
            if (tables.length === 1) {
              Object.assign(scene.new, { closed_deal: old.closed_deal });
            }
            const network = proxied(db, {
              warehouse: { cutAt: { text, when }, isHalfOpen },
            });
            const outcome = await startLoad(
              network,
              { RETRY_ATTEMPTS: attempts },
              { options: { tables } },
            ).outcome;
            assertEquals(network.warehouse.cuts, 1);
            await network[Symbol.asyncDispose]();
            if (attempts === "3") {
              assertEquals(sayOutcome(outcome), "exit 0", outcome.log);
            }
            await settle(db, {
              group: "The connection cut around COMMIT",
              fault,
              scene,
              outcome,
              isFollowed: true,
            });
          });
        }
      }
    }
    await recover(db);
  });
}
