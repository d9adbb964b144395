/** Ends backends of the service that outlive their connections. */
import { delay } from "@std/async/delay";
import { hasSqlstate } from "../errors.ts";
import { APPLICATION_NAME } from "../identity.ts";
import type { Parameter, Queryable } from "./sql.ts";

/** Ends the warehouse backends of a run's sessions and waits until they have ended. */
export async function endBackends(
  queryable: Queryable,
  runId: string,
): Promise<void> {
  await terminate(queryable, "application_name = $1", [
    `${APPLICATION_NAME}/${runId}`,
  ]);
}

/**
 * Ends one backend of the service and waits until it has ended. A connection that is
 * closed here may stay open at the server, with its locks and perhaps a commit.
 */
export async function endBackend(
  queryable: Queryable,
  pid: number,
  applicationName: string,
): Promise<void> {
  await terminate(queryable, "pid = $1 and application_name = $2", [
    pid,
    applicationName,
  ]);
}

/** The maximum number of attempts to end a backend. */
const MAX_ATTEMPTS = 20;

async function terminate(
  queryable: Queryable,
  condition: string,
  parameters: readonly Parameter[],
): Promise<void> {
  for (let attempt = 1;; attempt++) {
    try {
      await queryable.query(
        // A role that switched to another role at login may not end its own sessions.
        `with itself as materialized (select set_config('role', 'none', true))
         select pg_terminate_backend(pid, 5000) from itself, pg_stat_activity
         where ${condition} and pid <> pg_backend_pid()
           -- Any role can give its session this name.
           and usename = session_user`,
        parameters,
      );
      return;
    } catch (error) {
      // A backend that is ending has no role. So it looks like that of another role.
      const isEnding = hasSqlstate(error, "42501");
      if (!isEnding || attempt === MAX_ATTEMPTS) throw error;
      await delay(50);
    }
  }
}
