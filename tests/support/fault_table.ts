/**
 * Writes the measurements of a run of the suite into `docs/reliability.md`:
 *
 * ```sh
 * FAULTS_MEASURE=/tmp/measured.jsonl deno task test:faults
 * FAULTS_MEASURE=/tmp/measured.jsonl deno task docs:faults
 * ```
 *
 * @module
 */
import type { Measurement } from "./measure.ts";

const BEGIN = "<!-- measured: begin -->";
const END = "<!-- measured: end -->";

if (import.meta.main) {
  const path = Deno.env.get("FAULTS_MEASURE");
  if (!path) throw new Error("FAULTS_MEASURE names no file");
  const measurements = Deno.readTextFileSync(path).trimEnd().split("\n")
    .map((line) => JSON.parse(line) as Measurement);
  const docs = new URL("../../docs/reliability.md", import.meta.url);
  const text = Deno.readTextFileSync(docs);
  const [before] = text.split(BEGIN);
  const after = text.split(END)[1] ?? "\n";
  Deno.writeTextFileSync(
    docs,
    `${before}${BEGIN}\n\n${tables(measurements)}\n\n${END}${after}`,
  );
}

/** Returns one table per group, sorted by the name of the group. */
function tables(measurements: readonly Measurement[]): string {
  const groups = Map.groupBy(measurements, ({ group }) => group);
  return [...groups].toSorted(([a], [b]) => a.localeCompare(b))
    .map(([group, cases]) => `### ${group}\n\n${table(cases)}`).join("\n\n");
}

function table(cases: readonly Measurement[]): string {
  const rows = cases.map(({ fault, sees, holds, recoverySeconds }) => [
    fault,
    sees,
    holds,
    `${recoverySeconds.toFixed(1)} s`,
  ]);
  const header = ["fault", "the load ends with", "targets then", "next load"];
  return [header, header.map(() => "---"), ...rows]
    .map((cells) =>
      `| ${cells.map((c) => c.replaceAll("|", "\\|")).join(" | ")} |`
    )
    .join("\n");
}
