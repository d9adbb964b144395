import { assertEquals } from "@std/assert";
import { exitOf, loadHere, sayOutcome } from "../support/local_load.ts";
import { proxied } from "../support/phases.ts";
import {
  changeSource,
  loadedDatabases,
  recover,
  recoverHere,
} from "../support/fault_scene.ts";
import { assertSound } from "../support/soundness.ts";
import { measure } from "../support/measure.ts";
import { IS_THOROUGH } from "../support/thorough.ts";

const SIDES = ["source", "warehouse"] as const;

/** Bytes between two cuts. A smaller step tests more moments and takes longer. */
const STEP = Number(
  Deno.env.get("FAULTS_STEP") ?? (IS_THOROUGH ? 3072 : 8192),
);

for (const side of SIDES) {
  Deno.test(`load survives a cut of every connection to the ${side} after any number of bytes`, async (t) => {
    await using db = await loadedDatabases({ deals: 40, leads: 400 });
    let total = 0;
    await t.step("no cut, to count the bytes", async () => {
      await changeSource(db);
      await using network = proxied(db);
      assertEquals(exitOf(await loadHere(network)), 0);
      total = network[side].moved;
    });
    for (let bytes = STEP; bytes < total; bytes += STEP) {
      for (const attempts of ["3", "1"]) {
        await t.step(`${bytes} bytes, RETRY_ATTEMPTS=${attempts}`, async () => {
          const scene = await changeSource(db);
          await using network = proxied(db, {
            [side]: { cutAfterBytes: bytes },
          });
          const outcome = await loadHere(network, {
            RETRY_ATTEMPTS: attempts,
          });
          if (attempts === "3") {
            assertEquals(sayOutcome(outcome), "exit 0", outcome.log);
          }
          await assertSound(db, {
            contents: exitOf(outcome) === 0
              ? [scene.new]
              : [scene.old, scene.new],
            // The spool has the failure of a run that cannot be closed.
            mayHaveDeadRun: attempts === "1",
          });
          if (exitOf(outcome) !== 0) await recoverHere(db);
        });
      }
    }
    measure({
      group: "Every connection cut after a number of bytes",
      fault: `${side}: after each ${STEP} bytes of ${total}, from start to end`,
      holds: "old or new",
      sees: "RETRY_ATTEMPTS=3: exit 0; 1: exit 0, 1 or 69",
      recoverySeconds: await recover(db),
    });
  });
}
