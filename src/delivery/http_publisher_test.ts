import { assert, assertEquals } from "@std/assert";
import { httpPublisher, retryAfterOf } from "./http_publisher.ts";

Deno.test("retryAfterOf() accepts only seconds and dates, up to a day", () => {
  const now = Date.UTC(2025, 0, 1);
  const cases: [string | null, number | undefined][] = [
    [null, undefined],
    ["120", 120],
    [" 7 ", 7],
    ["0", undefined],
    ["-5", undefined],
    ["soon", undefined],
    ["Wed, 01 Jan 2025 00:00:30 GMT", 30],
    ["Tue, 31 Dec 2024 23:00:00 GMT", undefined],
    ["99999999", 86_400],
  ];
  for (const [header, seconds] of cases) {
    assertEquals(retryAfterOf(header, now), seconds, String(header));
  }
});

Deno.test("delaySeconds() doubles up to an hour, and varies by a quarter", () => {
  const { delaySeconds } = httpPublisher({
    name: "webhook",
    variable: "EVENT_WEBHOOK_URL",
    label: "the webhook",
    url: "https://hooks.example/",
    retryDelaySeconds: 1,
    requestOf: () => ({ headers: {}, body: "" }),
  });
  for (
    const [failures, seconds] of [[1, 1], [2, 2], [5, 16], [13, 3600], [
      5000,
      3600,
    ]] as const
  ) {
    for (let i = 0; i < 50; i++) {
      const delay = delaySeconds(failures);
      assert(delay >= seconds * 0.75 && delay <= seconds * 1.25, `${delay}`);
    }
  }
});
