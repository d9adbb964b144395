import { assertEquals, assertRejects } from "@std/assert";
import { type ErrorCode, ServiceError } from "../errors.ts";
import { setUpLogging } from "../log.ts";
import { retry } from "./retry.ts";

const lines: string[] = [];

const log = setUpLogging({
  level: "WARNING",
  format: "text",
  colors: false,
  mask: (text) => text,
  write: (line) => lines.push(line),
});

/** Returns the number of attempts at work that always fails. */
async function attemptsAt(
  code: ErrorCode,
  options: Partial<Parameters<typeof retry>[2]> = {},
  act = () => {},
): Promise<number> {
  let attempts = 0;
  const policy = { retryAttempts: 2, retryDelaySeconds: 0 };
  const work = () => {
    attempts++;
    act();
    return Promise.reject(new ServiceError(code, "the cause"));
  };
  await assertRejects(
    () => retry(policy, work, { log, ...options }),
    ServiceError,
    "the cause",
  );
  return attempts;
}

Deno.test("retry() repeats transient failures and throws the last cause", async () => {
  lines.length = 0;
  assertEquals(await attemptsAt("connection_lost"), 2);
  assertEquals(lines.length, 1, "the last failure is not followed by a retry");
  assertEquals(await attemptsAt("connection_lost", { atLeast: 3 }), 3);
});

Deno.test("retry() repeats neither permanent failures nor a lost snapshot", async () => {
  assertEquals(await attemptsAt("permission_denied"), 1);
  assertEquals(await attemptsAt("snapshot_lost"), 1);
});

Deno.test("retry() makes no attempt after an abort, unless it is asked to", async () => {
  for (const evenIfAborted of [false, true]) {
    const controller = new AbortController();
    const attempts = await attemptsAt(
      "connection_lost",
      { signal: controller.signal, evenIfAborted },
      () => controller.abort(),
    );
    assertEquals(attempts, evenIfAborted ? 2 : 1);
  }
});
