/**
 * Servers for a single test. Their files are in memory, where a database is created
 * several times as fast as on a disk.
 *
 * @module
 */
import * as demo from "../../demo/postgres.ts";

/** Free memory that the files of such a server may need, in bytes. */
const SERVER_BYTES = 2 ** 30;

/** Starts a server in memory, if there is enough, and otherwise in the temporary folder. */
export const startPostgres: typeof demo.startPostgres = (options) =>
  demo.startPostgres({
    parent: demo.findMemoryFolder(SERVER_BYTES),
    ...options,
  });
