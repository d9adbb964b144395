/** Checks whether the source answers and the warehouse accepts writes, and how fast. */
import type { Pool } from "../postgres/pool.ts";
import { asServiceError } from "../errors.ts";

/** Seconds after which a check counts as failed. */
const CHECK_TIMEOUT_SECONDS = 2;

/** The state of one database. */
export interface Check {
  readonly status: "healthy" | "unhealthy";
  readonly latency_ms: number;
  /** The server that answered, such as `localhost:5432`. */
  readonly server?: string;
  /** The failure and its remedy, where the check failed. */
  readonly error?: string;
}

/** The state of the service. */
export interface Health {
  readonly status: "healthy" | "unhealthy";
  readonly checks: { readonly olist: Check; readonly dwh: Check };
}

/** Checks in parallel that the source answers and that the warehouse accepts writes. Never throws. */
export async function checkHealth(olist: Pool, dwh: Pool): Promise<Health> {
  const [source, warehouse] = await Promise.all([
    check(olist, () => olist.query("select 1", [], CHECK_TIMEOUT_SECONDS)),
    check(dwh, () => dwh.checkWritable(CHECK_TIMEOUT_SECONDS)),
  ]);
  const isHealthy = source.status === "healthy" &&
    warehouse.status === "healthy";
  return {
    status: isHealthy ? "healthy" : "unhealthy",
    checks: { olist: source, dwh: warehouse },
  };
}

/** Returns a check that all callers share while it runs. */
export function sharedHealthCheck(
  olist: Pool,
  dwh: Pool,
): () => Promise<Health> {
  let running: Promise<Health> | undefined;
  return () =>
    running ??= checkHealth(olist, dwh).finally(() => running = undefined);
}

async function check(
  pool: Pool,
  work: () => Promise<unknown>,
): Promise<Check> {
  const started = performance.now();
  const latency = () => Math.round((performance.now() - started) * 10) / 10;
  try {
    await work();
    const { server } = pool;
    return {
      status: "healthy",
      latency_ms: latency(),
      ...(server === undefined ? {} : { server }),
    };
  } catch (error) {
    return {
      status: "unhealthy",
      latency_ms: latency(),
      error: asServiceError(error).line,
    };
  }
}
