/** Version of the program; a test holds it equal to the one in `deno.json`. */
export const VERSION = "0.1.0";

/** Every session and pool of the service has a name that begins so in `pg_stat_activity`. */
export const APPLICATION_NAME = "marketing-data-service";
