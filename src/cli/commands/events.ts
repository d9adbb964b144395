/** `events`: prints the events, and follows new ones. */
import { delay } from "@std/async/delay";
import {
  listEvents,
  MAX_SEQUENCE,
  type StoredEvent,
} from "../../runs/history.ts";
import { requireHistory } from "../../runs/schema.ts";
import { resumePublishers } from "../../delivery/outbox.ts";
import { formatMoment } from "../../format.ts";
import { describeOutcome } from "../../runs/describe.ts";
import { type Command, MAX_LISTED_ROWS } from "../command.ts";
import type { TextTable } from "../terminal_table.ts";

/** Milliseconds between two queries for new events. */
const POLL_MILLISECONDS = 500;

export const eventsCommand: Command = {
  name: "events",
  summary:
    "Prints events, oldest first: as a table on a terminal, otherwise as one line of JSON each.",
  flags: {
    after: {
      value: "SEQ",
      range: [0, MAX_SEQUENCE],
      description: "Print only events after this cursor",
    },
    limit: {
      value: "NUMBER",
      range: [1, MAX_LISTED_ROWS],
      description: "Maximum number of events, the oldest first (default: 100)",
    },
    resume: {
      excludes: ["after", "limit", "follow"],
      description:
        "Resume deliveries that the receiver ended with 410, and exit",
    },
    follow: { description: "Wait for new events and print them" },
  },
  async run(context) {
    const { flags, values } = context.arguments;
    const { output, signal } = context;
    const isFollowing = flags.has("follow");
    let after = Number(values.after?.[0] ?? 0);
    const limit = Number(values.limit?.[0] ?? 100);
    const { warehouse, log } = await context.app();
    await requireHistory(warehouse);
    if (flags.has("resume")) {
      const resumed = await resumePublishers(warehouse);
      output.show(
        { resumed },
        resumed.length > 0
          ? `resumed ${resumed.join(", ")}`
          : "no delivery was ended with 410",
      );
      return 0;
    }
    let isContinued = false;
    do {
      try {
        const events = await listEvents(warehouse, after, limit);
        if (output.isTerminal && !output.isJson) {
          output.show(events, { ...tableOf(events), isContinued });
          isContinued = true;
        } else {
          // With --json the cursor is printed too. Without it, the line is the event.
          for (const stored of events) {
            output.json(output.isJson ? stored : stored.event);
          }
        }
        after = events.at(-1)?.seq ?? after;
        if (isFollowing && events.length === limit) continue;
      } catch (error) {
        if (!isFollowing || output.isUnread()) throw error;
        // Continue after a restart of the warehouse.
        log.warn("Cannot read events: {error}", {
          error: (error as Error).message,
        });
      }
      if (isFollowing) {
        await delay(POLL_MILLISECONDS, { signal }).catch(() => {});
      }
    } while (isFollowing && !signal.aborted && !output.isUnread());
    return 0;
  },
};

/** Returns events as a table. Its columns have fixed widths, because more rows may follow. */
function tableOf(events: readonly StoredEvent[]): TextTable {
  return {
    columns: [
      { name: "Cursor", isNumber: true },
      { name: "Status", width: 7 },
      { name: "Time (UTC)", width: 20 },
      { name: "Outcome", isFlexible: true, width: 60 },
      { name: "Run", width: 8 },
      { name: "By", width: 8 },
    ],
    rows: events.map(({ seq, event }) => [
      String(seq),
      { text: event.status, tone: event.status === "success" ? "good" : "bad" },
      formatMoment(new Date(`${event.timestamp}Z`)),
      event.status === "failure"
        ? event.error
        : describeOutcome(event.results.results),
      event.run_id.slice(0, 8),
      event.trigger,
    ]),
  };
}
