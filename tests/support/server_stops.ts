/**
 * Servers that stop and start during a load.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert";
import { startPostgres } from "./own_server.ts";
import { runJson } from "./program_here.ts";
import { loadHere, pauseLoad, sayOutcome } from "./local_load.ts";
import { changeSource, loadedDatabases, settle } from "./fault_scene.ts";
import { assertEnded } from "./soundness.ts";
import { some } from "./thorough.ts";

const LEAD = "marketing_qualified_lead";
const PHASES = some(
  ["copy", "wait", "compare", "lock", "delete", "verify"] as const,
  2,
);

/** Registers a test with the servers in this folder, or with those from npm. */
export function testStops(
  mode: "immediate" | "fast",
  binDirectory?: string,
): void {
  const name = binDirectory ? ` of ${binDirectory}` : "";
  Deno.test(`a server${name} stopped (${mode}) and started again in the middle of a load`, async (t) => {
    const options = binDirectory ? { binDirectory } : {};
    await using source = await startPostgres(options);
    await using warehouse = await startPostgres(options);
    const version = Math.floor(warehouse.version / 10_000);
    const group =
      `A server stopped and started again during the load, PostgreSQL ${version}`;
    const servers = { source, warehouse };
    const urls = { source: source.url(), warehouse: warehouse.url() };
    await using db = await loadedDatabases({ deals: 40, leads: 200 }, {
      servers: urls,
    });
    for (const side of ["source", "warehouse"] as const) {
      for (const phase of PHASES) {
        await t.step(`${side}, in ${phase}`, async () => {
          const scene = await changeSource(db);
          await using paused = await pauseLoad(db, { table: LEAD, phase });
          await servers[side].stop(mode);
          await servers[side].restart();
          paused.resume();
          const outcome = await paused.outcome;
          assertEquals(sayOutcome(outcome), "exit 0", outcome.log);
          await settle(db, {
            group,
            fault: `${side}, \`pg_ctl -m ${mode} stop\`, in ${phase}`,
            scene,
            outcome,
            isFollowed: true,
          });
        });
      }

      await t.step(`${side}, down until the load has failed`, async () => {
        const scene = await changeSource(db);
        await using paused = await pauseLoad(db, {
          table: LEAD,
          phase: "copy",
        });
        await servers[side].stop(mode);
        paused.resume();
        const outcome = await paused.outcome;
        assert(/^exit (1|69), connection/.test(sayOutcome(outcome)));
        await servers[side].restart();
        await settle(db, {
          group,
          fault:
            `${side}, \`pg_ctl -m ${mode} stop\`, in copy, down until the load has failed`,
          scene,
          outcome,
          mayHaveDeadRun: side === "warehouse",
        });
      });

      await t.step(`${side}, stopped before the load`, async () => {
        const scene = await changeSource(db);
        await servers[side].stop(mode);
        const outcome = await runJson(["load"], {
          ...db.environment,
          RETRY_ATTEMPTS: "2",
        });
        assertEnded(outcome, 69, /Check that the server is up/);
        await servers[side].restart();
        const again = await loadHere(db);
        assertEquals(sayOutcome(again), "exit 0", again.log);
        await settle(db, {
          group,
          fault: `${side}, stopped before the load`,
          scene: { ...scene, old: scene.new },
          outcome,
        });
      });
    }
  });
}
