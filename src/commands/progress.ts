/** Progress of a load on standard error: a bar per table on a terminal, plain lines elsewhere. */
import type { Progress } from "../progress.ts";
import type { Output } from "./command.ts";

/** Shows progress until it is stopped. */
export interface ProgressDisplay {
  update(progress: Progress): void;
  stop(): void;
}

/** Starts the display that fits the output. The bars' library is only loaded where there is a terminal. */
export async function startProgress(output: Output): Promise<ProgressDisplay> {
  if (output.isQuiet) return { update() {}, stop() {} };
  return output.isInteractive ? await startBars() : startLines(output);
}

async function startBars(): Promise<ProgressDisplay> {
  const { MultiBar } = (await import("cli-progress")).default;
  const bars = new MultiBar({
    format: "{table} {bar} {phase} {rows} rows",
    hideCursor: true,
    clearOnComplete: true,
    autopadding: true,
    barsize: 24,
  });
  const byTable = new Map<string, ReturnType<typeof bars.create>>();
  return {
    update({ table, phase, rows, totalRows }) {
      const payload = { table: table.padEnd(24), phase: phase.padEnd(7), rows };
      let bar = byTable.get(table);
      if (!bar) byTable.set(table, bar = bars.create(1, 0, payload));
      const isDone = phase === "verify" || phase === "wait" ||
        phase === "commit";
      bar.setTotal(Math.max(totalRows ?? rows, 1));
      bar.update(isDone ? Math.max(totalRows ?? rows, 1) : rows, payload);
    },
    stop: () => bars.stop(),
  };
}

/** One line per phase, as a log file wants it. */
function startLines(output: Output): ProgressDisplay {
  const phases = new Map<string, string>();
  return {
    update({ table, phase, totalRows }) {
      if (phases.get(table) === phase) return;
      phases.set(table, phase);
      output.progress(
        `${table}: ${phase}${
          totalRows === null ? "" : ` (${totalRows} rows)`
        }\n`,
      );
    },
    stop() {},
  };
}
