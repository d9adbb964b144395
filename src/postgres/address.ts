/**
 * Names a database, its servers and its variables in messages. No name contains a
 * secret.
 *
 * @module
 */
import type { DatabaseConfig, ServerAddress } from "../config/config.ts";

/** Returns the address of a database. */
export function address({ database, servers, label }: DatabaseConfig): string {
  return `database "${database}" on ${hostsOf(servers)} (${label})`;
}

/** Returns the hosts and ports of servers, as in `a:5432,b:5432`. */
export function hostsOf(servers: readonly ServerAddress[]): string {
  return servers.map(({ host, port }) => `${host}:${port}`).join(",");
}

/** Returns the name of a variable of this database, such as `DWH_DB_HOST`. */
export function variable({ label }: DatabaseConfig, name: string): string {
  return `${label.toUpperCase()}_DB_${name}`;
}
