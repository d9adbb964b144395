import { assert, assertEquals } from "@std/assert";
import {
  duringLoad,
  loadHere,
  sayOutcome,
  startLoad,
} from "../support/local_load.ts";
import { proxied } from "../support/phases.ts";
import {
  changeSource,
  loadedDatabases,
  settle,
} from "../support/fault_scene.ts";

const LEAD = "marketing_qualified_lead";
const SIDES = ["source", "warehouse"] as const;
const IMPATIENT = { STALL_TIMEOUT: "1", CONNECT_TIMEOUT: "20" };

for (const side of SIDES) {
  Deno.test(`a slow network to the ${side} does not count as a stall`, async () => {
    await using db = await loadedDatabases({ deals: 20, leads: 200 });
    const scene = await changeSource(db);
    await using network = proxied(db, {
      [side]: { latencyMilliseconds: 40, bytesPerSecond: 12_000 },
    });
    const started = performance.now();
    const outcome = await loadHere(network, {
      ...IMPATIENT,
      RETRY_ATTEMPTS: "1",
      LOAD_MODE: "full",
    });
    assertEquals(sayOutcome(outcome), "exit 0", outcome.log);
    // In all, the load must take longer than the limit. Otherwise this test shows nothing.
    assert(performance.now() - started > 1500);
    await settle(db, {
      group: "A slow network or server, `STALL_TIMEOUT=1`",
      fault: `${side}: 40 ms and 12 kB/s`,
      scene,
      outcome,
    });
  });
}

Deno.test("a slow network with buffers does not count as a stall", async () => {
  // All of it fits into the buffers of the sockets. From then on, the program sees no traffic.
  await using db = await loadedDatabases({ deals: 20, leads: 600 });
  const scene = await changeSource(db);
  await using network = proxied(db);
  const running = startLoad(network, {
    ...IMPATIENT,
    RETRY_ATTEMPTS: "1",
    LOAD_MODE: "full",
  }, {
    progress(_, { table, phase }) {
      if (table !== LEAD || phase !== "copy") return;
      network.warehouse.faults = { bytesPerSecond: 6_000 };
    },
  });
  const started = performance.now();
  const outcome = await running.outcome;
  assertEquals(sayOutcome(outcome), "exit 0", outcome.log);
  assert(performance.now() - started > 4000);
  await settle(db, {
    group: "A slow network or server, `STALL_TIMEOUT=1`",
    fault: "warehouse: 6 kB/s for large writes",
    scene,
    outcome,
  });
});

Deno.test("a server that is busy for longer than STALL_TIMEOUT does not count as stalled", async (t) => {
  await using db = await loadedDatabases({ deals: 10, leads: 30 });
  const changes = { ...IMPATIENT, RETRY_ATTEMPTS: "1" };
  const group = "A slow network or server, `STALL_TIMEOUT=1`";

  await t.step("the warehouse, in a trigger", async () => {
    await db.warehouse.unsafe(
      `create function public.slow() returns trigger language plpgsql as
         $$ begin perform pg_sleep(3); return null; end $$;
       create trigger slow before insert on m_data.${LEAD}
         for each statement execute function public.slow()`,
    );
    const scene = await changeSource(db);
    const outcome = await loadHere(db, changes);
    assertEquals(sayOutcome(outcome), "exit 0", outcome.log);
    await db.warehouse.unsafe(`drop trigger slow on m_data.${LEAD}`);
    await settle(db, {
      group,
      fault: "warehouse: is busy for 3 s",
      scene,
      outcome,
    });
  });

  await t.step("the source, in a view", async () => {
    const scene = await changeSource(db);
    await db.source.unsafe(
      `alter table marketing.${LEAD}s rename to leads;
       create view marketing.${LEAD}s as
         select leads.* from marketing.leads, (select pg_sleep(3)) slow;
       grant select on marketing.${LEAD}s to ${db.reader}`,
    );
    const outcome = await loadHere(db, changes);
    assertEquals(sayOutcome(outcome), "exit 0", outcome.log);
    await db.source.unsafe(
      `drop view marketing.${LEAD}s; alter table marketing.leads rename to ${LEAD}s`,
    );
    await settle(db, {
      group,
      fault: "source: is busy for 3 s",
      scene,
      outcome,
    });
  });

  const waits = [
    [
      "the service's lock",
      "warehouse",
      "lock table marketing_data_service.load_lock in exclusive mode",
    ],
    [
      "a lock on a target",
      "warehouse",
      `lock table m_data.${LEAD} in row exclusive mode`,
    ],
    [
      "a lock on a source table",
      "source",
      `lock table marketing.${LEAD}s in access exclusive mode`,
    ],
  ] as const;
  for (const [what, side, sql] of waits) {
    await t.step(`a wait of 3 s for ${what}`, async () => {
      const scene = await changeSource(db);
      await using other = db.connect(side);
      await other.unsafe(`begin; ${sql}`);
      const running = startLoad(db, { ...changes, LOCK_TIMEOUT: "20" });
      // The load waits in short transactions, so no single wait is that long.
      let waitsSince: number | undefined;
      await duringLoad(running, async () => {
        const waiting = await db[side].unsafe(
          `select 1 from pg_stat_activity where application_name like 'marketing-data-service/%'
             and datname = current_database() and wait_event_type = 'Lock'`,
        );
        if (waiting.length > 0) waitsSince ??= performance.now();
        return performance.now() - (waitsSince ?? Infinity) > 3000;
      });
      await other.unsafe("commit");
      const outcome = await running.outcome;
      assertEquals(sayOutcome(outcome), "exit 0", outcome.log);
      await settle(db, {
        group,
        fault: `a wait of 3 s for ${what}`,
        scene,
        outcome,
      });
    });
  }
});
