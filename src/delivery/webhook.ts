/**
 * The webhook publisher: posts each event as a CloudEvent, signed as Standard
 * Webhooks specify.
 */
import { Webhook } from "standardwebhooks";
import { EVENT_SCHEMA_PATH } from "../runs/event.ts";
import { httpPublisher } from "./http_publisher.ts";
import type { OutgoingEvent, Publisher } from "./publisher.ts";

/** `source` of every CloudEvent. */
const SOURCE = "/marketing-data-service";

/** Number of digits of the largest number of an event. */
const SEQUENCE_DIGITS = 19;

/** Returns a publisher that posts to the URL. */
export function webhookPublisher(options: {
  readonly url: string;
  /** `whsec_` and base64. */
  readonly secret: string;
  readonly retryDelaySeconds: number;
  /** Base of the URL of the schema. */
  readonly publicUrl: string | undefined;
}): Publisher {
  const signer = new Webhook(options.secret);
  return httpPublisher({
    ...options,
    name: "webhook",
    variable: "EVENT_WEBHOOK_URL",
    label: "the webhook",
    requestOf(event) {
      const body = cloudEvent(event, options.publicUrl);
      const now = new Date();
      return {
        body,
        headers: {
          "content-type": "application/cloudevents+json; charset=utf-8",
          "webhook-id": event.eventId,
          "webhook-timestamp": String(Math.floor(now.getTime() / 1000)),
          "webhook-signature": signer.sign(event.eventId, now, body),
        },
      };
    },
  });
}

/** Returns the event as a CloudEvent in structured mode. Its data is the stored text, which is not parsed. */
export function cloudEvent(
  event: OutgoingEvent,
  publicUrl: string | undefined,
): string {
  const attributes = JSON.stringify({
    specversion: "1.0",
    id: event.eventId,
    source: SOURCE,
    type: event.eventType,
    subject: event.runId,
    time: `${event.timestamp}Z`,
    datacontenttype: "application/json",
    ...(publicUrl ? { dataschema: publicUrl + EVENT_SCHEMA_PATH } : {}),
    // Leading zeros make the order of texts the order of numbers.
    sequence: event.seq.padStart(SEQUENCE_DIGITS, "0"),
    ...(event.traceparent ? { traceparent: event.traceparent } : {}),
  });
  return `${attributes.slice(0, -1)},"data":${event.payload}}`;
}
