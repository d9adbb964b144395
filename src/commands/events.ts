/** `events`: what was announced, and what will be. */
import { delay } from "@std/async/delay";
import { listEvents } from "../history.ts";
import { resumePublisher } from "../publish/deliveries.ts";
import type { Command } from "./command.ts";
import { countOf } from "./runs.ts";

/** Milliseconds between two looks for new events. */
const POLL_MILLISECONDS = 500;

export const eventsCommand: Command = {
  name: "events",
  summary: "Prints events as JSON, one a line, oldest first.",
  flags: {
    after: { value: "SEQ", description: "Only events after this cursor" },
    limit: { value: "NUMBER", description: "How many; 100 when not given" },
    "resume-webhook": {
      description: "Send to the webhook again after it answered 410, and end",
    },
    follow: { description: "Go on with the events that are still to come" },
  },
  async run(context) {
    const { switches, values } = context.arguments;
    const { output, signal } = context;
    const isFollowing = switches.has("follow");
    let after = countOf("after", values.after?.[0] ?? "0");
    const limit = countOf("limit", values.limit?.[0] ?? "100");
    const { warehouse } = context.service();
    if (switches.has("resume-webhook")) {
      const resumed = await resumePublisher(warehouse, "webhook");
      output.json({ resumed });
      return 0;
    }
    do {
      try {
        const events = await listEvents(warehouse, after, limit);
        // With --json the cursor comes along; without, the line is the event.
        for (const stored of events) {
          output.json(output.isJson ? stored : stored.event);
        }
        after = events.at(-1)?.seq ?? after;
        if (isFollowing && events.length === limit) continue;
      } catch (error) {
        if (!isFollowing) throw error;
        // A restart of the warehouse is no reason to stop following.
        context.log().warn("Cannot read events: {error}", {
          error: (error as Error).message,
        });
      }
      if (isFollowing) {
        await delay(POLL_MILLISECONDS, { signal }).catch(() => {});
      }
    } while (isFollowing && !signal.aborted);
    return 0;
  },
};
