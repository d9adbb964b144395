/** Progress of a load on standard error: a bar per table on a terminal, plain lines elsewhere. */
import { terminalWidth } from "./environment.ts";
import type { Progress } from "../sync/progress.ts";
import {
  formatCount,
  formatQuantity,
  formatSeconds,
  MAX_NAMES,
} from "../format.ts";
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
    : startLines(output, tables);
}

/** The state of a bar: the progress of a table, or the number of tables that are verified. */
type BarState =
  | {
    readonly progress: Progress;
    /** Seconds since the phase began. */
    readonly seconds: number;
  }
  | { readonly verified: number };

/** Maximum number of bars for tables, where the tables are many. */
const MAX_BARS = 8;

async function startBars(
  output: Output,
  tables: readonly string[],
): Promise<ProgressDisplay> {
  const nameWidth = Math.max(...tables.map((name) => name.length));
  const { MultiBar } = (await import("cli-progress")).default;
  const bars = new MultiBar({
    format: (_options: unknown, _bar: unknown, state: BarState) =>
      "verified" in state
        ? totalLine(state.verified, tables.length, terminalWidth())
        : barLine(state.progress, state.seconds, terminalWidth(), nameWidth),
    hideCursor: true,
    clearOnComplete: true,
  });
  output.divertLog((text) => {
    bars.log(text);
    bars.update();
  });
  const byTable = new Map<string, ReturnType<typeof bars.create>>();
  const phases = new Map<string, { phase: string; began: number }>();
  const total = tables.length > MAX_NAMES
    ? bars.create(tables.length, 0, { verified: 0 })
    : undefined;
  const verified = new Set<string>();
  const remove = (table: string) => {
    const bar = byTable.get(table);
    if (bar) bars.remove(bar);
    byTable.delete(table);
  };
  return {
    update(progress) {
      const { table, phase, rows, totalRows } = progress;
      const now = performance.now();
      if (total && phase === "wait") {
        verified.add(table);
        total.update(verified.size, { verified: verified.size });
        return remove(table);
      }
      // A table that failed leaves its bar behind.
      if (total && byTable.size >= MAX_BARS && !byTable.has(table)) {
        remove(byTable.keys().next().value!);
      }
      let current = phases.get(table);
      if (current?.phase !== phase) {
        phases.set(table, current = { phase, began: now });
      }
      const state = { progress, seconds: (now - current.began) / 1000 };
      const size = Math.max(totalRows ?? rows, 1);
      const bar = byTable.get(table);
      if (bar) {
        bar.setTotal(size);
        bar.update(rows, state);
      } else byTable.set(table, bars.create(size, rows, state));
    },
    stop() {
      output.divertLog(undefined);
      bars.stop();
    },
  };
}

/** Phases after the copy. */
const AFTER_COPY = new Set(["verify", "check", "wait", "commit"]);

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
      ? (totalRows ? `${formatCount(rows)} / ` : "") +
        formatQuantity(totalRows || rows, "row")
      : "",
    rate ? `${formatCount(Math.round(rate))}/s` : "",
    left === undefined
      ? ""
      : `${left < 60 ? `${left} s` : formatSeconds(left)} left`,
  ].join(" ").trimEnd();
  return [...line].slice(0, width).join("");
}

/** Returns the line of all tables. It fits the width of the terminal. */
export function totalLine(
  verified: number,
  tables: number,
  width: number,
): string {
  const text = countTables(verified, tables);
  const size = Math.min(30, width - text.length - 1);
  if (size < 6) return text.slice(0, width);
  const full = Math.floor(verified / tables * size);
  return `${"█".repeat(full)}${"░".repeat(size - full)} ${text}`;
}

function countTables(verified: number, tables: number): string {
  return `${formatCount(verified)} of ${formatQuantity(tables, "table")}`;
}

/** Milliseconds between two lines about many tables. */
const LINE_MILLISECONDS = 5000;

/** Prints one line per phase, for log files. Of many tables, it prints how many are verified. */
function startLines(
  output: Output,
  tables: readonly string[],
): ProgressDisplay {
  const phases = new Map<string, string>();
  const verified = new Set<string>();
  let printedAt = performance.now();
  return {
    update({ table, phase, totalRows }) {
      if (tables.length > MAX_NAMES) {
        if (phase === "wait") verified.add(table);
        const now = performance.now();
        if (now - printedAt < LINE_MILLISECONDS) return;
        printedAt = now;
        output.progress(
          `${countTables(verified.size, tables.length)} verified`,
        );
        return;
      }
      if (phases.get(table) === phase) return;
      phases.set(table, phase);
      output.progress(
        `${table}: ${phase}${
          totalRows === null ? "" : ` (${formatQuantity(totalRows, "row")})`
        }`,
      );
    },
    stop() {},
  };
}
