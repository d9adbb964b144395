import { assert, assertEquals } from "@std/assert";
import { ServiceError } from "../errors.ts";
import {
  failedEntry,
  failedEvent,
  failureLine,
  loadedEvent,
  type TableEntry,
} from "../runs/event.ts";
import {
  shownInSlack,
  shownInTeams,
} from "../../tests/support/alert_endpoint.ts";
import { type Alert, alertOf } from "./alert.ts";
import { slackMessage, teamsMessage } from "./alert_publishers.ts";

const CONTEXT = { declared: ["a", "b", "c"], warehouse: "dwh" };

const SUBJECT = {
  runId: "0b9f1c2d-0000-4000-8000-000000000000",
  trigger: "schedule",
  timestamp: "2025-08-26T21:19:33.500000",
  sourceSnapshotAt: null,
  startedAt: "2025-08-26T21:19:30.000000",
  runUrl: "https://loads.example/runs/0b9f1c2d-0000-4000-8000-000000000000",
} as const;

const loaded = (table: string) =>
  ({ table, status: "success", mode: "unchanged" }) as TableEntry;

const failed = (table: string, reason = "it waits", code = "busy" as const) =>
  failedEntry([], table, new ServiceError(code, reason).of(table), 1);

const success = (...tables: readonly string[]) =>
  loadedEvent(SUBJECT, tables.map(loaded) as never, []);

const failure = (...entries: readonly TableEntry[]) =>
  failedEvent(SUBJECT, failureLine(entries), entries);

/** Returns what both receivers show, which is the same. */
function shown(alert: Alert) {
  const bytes = (message: unknown) =>
    new TextEncoder().encode(JSON.stringify(message));
  const inSlack = shownInSlack(bytes(slackMessage(alert)));
  const inTeams = shownInTeams(bytes(teamsMessage(alert)));
  assertEquals(inSlack.title, inTeams.title);
  assertEquals(inSlack.text, inTeams.text);
  assertEquals(inSlack.link, inTeams.link);
  return inTeams;
}

Deno.test("alertOf() reports table, cause, remedy, loaded tables, duration and link of a failure", () => {
  const alert = alertOf(failure(failed("a"), loaded("b")), [], CONTEXT)!;
  const { text, link } = shown(alert);
  const { remedy } = failed("a");
  assertEquals(
    text,
    `Load failed: a
Cause: Cannot load a: it waits
Remedy: ${remedy}
Loaded: b
Old rows: The failed tables keep the rows they had.
Run: 0b9f1c2d by schedule, 3.50 s, warehouse dwh`,
  );
  assertEquals(link, SUBJECT.runUrl);
});

Deno.test("alertOf() reports the first load of each table after its failure, once", () => {
  let failing: readonly string[] = [];
  const titles = [
    success("a", "b"),
    failure(failed("a"), failed("b"), loaded("c")),
    success("c"),
    failure(failed("a"), loaded("b")),
    success("b"),
    failure(failed("c"), failed("gone"), failed("b")),
    success("a"),
    success("a", "b"),
    success("a", "b", "c"),
    success("a", "b", "c"),
  ].map((event) => {
    const alert = alertOf(event, failing, CONTEXT);
    failing = alert?.failingTables ?? failing;
    return alert &&
      `${alert.title} | ${
        alert.lines.find(({ label }) => label === "Still failing")?.text ?? ""
      }`;
  });
  assertEquals(titles, [
    undefined,
    "Load failed: a, b | ",
    undefined,
    "Load failed: a | ",
    undefined,
    "Load failed: c, gone, b | ",
    "Loaded again: a | c, b",
    "Loaded again: b | c",
    "Loaded again: c | ",
    undefined,
  ]);
  assertEquals(failing, ["gone"]);
});

Deno.test("alertOf() groups the tables of 500 by cause, and shortens what is long", () => {
  const many = Array.from({ length: 497 }, (_, i) => failed(`t${i}`));
  const odd = ["one", "two", "three"].map((odd, i) => failed(`x${i}`, odd));
  const { text } = shown(alertOf(failure(...many, ...odd), [], CONTEXT)!);
  assert(text.startsWith("Load failed: 500 tables\n497 tables: Cannot"));
  assert(text.includes("\nTables with other causes: 1\n"), text);
  assert(text.length < 1500, text);

  // The largest alert: each character takes four bytes.
  const long = "\u{1f4a5}".repeat(5000);
  const entries = Array.from(
    { length: 10 },
    (_, i) => failed(`${i}${long}`, `${i}${long}`),
  );
  shown(alertOf(failure(...entries, loaded(long)), [], CONTEXT)!);
});

Deno.test("alertOf() names the rolled back tables after the cause", () => {
  const rolledBack = failed("a", "b failed", "rolled_back" as never);
  const { lines } = alertOf(failure(rolledBack, failed("b")), [], CONTEXT)!;
  assertEquals(lines.map(({ label, text }) => `${label}: ${text}`), [
    "Cause: Cannot load b: it waits",
    `Remedy: ${failed("b").remedy}`,
    "Cause: Cannot load a: b failed",
    `Remedy: ${rolledBack.remedy}`,
    "Old rows: The failed tables keep the rows they had.",
    "Run: 0b9f1c2d by schedule, 3.50 s, warehouse dwh",
  ]);
});

Deno.test("an alert shows markup, mentions and control characters as text", () => {
  const text = "*b* _i_ `c` <!channel> <@U1> & [x](http://evil) **b**";
  const alert = alertOf(failure(failed(text, `${text}\n\u202e`)), [], CONTEXT)!;
  const message = slackMessage(alert);
  assert(message.text.includes("&lt;!channel&gt;"), message.text);
  const { title, text: body } = shown(alert);
  assertEquals(title, `Load failed: ${text}`);
  assert(body.includes(`${text} \\u{202e}`), body);
});

Deno.test("an alert without a public address names the command that shows the run", () => {
  const { runUrl: _, startedAt: __, ...subject } = SUBJECT;
  const event = failedEvent(subject, "busy", [failed("a")]);
  const { text, link } = shown(alertOf(event, [], CONTEXT)!);
  assertEquals(link, undefined);
  assert(
    text.endsWith(
      "0b9f1c2d by schedule, did not start, warehouse dwh, details: runs --id 0b9f1c2d",
    ),
    text,
  );
});
