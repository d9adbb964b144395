/**
 * The files of a server, for a standby or a backup.
 *
 * @module
 */
import { assert } from "@std/assert";
import type { PostgresServer } from "../../demo/postgres.ts";

/** Copies the files of a stopped server to another stopped one, without the settings. */
export async function copyFiles(
  from: PostgresServer,
  to: PostgresServer,
): Promise<void> {
  const { success, stderr } = await new Deno.Command("sh", {
    args: [
      "-c",
      'mv "$2/postgresql.conf" "$2.conf" && rm -rf "$2" && cp -a "$1" "$2" && mv "$2.conf" "$2/postgresql.conf" && rm -f "$2/postmaster.pid"',
      "sh",
      from.dataDirectory,
      to.dataDirectory,
    ],
  }).output();
  assert(success, new TextDecoder().decode(stderr));
}
