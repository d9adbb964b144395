/**
 * A publisher that posts to an endpoint. It retries with growing delays, and drops
 * events that failed for too long.
 */
import { createHash } from "node:crypto";
import { VERSION } from "../identity.ts";
import type { Outcome, OutgoingEvent, Publisher } from "./publisher.ts";
import { unrecorded } from "./unrecorded.ts";

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

interface HttpPublisherOptions extends Pick<Publisher, "name" | "variable"> {
  readonly url: string;
  /** Name of the destination in logs, without its address. */
  readonly label: string;
  /** Seconds before the second attempt, doubled for each one after it. */
  readonly retryDelaySeconds: number;
  /** Returns the request for an event, or `undefined` for an event that is not posted. */
  readonly requestOf: (event: OutgoingEvent) => HttpRequest | undefined;
}

/** The request for one event. */
interface HttpRequest {
  readonly headers: Readonly<Record<string, string>>;
  readonly body: string;
  /** The tables of the outcome, where they change. */
  readonly failingTables?: readonly string[];
}

/** Returns a publisher that posts to the URL. */
export function httpPublisher(options: HttpPublisherOptions): Publisher {
  const url = new URL(options.url);
  return {
    name: options.name,
    variable: options.variable,
    target: createHash("sha256").update(url.href).digest("hex"),
    label: `${options.label} at ${url.origin}`,
    isRemote: true,
    giveUpAfter: GIVE_UP_AFTER,
    delaySeconds(failures) {
      const base = Math.max(options.retryDelaySeconds, MIN_DELAY_SECONDS);
      const delay = Math.min(MAX_DELAY_SECONDS, base * 2 ** (failures - 1));
      // A jitter of a quarter spreads senders that failed together.
      return delay * (0.75 + Math.random() / 2);
    },
    async publish(event, signal) {
      const request = options.requestOf(event);
      return request ? await post(url, request, signal) : { kind: "skipped" };
    },
  };
}

async function post(
  url: URL,
  { headers, body, failingTables }: HttpRequest,
  signal: AbortSignal,
): Promise<Outcome> {
  const timeout = AbortSignal.timeout(TIMEOUT_SECONDS * 1000);
  let response: Response;
  try {
    response = await unrecorded(() =>
      fetch(url, {
        method: "POST",
        headers: {
          "user-agent": `marketing-data-service/${VERSION}`,
          ...headers,
        },
        body,
        // The event must not reach another address.
        redirect: "manual",
        signal: AbortSignal.any([signal, timeout]),
      })
    );
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
  const outcome = outcomeOf(response);
  return outcome.kind === "delivered" && failingTables
    ? { ...outcome, failingTables }
    : outcome;
}

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
