import { assertEquals, assertRejects } from "@std/assert";
import { delay } from "@std/async/delay";
import { startTimeout, withTimeout } from "./timeout.ts";

/** Keeps this process busy, as a suspension would. */
function block(milliseconds: number): void {
  const end = performance.now() + milliseconds;
  while (performance.now() < end);
}

Deno.test("withTimeout() returns what arrived during a pause of the process", async () => {
  const work = withTimeout(delay(250).then(() => "done"), 0.2, () => Error());
  block(800);
  assertEquals(await work, "done");
});

Deno.test("withTimeout() throws after the timeout", async () => {
  const never = new Promise(() => {});
  await assertRejects(
    () => withTimeout(never, 0.05, () => new Error("too late")),
    Error,
    "too late",
  );
});

Deno.test("startTimeout() calls back in a process that is always busy", async () => {
  const { promise, resolve } = Promise.withResolvers<void>();
  using _ = startTimeout(0.02, resolve);
  let blocks = 0;
  const busy = setInterval(() => {
    block(550);
    // Otherwise a failure would not end.
    if (++blocks === 20) resolve();
  });
  await promise;
  clearInterval(busy);
  assertEquals(blocks < 20, true);
});
