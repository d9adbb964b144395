/**
 * The schedule and the channel: triggers without a waiting caller.
 *
 * @module
 */
import type { Logger } from "@logtape/logtape";
import { delay } from "@std/async/delay";
import { isTick } from "../config/crontab.ts";
import type { Config } from "../config/config.ts";
import { APPLICATION_NAME } from "../identity.ts";
import { Session } from "../postgres/session.ts";
import { identifier } from "../postgres/sql.ts";
import type { Dispatcher } from "./dispatcher.ts";
import { asServiceError } from "../errors.ts";
import type { RunOptions } from "../runs/run.ts";
import { namesOf } from "../tables/declaration.ts";

/** Seconds between two heartbeats on the connection of the channel. */
const HEARTBEAT_SECONDS = 15;

/** The surroundings of a trigger. */
interface TriggerContext {
  readonly config: Config;
  readonly log: Logger;
  readonly dispatcher: Dispatcher;
}

/** Returns the options of a load that the configuration gives. */
function defaultOptions(config: Config): RunOptions {
  return {
    tables: namesOf(config.tables),
    mode: config.loadMode,
    atomic: config.loadAtomic,
    recreate: false,
  };
}

/**
 * Loads at every tick of LOAD_SCHEDULE until the signal. Does nothing when it is unset.
 *
 * `Deno.cron` wakes the process each minute. Its own expressions count days of
 * the week from another number than crontab, and cannot ask for both days.
 */
export function startSchedule(
  context: TriggerContext,
  signal: AbortSignal,
): void {
  const { loadSchedule } = context.config;
  if (!loadSchedule) return;
  // A retry would load at an unplanned time. The next tick follows anyway.
  void Deno.cron(
    "load",
    "* * * * *",
    { signal, backoffSchedule: [] },
    () => runMinute(context, loadSchedule, new Date()),
  );
  context.log.info("Loads are scheduled: {schedule} (UTC)", {
    schedule: loadSchedule,
  });
}

/** Loads if the schedule has a tick at the minute that `now` is in. Never throws. */
export async function runMinute(
  context: TriggerContext,
  schedule: string,
  now: Date,
): Promise<void> {
  const minute = new Date(Math.floor(now.getTime() / 60_000) * 60_000);
  if (isTick(schedule, minute)) await runTick(context, minute);
}

/** Handles the tick of the minute that `now` is in. Never throws. */
export async function runTick(
  { config, log, dispatcher }: TriggerContext,
  now: Date,
): Promise<void> {
  // A tick has no number: replicas identify it by its minute.
  const tick = new Date(Math.floor(now.getTime() / 60_000) * 60_000);
  const minute = tick.toISOString();
  try {
    const result = await dispatcher.tick(defaultOptions(config), tick);
    if (result === "running") {
      log.warn("The tick of {minute} is skipped: a load is running", {
        minute,
      });
    } else if (result === "taken") {
      log.info("The tick of {minute} is run by another process", { minute });
    }
  } catch (error) {
    log.error("The tick of {minute} did not load: {error}", {
      minute,
      error: asServiceError(error).line,
    });
  }
}

/** Loads at every NOTIFY on LISTEN_CHANNEL until the signal, also after a restart or a failover of the warehouse. */
export async function listenForTriggers(
  context: TriggerContext,
  signal: AbortSignal,
): Promise<void> {
  const { config, log } = context;
  const { listenChannel: channel } = config;
  if (!channel) return;
  let isFirst = true;
  while (!signal.aborted) {
    try {
      await using session = await Session.open(config.dwh, {
        applicationName: `${APPLICATION_NAME}/listen`,
        connectTimeoutSeconds: config.connectTimeoutSeconds,
        stallTimeoutSeconds: config.stallTimeoutSeconds,
        signal,
        onNotify: () => void loadNotified(context),
      });
      // An idle timeout of the role would end it repeatedly, with a load each time.
      await session.query(
        `set idle_session_timeout = 0; listen ${identifier(channel)}`,
      );
      log.info("Listening on channel {channel}", { channel });
      // A notification may have been lost while no connection existed.
      if (!isFirst) void loadNotified(context);
      isFirst = false;
      const ended = AbortSignal.any([signal, session.signal]);
      while (!ended.aborted) {
        await delay(HEARTBEAT_SECONDS * 1000, { signal: ended })
          .catch(() => {});
        // After a failover, the old primary may keep the connection open.
        if (!ended.aborted) await session.checkAddress();
      }
      if (!signal.aborted) throw session.failure;
    } catch (error) {
      if (signal.aborted) return;
      log.warn(
        "The connection that listens is lost and is made again: {error}",
        {
          error: asServiceError(error).message,
        },
      );
      await delay(1000, { signal }).catch(() => {});
    }
  }
}

/** Loads once for all notifications that arrive before it begins. Never throws. */
async function loadNotified(
  { config, log, dispatcher }: TriggerContext,
): Promise<void> {
  try {
    await dispatcher.submit("notify", defaultOptions(config));
  } catch (error) {
    log.error("The notification did not load: {error}", {
      error: asServiceError(error).line,
    });
  }
}
