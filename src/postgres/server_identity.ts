/**
 * Which server a connection leads to. An address may lead to another one after
 * a failover, and the lock of one server means nothing on another.
 *
 * @module
 */
import type { DatabaseConfig } from "../config/config.ts";
import { ServiceError } from "../errors.ts";
import { address } from "./errors.ts";
import { literal } from "./sql.ts";

/** The server as one expression: when it was started, to the microsecond, and its role. */
export const SERVER_EXPRESSION = `pg_catalog.concat(
  pg_catalog.date_part('epoch', pg_catalog.pg_postmaster_start_time())::pg_catalog.numeric, ' ',
  pg_catalog.pg_is_in_recovery())`;

/** SQLSTATE that {@linkcode assertServer} raises. No server has it. */
export const OTHER_SERVER = "MDS01";

/** A statement that fails on any other server, so that what follows it in a script does not run there. */
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

/** What other connections must share the server with, such as the lock. */
export interface ServerHolder {
  readonly server: string;
  /** Gives it up, since the address leads elsewhere. */
  giveUp(reason: ServiceError): void;
}

/** The failure of a connection that leads to another server than the holder's. */
export function otherServerError(config: DatabaseConfig): ServiceError {
  return new ServiceError(
    "lock_lost",
    `${
      address(config)
    } leads to another server than the one that holds the service's lock`,
  );
}
