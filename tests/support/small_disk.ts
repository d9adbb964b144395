/**
 * A file system that is full after a few kilobytes, or read-only.
 *
 * @module
 */
import { skip } from "./measure.ts";
import { findProgram } from "./debian.ts";

/** A mounted file system. */
export interface Disk extends AsyncDisposable {
  readonly path: string;
  /** Makes the file system read-only or writable. */
  remount(mode: "ro" | "rw"): Promise<void>;
}

async function run(command: string, ...args: string[]): Promise<boolean> {
  const { success } = await new Deno.Command(command, { args, stderr: "null" })
    .output();
  return success;
}

/**
 * Mounts a tmpfs of this size. Without the right to mount, reports that on standard
 * error and returns `undefined`.
 */
export async function mountDisk(
  what: string,
  kilobytes: number,
  owner?: { uid: number; gid: number },
): Promise<Disk | undefined> {
  const path = await Deno.makeTempDir({ prefix: "mds-disk-" });
  const options = `size=${kilobytes}k,mode=0755${
    owner ? `,uid=${owner.uid},gid=${owner.gid}` : ""
  }`;
  const isMounted = Deno.build.os === "linux" && Deno.uid() === 0 &&
    findProgram("mount") !== undefined &&
    await run("mount", "-t", "tmpfs", "-o", options, "tmpfs", path);
  if (!isMounted) {
    await Deno.remove(path);
    skip(what, "needs root on Linux with the Debian package mount");
    return undefined;
  }
  return {
    path,
    async remount(mode) {
      if (!await run("mount", "-o", `remount,${mode}`, path)) {
        throw new Error(`Cannot remount ${path} ${mode}`);
      }
    },
    async [Symbol.asyncDispose]() {
      // Lazily, because a server may keep a file open for a moment.
      await run("umount", "-l", path);
      await Deno.remove(path);
    },
  };
}
