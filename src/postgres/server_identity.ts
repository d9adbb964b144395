/**
 * Identifies the server of a connection. After a failover, an address can lead to
 * another server. A lock on one server does not protect another.
 *
 * @module
 */
import type { DatabaseConfig } from "../config/config.ts";
import { ServiceError } from "../errors.ts";
import { address } from "./address.ts";
import { literal } from "./sql.ts";

/** SQL expression that identifies the server: its start time in microseconds, and whether it is in recovery. */
export const SERVER_EXPRESSION = `pg_catalog.concat(
  pg_catalog.date_part('epoch', pg_catalog.pg_postmaster_start_time())::pg_catalog.numeric, ' ',
  pg_catalog.pg_is_in_recovery())`;

/** The SQLSTATE that {@linkcode assertServer} raises. PostgreSQL never uses it. */
export const OTHER_SERVER = "MDS01";

/** Returns a statement that fails on any other server. The rest of its script then does not run there. */
export function assertServer(server: string): string {
  return `do ${
    literal(
      `begin if ${SERVER_EXPRESSION} operator(pg_catalog.<>) ${
        literal(server)
      } then
         raise exception 'another server' using errcode = '${OTHER_SERVER}';
       end if; end`,
    )
  }`;
}

/** A connection whose server the others must share, such as that of the lock. */
export interface ServerHolder {
  readonly server: string;
  /** The configuration, with the holder's server alone. */
  readonly config: DatabaseConfig;
  /** Closes the connection, because the address leads to another server. */
  giveUp(reason: ServiceError): void;
}

/** Returns the error of a connection that leads to another server than the holder's. */
export function otherServerError(config: DatabaseConfig): ServiceError {
  return new ServiceError(
    "lock_lost",
    `${
      address(config)
    } now leads to another server than the one with the service's lock`,
  );
}
