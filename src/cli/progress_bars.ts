/** Progress of a load on standard error: a bar per table on a terminal, plain lines elsewhere. */
import { terminalWidth } from "./environment.ts";
import type { Progress } from "../sync/progress.ts";
import { formatCount, formatSeconds } from "../format.ts";
import type { Output } from "./output.ts";

/** Shows progress until it is stopped. */
interface ProgressDisplay {
  update(progress: Progress): void;
  stop(): void;
}

/** Starts the display for these tables. Loads the library of the bars only for a terminal. */
export async function startProgress(
  output: Output,
  tables: readonly string[],
): Promise<ProgressDisplay> {
  if (output.isQuiet) return { update() {}, stop() {} };
  return output.isInteractive
    ? await startBars(output, tables)
    : startLines(output);
}

/** The state of a bar. */
interface BarState {
  readonly progress: Progress;
  /** Seconds since the phase began. */
  readonly seconds: number;
}

async function startBars(
  output: Output,
  tables: readonly string[],
): Promise<ProgressDisplay> {
  const nameWidth = Math.max(...tables.map((name) => name.length));
  const { MultiBar } = (await import("cli-progress")).default;
  const bars = new MultiBar({
    format: (_options: unknown, _bar: unknown, state: BarState) =>
      barLine(state.progress, state.seconds, terminalWidth(), nameWidth),
    hideCursor: true,
    clearOnComplete: true,
  });
  // `log` prints above the bars with their next update. The types of the library lack both methods.
  const drawing = bars as unknown as {
    log(text: string): void;
    update(): void;
  };
  output.divertLog((text) => {
    drawing.log(text);
    drawing.update();
  });
  const byTable = new Map<string, ReturnType<typeof bars.create>>();
  const phases = new Map<string, { phase: string; began: number }>();
  return {
    update(progress) {
      const { table, phase, rows, totalRows } = progress;
      const now = performance.now();
      let current = phases.get(table);
      if (current?.phase !== phase) {
        phases.set(table, current = { phase, began: now });
      }
      const state = { progress, seconds: (now - current.began) / 1000 };
      const total = Math.max(totalRows ?? rows, 1);
      const bar = byTable.get(table);
      if (bar) {
        bar.setTotal(total);
        bar.update(rows, state);
      } else byTable.set(table, bars.create(total, rows, state));
    },
    stop() {
      output.divertLog(undefined);
      bars.stop();
    },
  };
}

/** Phases after the copy. */
const AFTER_COPY = new Set(["verify", "wait", "commit"]);

/** Maximum number of other characters in the line of a bar. */
const BESIDE_BAR = 78;

/**
 * Returns the line of one table: bar, phase, rows, rows per second and remaining
 * time. Unknown parts are left out. The line fits the width of the terminal.
 */
export function barLine(
  { table, phase, rows, totalRows }: Progress,
  seconds: number,
  width: number,
  nameWidth = 0,
): string {
  const share = AFTER_COPY.has(phase)
    ? 1
    : totalRows
    ? Math.min(1, rows / totalRows)
    : 0;
  const size = Math.min(30, Math.max(6, width - BESIDE_BAR));
  const full = Math.round(share * size);
  // An earlier rate is not reliable.
  const rate = rows > 0 && seconds >= 0.25 && !AFTER_COPY.has(phase)
    ? rows / seconds
    : undefined;
  const left = rate && totalRows && totalRows > rows
    ? Math.ceil((totalRows - rows) / rate)
    : undefined;
  const line = [
    table.padEnd(nameWidth),
    "█".repeat(full) + "░".repeat(size - full),
    phase.padEnd(7),
    rows > 0 || totalRows
      ? formatCount(rows) +
        (totalRows ? ` / ${formatCount(totalRows)}` : "") + " rows"
      : "",
    rate ? `${formatCount(Math.round(rate))}/s` : "",
    left === undefined
      ? ""
      : `${left < 60 ? `${left} s` : formatSeconds(left)} left`,
  ].join(" ").trimEnd();
  return [...line].slice(0, width).join("");
}

/** Prints one line per phase, for log files. */
function startLines(output: Output): ProgressDisplay {
  const phases = new Map<string, string>();
  return {
    update({ table, phase, totalRows }) {
      if (phases.get(table) === phase) return;
      phases.set(table, phase);
      output.progress(
        `${table}: ${phase}${totalRows === null ? "" : ` (${totalRows} rows)`}`,
      );
    },
    stop() {},
  };
}
