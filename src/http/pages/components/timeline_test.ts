import { assertMatch } from "@std/assert";
import type { Phase } from "../../../sync/progress.ts";

/** The phases of a timeline. A load measures no phase after its verification. */
const TIMED: Readonly<Record<Exclude<Phase, "wait" | "commit">, true>> = {
  lock: true,
  compare: true,
  delete: true,
  copy: true,
  update: true,
  verify: true,
  check: true,
};

Deno.test("every phase of a timeline has a color", async () => {
  const stylesheet = await Deno.readTextFile(
    new URL("../dashboard.css", import.meta.url),
  );
  for (const phase of Object.keys(TIMED)) {
    assertMatch(stylesheet, new RegExp(`\\.p-${phase} \\{\\s+fill: `));
  }
});
