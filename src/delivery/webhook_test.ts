import { assert, assertEquals } from "@std/assert";
import { cloudEvent } from "./webhook.ts";

Deno.test("cloudEvent() keeps the stored text, including numbers that JavaScript would round", () => {
  const payload =
    '{"timestamp": "2025-08-26T21:19:33.123456",\n "n": 12345678901234567890}';
  const event = {
    seq: "42",
    traceparent: null,
    failingTables: [],
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
