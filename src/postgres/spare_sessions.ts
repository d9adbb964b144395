/**
 * Sessions that are opened before they are needed, and those that wait for a free
 * connection.
 *
 * @module
 */
import { delay } from "@std/async/delay";
import { mayLackConnections } from "./errors.ts";
import type { Session } from "./session.ts";

/** Milliseconds in which a server ends the backend of a closed session. */
const ENDING_MILLISECONDS = 2000;

const ENDING_POLL_MILLISECONDS = 50;

/**
 * Opens a session. When no connection is free, waits until one of the other
 * sessions has ended, and retries. The server may count a session for a moment
 * after its end, and so may one that it refused at the same moment.
 */
export async function openWhenFree(
  open: () => Promise<Session>,
  others: () => Iterable<Session>,
): Promise<Session> {
  let refusedAt: number | undefined;
  while (true) {
    const ends = [...others()].filter((session) => !session.failure)
      .map((session) => session.ended);
    try {
      return await open();
    } catch (error) {
      if (!mayLackConnections(error)) throw error;
      if (ends.length > 0) {
        refusedAt = undefined;
        await Promise.race(ends);
        continue;
      }
      refusedAt ??= performance.now();
      if (performance.now() - refusedAt > ENDING_MILLISECONDS) throw error;
      await delay(ENDING_POLL_MILLISECONDS);
    }
  }
}

/** Sessions for later use. Some may still log in. */
export class SpareSessions {
  readonly #sessions: Promise<Session>[] = [];

  /** Opens that many sessions, without waiting for them. */
  open(count: number, open: () => Promise<Session>): void {
    for (let n = count; n > 0; n--) this.add(open());
  }

  add(session: Session | Promise<Session>): void {
    const opened = Promise.resolve(session);
    // Its user opens another session, and gets the failure of that one.
    opened.catch(() => {});
    this.#sessions.push(opened);
  }

  /**
   * Removes and returns a session that still answers, or `undefined`. A setting of the
   * role may have ended an idle one.
   */
  async take(): Promise<Session | undefined> {
    for (let next; (next = this.#sessions.pop());) {
      const session = await next.catch(() => undefined);
      if (await session?.answers()) return session;
    }
    return undefined;
  }

  /** Closes all that were not taken. */
  async close(): Promise<void> {
    await Promise.all(
      this.#sessions.splice(0).map((opened) =>
        opened.then((session) => session.close(), () => {})
      ),
    );
  }
}
