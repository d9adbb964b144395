/**
 * Delivers events to the publishers: once after a load on the command line, or as
 * long as the service runs.
 */
import { delay } from "@std/async/delay";
import type { Config } from "../config/config.ts";
import { type AppContext, connectionOf } from "../context.ts";
import { Session } from "../postgres/session.ts";
import { asServiceError } from "../errors.ts";
import { formatQuantity } from "../format.ts";
import { type Attempt, backlogOf, deliverNext } from "./outbox.ts";
import { filePublisher, prepareFiles } from "./file.ts";
import type { Outcome, Publisher } from "./publisher.ts";
import type { PublisherName } from "../runs/event.ts";
import { checkUnrecorded } from "./unrecorded.ts";

/** Seconds between two queries for events that other processes added. */
const POLL_SECONDS = 5;

/** Maximum seconds to wait for a delivery of another process. Its attempt takes up to 15 s. */
const LOCK_SECONDS = 20;

type DeliveryContext = Pick<AppContext, "config" | "warehouse" | "log">;

/** Receives the outcome of each attempt, and the number of its events. */
type DeliveryListener = (
  publisher: PublisherName,
  outcome: "delivered" | "failed" | "stopped" | "given_up",
  events: number,
) => void;

/** Returns the names of the configured publishers. */
export function publisherNames(config: Config): readonly PublisherName[] {
  return [
    ...(config.eventPublisherType === "file" ? ["file"] as const : []),
    ...(config.eventWebhookUrl ? ["webhook"] as const : []),
    ...(config.alertSlackUrl ? ["slack"] as const : []),
    ...(config.alertTeamsUrl ? ["teams"] as const : []),
  ];
}

/**
 * Checks before a load that events can be delivered, and that no delivery reveals
 * a secret. Creates the event file.
 *
 * @throws {ServiceError} `event_file_unwritable` or `configuration`.
 */
export async function prepareDeliveries(config: Config): Promise<void> {
  await prepareFiles(config);
  if (publisherNames(config).some((name) => name !== "file")) {
    await checkUnrecorded();
  }
}

async function publishersOf(config: Config): Promise<readonly Publisher[]> {
  const { eventWebhookUrl: url, eventWebhookSecret: secret } = config;
  const publishers: Publisher[] = [];
  if (config.eventPublisherType === "file") {
    publishers.push(filePublisher(config.eventFile));
  }
  if (url && secret) {
    // Load its library only when it is configured.
    const { webhookPublisher } = await import("./webhook.ts");
    publishers.push(webhookPublisher({ ...config, url, secret }));
  }
  if (config.alertSlackUrl || config.alertTeamsUrl) {
    const { alertPublishers } = await import("./alert_publishers.ts");
    publishers.push(...alertPublishers(config));
  }
  return publishers;
}

/** Delivers events to the configured publishers, independently of each other. */
export class Deliverer {
  readonly #context: DeliveryContext;
  readonly #onOutcome: DeliveryListener | undefined;
  readonly #publishers: Promise<readonly Publisher[]>;
  readonly #stopped = new Set<PublisherName>();
  #waker = new AbortController();

  constructor(context: DeliveryContext, onOutcome?: DeliveryListener) {
    this.#context = context;
    this.#onOutcome = onOutcome;
    this.#publishers = publishersOf(context.config);
  }

  /**
   * Delivers pending events. No attempt at a remote receiver starts after
   * `seconds` or after a failure: the next call delivers the rest. Never throws.
   */
  async deliver(seconds: number, signal: AbortSignal): Promise<void> {
    const until = performance.now() + seconds * 1000;
    const publishers = await this.#publishers;
    await Promise.all(
      publishers.map((publisher) =>
        this.#deliver(publisher, publisher.isRemote ? until : Infinity, signal)
      ),
    );
  }

  /** Delivers in the background until the signal. Never throws. */
  async run(signal: AbortSignal): Promise<void> {
    const publishers = await this.#publishers;
    await Promise.all(
      publishers.map(async (publisher) => {
        while (!signal.aborted) {
          const waker = this.#waker.signal;
          const seconds = await this.#deliver(publisher, Infinity, signal);
          await delay(seconds * 1000, {
            signal: AbortSignal.any([signal, waker]),
          }).catch(() => {});
        }
      }),
    );
  }

  /** Makes `run` query for events now. */
  wake(): void {
    this.#waker.abort();
    this.#waker = new AbortController();
  }

  /** Delivers to one publisher. Returns the seconds to wait before the next call. */
  async #deliver(
    publisher: Publisher,
    until: number,
    signal: AbortSignal,
  ): Promise<number> {
    const { warehouse, log } = this.#context;
    try {
      const backlog = await backlogOf(warehouse, publisher);
      if (backlog.state === "stopped") {
        this.#logStopped(publisher, backlog.error);
      } else this.#stopped.delete(publisher.name);
      if (backlog.state !== "pending") return POLL_SECONDS;
      if (backlog.dueSeconds > 0) {
        return Math.min(backlog.dueSeconds, POLL_SECONDS);
      }
      return await this.#deliverAll(publisher, until, signal);
    } catch (error) {
      const known = asServiceError(error);
      if (signal.aborted) return 0;
      // Another process delivers.
      if (known.sqlstate === "55P03") return POLL_SECONDS;
      log.warn("Cannot deliver events to {label}: {error}", {
        label: publisher.label,
        error: known.line,
      });
      return POLL_SECONDS;
    }
  }

  async #deliverAll(
    publisher: Publisher,
    until: number,
    signal: AbortSignal,
  ): Promise<number> {
    const { config, warehouse } = this.#context;
    await using session = await Session.open(
      config.dwh,
      connectionOf(config, "deliver", signal),
    );
    while (performance.now() < until) {
      const lockTimeoutSeconds = Math.min(
        LOCK_SECONDS,
        // Less than STALL_TIMEOUT, after which the connection counts as stalled.
        config.stallTimeoutSeconds / 2,
        Math.max(0.1, (until - performance.now()) / 1000),
      );
      const options = { signal, lockTimeoutSeconds, warehouse };
      const attempt = await deliverNext(session, publisher, options);
      if (!attempt) break;
      if (attempt.outcome.kind === "skipped") continue;
      this.#report(publisher, attempt, attempt.outcome);
      if (attempt.outcome.kind === "gone") break;
      if (attempt.outcome.kind === "failed") {
        return publisher.isRemote
          ? Math.min(attempt.delaySeconds, POLL_SECONDS)
          : attempt.delaySeconds;
      }
    }
    return POLL_SECONDS;
  }

  #report(
    publisher: Publisher,
    attempt: Attempt,
    outcome: Exclude<Outcome, { kind: "skipped" }>,
  ): void {
    const { log } = this.#context;
    const { name, label } = publisher;
    const { eventId, attempts, delaySeconds, givenUp } = attempt;
    if (outcome.kind === "delivered") {
      this.#onOutcome?.(name, "delivered", 1);
      log.debug("Delivered event {event_id} to {label}", {
        event_id: eventId,
        label,
      });
      return;
    }
    this.#onOutcome?.(name, "failed", 1);
    log.warn(
      "Cannot deliver event {event_id} to {label} (attempt {attempts}): {error}",
      { event_id: eventId, label, attempts, error: outcome.error },
    );
    if (outcome.kind === "gone") {
      this.#onOutcome?.(name, "stopped", 1);
      this.#logStopped(publisher, outcome.error);
      return;
    }
    log.debug("The next attempt follows in {seconds} s", {
      seconds: delaySeconds.toFixed(1),
    });
    if (givenUp > 0) {
      this.#onOutcome?.(name, "given_up", givenUp);
      log.error("Gave up {events}, because {label} failed for too long", {
        label,
        events: formatQuantity(givenUp, "event"),
        count: givenUp,
      });
    }
  }

  /** Logs once until the publisher is resumed. */
  #logStopped({ name, label, variable }: Publisher, error: string): void {
    if (this.#stopped.has(name)) return;
    this.#stopped.add(name);
    this.#context.log.error(
      "Stopped deliveries to {label}: {error}. Change {variable}, or run `events --resume`",
      { label, error, variable },
    );
  }
}
