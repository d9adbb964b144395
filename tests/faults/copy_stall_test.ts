import { assert, assertEquals } from "@std/assert";
import type { Databases } from "../support/databases.ts";
import { pauseLoad, sayOutcome } from "../support/local_load.ts";
import {
  changeSource,
  loadedDatabases,
  settle,
} from "../support/fault_scene.ts";

const LEAD = "marketing_qualified_lead";
const IMPATIENT = {
  STALL_TIMEOUT: "3",
  CONNECT_TIMEOUT: "2",
  RETRY_ATTEMPTS: "6",
};

/** Seconds until a stalled connection is reported. */
async function secondsUntilTold(
  db: Databases,
  side: "source" | "warehouse",
  phase: "compare" | "copy",
): Promise<number> {
  const scene = await changeSource(db);
  await using paused = await pauseLoad(db, { table: LEAD, phase }, IMPATIENT);
  const frozen = performance.now();
  // The request arrives, and the server begins to answer.
  paused.network[side].freeze(["down"]);
  paused.resume();
  const outcome = await paused.outcome;
  assertEquals(sayOutcome(outcome), "exit 0", outcome.log);
  const told = outcome.logged.find(({ line }) => line.includes("stalled"));
  assert(told !== undefined, outcome.log);
  await paused.network[Symbol.asyncDispose]();
  await settle(db, {
    group: "A stalled connection, `STALL_TIMEOUT=1`",
    fault: `${side}, from the server, in ${phase}, \`STALL_TIMEOUT=3\``,
    scene,
    outcome,
  });
  return (told!.at - frozen) / 1000;
}

for (const side of ["source", "warehouse"] as const) {
  Deno.test(`load reports a stall in COPY from the ${side} as soon as one in a query`, async () => {
    await using db = await loadedDatabases({ deals: 20, leads: 400 });
    const inQuery = await secondsUntilTold(db, side, "compare");
    const inCopy = await secondsUntilTold(db, side, "copy");
    assert(
      inCopy < 1.6 * inQuery,
      `after ${inCopy} s, and in a query after ${inQuery} s`,
    );
  });
}
