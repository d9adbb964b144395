/**
 * The file publisher: events of the warehouse's table as lines of a file.
 *
 * @module
 */
import { asServiceError, ServiceError } from "../errors.ts";
import type { Publisher } from "./publisher.ts";

/** Seconds until the service looks again whether the file can be written. */
const RETRY_SECONDS = 30;

/**
 * A publisher that appends each event to the file, synced to disk. A failure
 * loses nothing: events wait until the file takes them.
 */
export function filePublisher(path: string): Publisher {
  return {
    name: "file",
    target: null,
    label: "the event file",
    delaySeconds: () => RETRY_SECONDS,
    isRemote: false,
    async publish({ payload }) {
      try {
        await appendLine(path, payload);
        return { kind: "delivered" };
      } catch (error) {
        return { kind: "failed", error: asServiceError(error).line };
      }
    },
  };
}

/**
 * Makes sure that events can be appended, before a load begins.
 *
 * @throws {ServiceError} `event_file_unwritable`.
 */
export async function checkEventFile(path: string): Promise<void> {
  await withFile(path, () => Promise.resolve());
}

/**
 * Appends one line and syncs it to disk; what a crash left of the line before
 * is repaired first. Under a lock on the file: to another process a line that
 * is being written looks torn.
 */
export async function appendLine(path: string, line: string): Promise<void> {
  await withFile(path, async (file) => {
    await file.lock(true);
    await repairLastLine(file);
    const end = await file.seek(0, Deno.SeekMode.Current);
    try {
      await writeAll(
        file,
        new TextEncoder().encode(`${line.replaceAll("\n", " ")}\n`),
      );
      await file.sync();
    } catch (error) {
      // What did go in would be read as a torn line, or come twice.
      await file.truncate(end).catch(() => {});
      throw error;
    }
  });
}

async function withFile(
  path: string,
  work: (file: Deno.FsFile) => Promise<void>,
): Promise<void> {
  try {
    using file = await Deno.open(path, {
      read: true,
      write: true,
      create: true,
    });
    await work(file);
  } catch (error) {
    const { name, message } = error as Error;
    throw new ServiceError(
      "event_file_unwritable",
      `Cannot write to the event file ${path}: ${message}`,
      {
        cause: error,
        ...(name === "NotCapable"
          ? {
            remedy:
              "Set the variable in the environment that the task starts from, or run with --allow-write for it.",
          }
          : {}),
      },
    );
  }
}

/**
 * Leaves the file at its end, after a newline. A last line without one is a
 * torn write: it is cut off when it is not whole JSON, since its event is not
 * marked as delivered and comes again.
 */
async function repairLastLine(file: Deno.FsFile): Promise<void> {
  const { size } = await file.stat();
  const tail = await lastLine(file, size);
  if (tail.length > 0 && isJson(tail)) {
    await file.seek(0, Deno.SeekMode.End);
    await writeAll(file, new Uint8Array([NEWLINE]));
  } else {
    await file.truncate(size - tail.length);
    await file.seek(0, Deno.SeekMode.End);
  }
}

const NEWLINE = 10;
const BLOCK = 4096;

/** The bytes after the last newline. */
async function lastLine(file: Deno.FsFile, size: number): Promise<Uint8Array> {
  let tail = new Uint8Array();
  for (let end = size; end > 0;) {
    const start = Math.max(0, end - BLOCK);
    const block = await readBytes(file, start, end - start);
    const newline = block.lastIndexOf(NEWLINE);
    const joined = new Uint8Array([...block.subarray(newline + 1), ...tail]);
    tail = joined;
    if (newline >= 0) break;
    end = start;
  }
  return tail;
}

/** The whole file. */
export async function readAll(file: Deno.FsFile): Promise<Uint8Array> {
  return await readBytes(file, 0, (await file.stat()).size);
}

async function readBytes(
  file: Deno.FsFile,
  start: number,
  length: number,
): Promise<Uint8Array> {
  const bytes = new Uint8Array(length);
  await file.seek(start, Deno.SeekMode.Start);
  for (let read = 0; read < length;) {
    const count = await file.read(bytes.subarray(read));
    if (count === null) break;
    read += count;
  }
  return bytes;
}

async function writeAll(file: Deno.FsFile, bytes: Uint8Array): Promise<void> {
  for (let written = 0; written < bytes.length;) {
    written += await file.write(bytes.subarray(written));
  }
}

function isJson(bytes: Uint8Array): boolean {
  try {
    JSON.parse(new TextDecoder().decode(bytes));
    return true;
  } catch {
    return false;
  }
}
