import { assert, assertEquals } from "@std/assert";
import { cloudEvent, retryAfterOf, webhookPublisher } from "./webhook.ts";

Deno.test("cloudEvent() keeps the stored text, including numbers that JavaScript would round", () => {
  const payload =
    '{"timestamp": "2025-08-26T21:19:33.123456",\n "n": 12345678901234567890}';
  const event = {
    seq: "42",
    traceparent: null,
    eventId: "e",
    runId: "r",
    eventType: "marketing-data-loaded",
    timestamp: "2025-08-26T21:19:33.123456",
    payload,
  };
  const text = cloudEvent(event, undefined);
  assert(text.endsWith(`,"data":${payload}}`));
  const { data: _, ...attributes } = JSON.parse(text);
  assertEquals(attributes, {
    specversion: "1.0",
    id: "e",
    source: "/marketing-data-service",
    type: "marketing-data-loaded",
    subject: "r",
    time: "2025-08-26T21:19:33.123456Z",
    datacontenttype: "application/json",
    sequence: "0000000000000000042",
  });
  const traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
  const more = JSON.parse(
    cloudEvent({ ...event, traceparent }, "https://loads.example"),
  );
  assertEquals(more.traceparent, traceparent);
  assertEquals(
    more.dataschema,
    "https://loads.example/schemas/event.v1.json",
  );
});

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

Deno.test("delaySeconds() doubles up to an hour, and varies by a quarter", async () => {
  const { delaySeconds } = await webhookPublisher({
    url: "https://hooks.example/",
    secret: `whsec_${btoa("x".repeat(24))}`,
    retryDelaySeconds: 1,
    publicUrl: undefined,
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
