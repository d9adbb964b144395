import { assertEquals } from "@std/assert";
import { configure, getLogger, type LogRecord, reset } from "@logtape/logtape";
import type { Progress } from "../sync/progress.ts";
import type { LoadEvent } from "./event.ts";
import type { Run } from "./run.ts";
import { combineObservers, type RunObserver } from "./run_observer.ts";

class BrokenObserver implements RunObserver {
  runStarted(): void {
    throw new Error("no start");
  }
  progress(): void {
    throw new Error("no progress");
  }
  runEnded(): void {
    throw new Error("no end");
  }
}

Deno.test("combineObservers() protects runs and other observers from an observer that throws", async () => {
  const records: LogRecord[] = [];
  await configure({
    sinks: { memory: (record) => records.push(record) },
    loggers: [
      { category: ["test"], sinks: ["memory"], lowestLevel: "debug" },
      { category: ["logtape", "meta"], lowestLevel: "warning" },
    ],
    reset: true,
  });
  try {
    const calls: unknown[] = [];
    const observer = combineObservers([
      new BrokenObserver(),
      {
        runStarted: (run) => calls.push(run),
        progress: (runId, progress) => calls.push([runId, progress]),
        runEnded: (event) => calls.push(event),
      },
      {},
    ], getLogger(["test"]));
    const run = { id: "a" } as Run;
    const progress = { table: "closed_deal" } as Progress;
    const event = { run_id: "a" } as LoadEvent;
    observer.runStarted(run);
    observer.progress("a", progress);
    observer.runEnded(event);
    assertEquals(calls, [run, ["a", progress], event]);
    assertEquals(
      records.map(({ properties }) => properties.observer),
      ["BrokenObserver"],
    );
  } finally {
    await reset();
  }
});
