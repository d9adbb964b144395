/**
 * The file publisher: events of the warehouse's table as lines of a file.
 *
 * @module
 */
import type { Pool } from "../db.ts";
import { ServiceError } from "../errors.ts";

/** Events taken from the table at a time. */
const BATCH = 100;

/**
 * Appends every event that the file does not have yet, in order, each synced
 * to disk before it is marked as delivered: at least once, across crashes.
 *
 * The caller holds the service's lock, so that two processes on one host do
 * not interleave.
 *
 * @returns the number of events appended.
 * @throws {ServiceError} `event_file_unwritable`; nothing is lost, the next call goes on from there.
 */
export async function publishToFile(pool: Pool, path: string): Promise<number> {
  let published = 0;
  while (true) {
    const events = await pool.query(
      `select seq::text, payload::text from marketing_data_service.event
       where file_delivered_at is null order by event.seq limit ${BATCH}`,
    );
    for (const { seq, payload } of events) {
      await appendLine(path, payload);
      await pool.query(
        `update marketing_data_service.event set file_delivered_at = clock_timestamp()
         where seq = $1::text::bigint`,
        [seq],
      );
      published++;
    }
    if (events.length < BATCH) return published;
  }
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
    await writeAll(
      file,
      new TextEncoder().encode(`${line.replaceAll("\n", " ")}\n`),
    );
    await file.sync();
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
