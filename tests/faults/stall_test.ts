import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { delay } from "@std/async/delay";
import { exitOf, pauseLoad, sayOutcome } from "../support/local_load.ts";
import {
  changeSource,
  loadedOnce,
  recover,
  settle,
} from "../support/fault_scene.ts";
import { proxied, watchProgram } from "../support/phases.ts";
import { assertEnded } from "../support/soundness.ts";
import { some } from "../support/thorough.ts";

const copyLoaded = loadedOnce({ deals: 20, leads: 400 });
const LEAD = "marketing_qualified_lead";
const SIDES = ["source", "warehouse"] as const;
/** Additional attempts, because a slow host reaches the limits without a fault, too. */
const IMPATIENT = {
  STALL_TIMEOUT: "1",
  CONNECT_TIMEOUT: "2",
  RETRY_ATTEMPTS: "6",
};

for (const side of SIDES) {
  for (const directions of [["up"], ["down"], ["up", "down"]] as const) {
    const what = directions.length === 2
      ? "in both directions"
      : directions[0] === "up"
      ? "towards the server"
      : "from the server";
    Deno.test(`load replaces a connection to the ${side} that stalls ${what}`, async (t) => {
      await using db = await copyLoaded();
      for (const phase of ["compare", "copy"] as const) {
        for (const isHalfOpen of some([true, false], 1)) {
          const fault = `${side}, ${what}, in ${phase}${
            isHalfOpen ? ", half open" : ""
          }`;
          await t.step(fault, async () => {
            const scene = await changeSource(db);
            await using paused = await pauseLoad(
              db,
              { table: LEAD, phase },
              IMPATIENT,
            );
            const proxy = paused.network[side];
            proxy.freeze(directions);
            proxy.faults = { ...proxy.faults, isHalfOpen };
            paused.resume();
            const outcome = await paused.outcome;
            assertEquals(sayOutcome(outcome), "exit 0", outcome.log);
            assertStringIncludes(outcome.log, "stalled: no data for 1 s");
            await paused.network[Symbol.asyncDispose]();
            await settle(db, {
              group: "A stalled connection, `STALL_TIMEOUT=1`",
              fault,
              scene,
              outcome,
              isFollowed: true,
            });
          });
        }
      }
      await recover(db);
    });
  }

  Deno.test(`load fails in time when the network to the ${side} stalls permanently`, async () => {
    await using db = await copyLoaded();
    const scene = await changeSource(db);
    await using paused = await pauseLoad(db, { table: LEAD, phase: "copy" }, {
      ...IMPATIENT,
      RETRY_ATTEMPTS: "2",
    });
    paused.network[side === "source" ? "warehouse" : "source"].faults = {};
    const outcome = await paused.outcome;
    assert(exitOf(outcome) !== 0);
    await paused.network[Symbol.asyncDispose]();
    await settle(db, {
      group: "A stalled connection, `STALL_TIMEOUT=1`",
      fault: `${side}, permanently`,
      scene,
      outcome,
      mayHaveDeadRun: side === "warehouse",
    });
  });
}

Deno.test(
  "a load that is suspended for longer than its timeouts continues",
  async () => {
    await using db = await copyLoaded();
    const scene = await changeSource(db);
    await using network = proxied(db);
    const program = watchProgram(["load"], {
      ...network.environment,
      CONNECT_TIMEOUT: "4",
      STALL_TIMEOUT: "4",
      RETRY_ATTEMPTS: "1",
    });
    let pauses = 0;
    const pauseAt = (text: string, next?: () => void) => ({
      callAt: {
        text,
        async call() {
          next?.();
          pauses++;
          program.kill("SIGSTOP");
          await delay(6000);
          program.kill("SIGCONT");
        },
      },
    });
    network.warehouse.faults = pauseAt("set state = 'running'", () => {
      network.source.faults = pauseAt("begin isolation level");
    });
    const outcome = await program.finished;
    assertEnded(outcome, 0);
    assertEquals(pauses, 2);
    await settle(db, {
      group: "A suspended process, `STALL_TIMEOUT=4`",
      fault: "in a statement, and while a transaction begins",
      scene,
      outcome,
    });
  },
);
