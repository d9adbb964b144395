/** `runs`: the history. */
import { listRuns } from "../history.ts";
import { columns, type Command, usage } from "./command.ts";

export const runsCommand: Command = {
  name: "runs",
  summary: "Lists the newest runs.",
  flags: {
    limit: { value: "NUMBER", description: "How many; 20 when not given" },
    status: {
      value: "STATUS",
      allowed: ["queued", "running", "succeeded", "failed", "interrupted"],
      description: "Only runs in this state",
    },
  },
  async run(context) {
    const { values } = context.arguments;
    const limit = countOf("limit", values.limit?.[0] ?? "20");
    const status = values.status?.[0] as "queued" | undefined;
    const { warehouse } = context.service();
    const runs = await listRuns(warehouse, { limit, status });
    if (context.output.isJson) context.output.json({ runs });
    else {
      const lines = columns(
        runs.map((run) => [
          run.run_id,
          run.status.padEnd(11),
          run.trigger.padEnd(8),
          run.requested_at,
          run.error ?? "",
        ]),
      );
      for (const line of runs.length > 0 ? lines : []) {
        context.output.line(line.trimStart());
      }
    }
    return 0;
  },
};

/** The value of a flag that counts something. */
export function countOf(flag: string, text: string): number {
  if (!/^\d{1,9}$/.test(text)) {
    throw usage(
      `--${flag} must be a whole number, not ${JSON.stringify(text)}`,
    );
  }
  return Number(text);
}
