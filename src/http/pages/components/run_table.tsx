/** A table of runs. */
import type { RunOutcome } from "../../../runs/history.ts";
import {
  formatDistance,
  formatSeconds,
  formatTables,
} from "../../../format.ts";
import { describeChange, describeTally } from "../../../runs/describe.ts";
import { Status } from "./icons.tsx";
import { Moment } from "./moment.tsx";

/** The table. A narrow screen shows only status, time and duration. */
export function RunTable(
  { runs, caption, now }: {
    runs: readonly RunOutcome[];
    caption: string;
    now: Date;
  },
) {
  return (
    <table class="runs">
      <caption class="unseen">{caption}</caption>
      <thead>
        <tr>
          <th scope="col">Status</th>
          <th scope="col">Requested</th>
          <th scope="col" class="wide">Trigger</th>
          <th scope="col" class="wide">Outcome</th>
          <th scope="col" class="number">Duration</th>
        </tr>
      </thead>
      <tbody>
        {runs.map((run) => (
          <tr>
            <td>
              <Status state={run.status} />
            </td>
            <th scope="row">
              <a href={`/runs/${run.run_id}`}>
                <Moment at={run.requested_at} now={now} />
              </a>{" "}
              <small>{formatDistance(new Date(run.requested_at), now)}</small>
            </th>
            <td class="wide">{run.trigger}</td>
            <td class="wide">
              <Outcome run={run} />
            </td>
            <td class="number">
              {run.duration === null ? "–" : formatSeconds(run.duration)}
            </td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}

function Outcome({ run }: { run: RunOutcome }) {
  if (run.error !== null) return <span class="clip">{run.error}</span>;
  if (run.entries.length === 0) {
    return <span>{describeTally(run.tally) || formatTables(run.tables)}</span>;
  }
  return (
    <ul class="outcome">
      {run.entries.map((entry) => (
        <li>
          {entry.table} <b>{describeChange(entry)}</b>
        </li>
      ))}
    </ul>
  );
}
