/** Version of the program. A test compares it with `deno.json`. */
export const VERSION = "0.1.0";

/** Prefix of the `application_name` of every session and pool. */
export const APPLICATION_NAME = "marketing-data-service";
