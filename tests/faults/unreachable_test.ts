import { assert, assertStringIncludes } from "@std/assert";
import { findFreePort } from "../support/server.ts";
import { runJson } from "../support/program_here.ts";
import { proxied } from "../support/phases.ts";
import {
  changeSource,
  loadedDatabases,
  settle,
} from "../support/fault_scene.ts";
import { assertEnded } from "../support/soundness.ts";

const SIDES = ["source", "warehouse"] as const;
const IMPATIENT = { STALL_TIMEOUT: "1", CONNECT_TIMEOUT: "1" };

for (const side of SIDES) {
  for (const accept of ["close", "silence", "refused"] as const) {
    Deno.test(`load fails after a few attempts at a ${side}: ${accept}`, async () => {
      await using db = await loadedDatabases({ deals: 5, leads: 5 });
      const scene = await changeSource(db);
      await using network = proxied(db, {
        [side]: accept === "refused" ? {} : { accept },
      });
      const prefix = side === "source" ? "OLIST_DB" : "DWH_DB";
      const result = await runJson(["load"], {
        ...network.environment,
        ...(accept === "refused"
          ? { [`${prefix}_PORT`]: String(findFreePort()) }
          : {}),
        ...IMPATIENT,
        RETRY_ATTEMPTS: "2",
      });
      assertEnded(result, 69, /Cannot connect to database|No answer from/);
      assertStringIncludes(result.stderr, "Check that the server is up");
      const { dialled } = network[side];
      assert(dialled <= 16, `dialled ${dialled} times`);
      await network[Symbol.asyncDispose]();
      await settle(db, {
        group: "A server that does not answer, `RETRY_ATTEMPTS=2`",
        fault: `${side}: ${
          {
            close: "accepts and closes",
            silence: "accepts and is silent",
            refused: "refuses",
          }[accept]
        }`,
        scene,
        outcome: result,
      });
    });
  }
}
