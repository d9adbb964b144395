/**
 * The webhook publisher: posts each event as a CloudEvent, signed as Standard
 * Webhooks specify.
 *
 * @module
 */
import { Webhook } from "standardwebhooks";
import { VERSION } from "../identity.ts";
import { EVENT_SCHEMA_PATH } from "../runs/event.ts";
import type { Outcome, OutgoingEvent, Publisher } from "./publisher.ts";

/** Seconds within which the receiver must answer, as Standard Webhooks recommends. */
const TIMEOUT_SECONDS = 15;

/** Maximum seconds between two attempts. */
const MAX_DELAY_SECONDS = 3600;

/** Minimum seconds before the second attempt, so that a delay of 0 does not flood the receiver. */
const MIN_DELAY_SECONDS = 0.05;

/** Maximum seconds that a Retry-After header can ask for. */
const MAX_RETRY_AFTER_SECONDS = 86_400;

/** Limit after which events are given up. With rare loads, three days alone mean too few attempts. */
const GIVE_UP_AFTER = { seconds: 3 * 86_400, failures: 10 } as const;

/** `source` of every CloudEvent. */
const SOURCE = "/marketing-data-service";

/** Number of digits of the largest number of an event. */
const SEQUENCE_DIGITS = 19;

/** The options of the webhook. */
interface WebhookOptions {
  readonly url: string;
  /** `whsec_` and base64. */
  readonly secret: string;
  /** Seconds before the second attempt, doubled for each one after it. */
  readonly retryDelaySeconds: number;
  /** Base of the URL of the schema. */
  readonly publicUrl: string | undefined;
}

/** Returns a publisher that posts to the URL. */
export async function webhookPublisher(
  options: WebhookOptions,
): Promise<Publisher> {
  const url = new URL(options.url);
  const signer = new Webhook(options.secret);
  return {
    name: "webhook",
    target: await digestOf(url.href),
    label: `the webhook at ${url.origin}`,
    isRemote: true,
    giveUpAfter: GIVE_UP_AFTER,
    delaySeconds(failures) {
      const base = Math.max(options.retryDelaySeconds, MIN_DELAY_SECONDS);
      const delay = Math.min(MAX_DELAY_SECONDS, base * 2 ** (failures - 1));
      // A jitter of a quarter spreads senders that failed together.
      return delay * (0.75 + Math.random() / 2);
    },
    publish: (event, signal) =>
      post(url, signer, event, options.publicUrl, signal),
  };
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

async function post(
  url: URL,
  signer: Webhook,
  event: OutgoingEvent,
  publicUrl: string | undefined,
  signal: AbortSignal,
): Promise<Outcome> {
  const body = cloudEvent(event, publicUrl);
  const now = new Date();
  const timeout = AbortSignal.timeout(TIMEOUT_SECONDS * 1000);
  let response: Response;
  try {
    response = await fetch(url, {
      method: "POST",
      headers: {
        "content-type": "application/cloudevents+json; charset=utf-8",
        "user-agent": `marketing-data-service/${VERSION}`,
        "webhook-id": event.eventId,
        "webhook-timestamp": String(Math.floor(now.getTime() / 1000)),
        "webhook-signature": signer.sign(event.eventId, now, body),
      },
      body,
      // The event must not reach another address.
      redirect: "manual",
      signal: AbortSignal.any([signal, timeout]),
    });
  } catch (error) {
    signal.throwIfAborted();
    return {
      kind: "failed",
      error: timeout.aborted
        ? `no answer within ${TIMEOUT_SECONDS} s`
        : causeOf(error, url),
    };
  }
  // Only the status counts: a body may be long or endless.
  response.body?.cancel().catch(() => {});
  return outcomeOf(response);
}

/** Returns the outcome for a status. */
function outcomeOf({ status, headers }: Response): Outcome {
  if (status >= 200 && status < 300) return { kind: "delivered" };
  if (status === 410) return { kind: "gone", error: "it answered 410 Gone" };
  const retryAfterSeconds = retryAfterOf(headers.get("retry-after"));
  const isRedirect = status >= 300 && status < 400;
  return {
    kind: "failed",
    error: `it answered ${status}${
      isRedirect ? ", and redirects are not followed" : ""
    }`,
    ...(retryAfterSeconds === undefined ? {} : { retryAfterSeconds }),
  };
}

/** Returns the seconds that a Retry-After header asks for, by a number or a date. */
export function retryAfterOf(
  header: string | null,
  now = Date.now(),
): number | undefined {
  if (header === null) return undefined;
  const seconds = /^\d+$/.test(header.trim())
    ? Number(header)
    : (Date.parse(header) - now) / 1000;
  return seconds > 0 ? Math.min(seconds, MAX_RETRY_AFTER_SECONDS) : undefined;
}

/** Returns the cause of an error, without the URL in the messages of `fetch`. */
function causeOf(error: unknown, url: URL): string {
  const { message, cause } = error as Error;
  const text = cause instanceof Error ? cause.message : message;
  return text.replace(/ for url \(\S*\)/, "")
    .replaceAll(url.href, url.origin);
}

async function digestOf(text: string): Promise<string> {
  const bytes = await crypto.subtle.digest(
    "SHA-256",
    new TextEncoder().encode(text),
  );
  return Array.from(
    new Uint8Array(bytes),
    (byte) => byte.toString(16).padStart(2, "0"),
  ).join("");
}
