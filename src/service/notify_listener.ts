/** Starts a load at every NOTIFY on LISTEN_CHANNEL. */
import { delay } from "@std/async/delay";
import { asServiceError } from "../errors.ts";
import { connectionOf } from "../context.ts";
import { Session } from "../postgres/session.ts";
import { identifier } from "../postgres/sql.ts";
import type { TriggerContext } from "./schedule.ts";

/** Seconds between two heartbeats on the connection of the channel. */
const HEARTBEAT_SECONDS = 15;

/** Starts a load at every NOTIFY until the signal, also after a restart or a failover of the warehouse. */
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
        ...connectionOf(config, "listen", signal),
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
        if (!ended.aborted) await session.checkAddress(config.dwh);
      }
      if (!signal.aborted) throw session.failure;
    } catch (error) {
      if (signal.aborted) return;
      log.warn(
        "Cannot listen on channel {channel}: {error}. The next attempt follows",
        { channel, error: asServiceError(error).message },
      );
      await delay(1000, { signal }).catch(() => {});
    }
  }
}

/** Queues one load for all notifications that arrive before it begins. Never throws. */
async function loadNotified(
  { log, dispatcher }: TriggerContext,
): Promise<void> {
  try {
    await dispatcher.submit("notify");
  } catch (error) {
    log.error("Cannot start a load for a notification: {error}", {
      error: asServiceError(error).line,
    });
  }
}
