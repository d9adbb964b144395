import { assertEquals } from "@std/assert";
import { ServiceError } from "../errors.ts";
import { MARKETING_TABLES } from "../tables/marketing.ts";
import {
  failedEntry,
  failedEvent,
  failureLine,
  loadedEvent,
  type TableEntry,
} from "./event.ts";

const loaded = (table: string) => ({ table, status: "success" }) as TableEntry;
const failed = (table: string) =>
  failedEntry(
    [],
    table,
    new ServiceError("busy", `${table} waits`).of(table),
    1,
  );

Deno.test("failedEntry() names source and target of a declared table last", () => {
  const error = new ServiceError("busy", "It waits");
  const entry = failedEntry(MARKETING_TABLES, "closed_deal", error, 1);
  assertEquals(Object.entries(entry).slice(-2), [
    ["source", "marketing.closed_deals"],
    ["target", "m_data.closed_deal"],
  ]);
  const [declared] = MARKETING_TABLES;
  const target = { schema: "Raw", name: 'a "b"' };
  const quoted = [{ ...declared!, name: "odd", target }];
  assertEquals(
    failedEntry(quoted, "odd", error, 1).target,
    '"Raw"."a ""b"""',
  );
  assertEquals("source" in failedEntry([], "gone", error, 1), false);
});

Deno.test("events keep the fields of version 0.1 first, in their order", () => {
  const subject = {
    runId: "r",
    trigger: "cli",
    timestamp: "2025-08-26T21:19:33.123456",
    sourceSnapshotAt: "2025-08-26T21:19:32.987654",
    startedAt: "2025-08-26T21:19:32.000000",
    runUrl: "https://loads.example/runs/r",
    traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
  } as const;
  const success = loadedEvent(subject, [loaded("a") as never], []);
  assertEquals(Object.keys(success), [
    "event_type",
    "status",
    "timestamp",
    "results",
    "event_id",
    "run_id",
    "trigger",
    "source_snapshot_at",
    "started_at",
    "run_url",
    "traceparent",
  ]);
  assertEquals(Object.keys(success.results), [
    "total_tables",
    "successful_tables",
    "failed_tables",
    "results",
    "integrity_checks",
  ]);
  const rolledBack = failedEntry(
    [],
    "a",
    new ServiceError("rolled_back", "with b"),
    1,
  );
  const failure = failedEvent(subject, "b waits", [rolledBack, failed("b")]);
  assertEquals(Object.keys(failure), [
    "event_type",
    "status",
    "timestamp",
    "error",
    "details",
    "event_id",
    "run_id",
    "trigger",
    "source_snapshot_at",
    "started_at",
    "run_url",
    "traceparent",
    "code",
    "remedy",
  ]);
  assertEquals(failure.code, "busy");
  const { startedAt: _, runUrl: __, traceparent: ___, ...old } = subject;
  assertEquals(
    Object.keys(loadedEvent(old, [], [])),
    Object.keys(success).slice(0, 8),
  );
});

Deno.test("failureLine() names each failed table, and counts what is too much for a line", () => {
  const names = (count: number, prefix: string) =>
    Array.from({ length: count }, (_, i) => `${prefix}${i}`);
  const one = failureLine([failed("bad"), ...names(499, "t").map(loaded)]);
  assertEquals(
    one,
    `${
      (failed("bad") as { error: string }).error
    } Loaded successfully: 499 tables.`,
  );
  assertEquals(
    failureLine([failed("bad"), loaded("a"), loaded("b")]).endsWith(
      "Loaded successfully: a, b.",
    ),
    true,
  );
  const all = failureLine(names(500, "t").map(failed));
  assertEquals(all.includes("t9"), true);
  assertEquals(all.endsWith("490 more tables failed."), true);
  const eleven = failureLine(names(11, "t").map(failed));
  assertEquals(eleven.endsWith(" 1 more table failed."), true);
});
