/**
 * Moves rows from one server to another by COPY, binary from end to end: no
 * row is decoded here.
 *
 * @module
 */
import { Buffer } from "node:buffer";
import type { Readable, Writable } from "node:stream";
import type { Session } from "./db.ts";

/** Bytes gathered before they are written. One CopyData message per row takes four times as long. */
const CHUNK_BYTES = 64 * 1024;

/** Bytes that may wait for the target before the source is paused. */
const MOST_BUFFERED_BYTES = 4 * CHUNK_BYTES;

/** What a copy moved. */
export interface Copied {
  readonly rows: number;
  /** Bytes of row data, without the protocol's framing. */
  readonly bytes: number;
}

/** What both servers said of a finished copy. */
export interface CopyResult extends Copied {
  /** Rows that the source sent; `rows` are those that the target took. */
  readonly sourceRows: number;
}

/** Called with the running total after each chunk. */
export type CopyProgress = (moved: Copied) => void;

/**
 * Copies the rows of `select` into `into` (a table with its column list).
 *
 * On failure both sessions are cut, since neither end of a broken COPY can be
 * brought back in order. After success the source session is closed: a COPY
 * that paused its socket can leave the next query hanging.
 *
 * @throws {ServiceError} of the side that failed first.
 */
export async function copyRows(
  source: Session,
  select: string,
  target: Session,
  into: string,
  onProgress: CopyProgress,
): Promise<CopyResult> {
  source.peer = target;
  target.peer = source;
  try {
    const writer = await target.copyFrom(
      `copy ${into} from stdin (format binary)`,
    );
    const reader = await source.copyTo(
      `copy (${select}) to stdout (format binary)`,
    );
    const bytes = await Promise.race([
      pump(reader.stream, writer.stream, onProgress),
      // Neither promise resolves early: they matter here for their rejections.
      reader.done.then(() => new Promise<never>(() => {})),
      writer.done.then(() => new Promise<never>(() => {})),
    ]);
    const sourceRows = await reader.done;
    writer.stream.end();
    const rows = await writer.done;
    await source.close();
    return { rows, bytes, sourceRows };
  } catch (error) {
    source.destroy();
    target.destroy();
    throw error;
  } finally {
    source.peer = undefined;
    target.peer = undefined;
  }
}

/** Gathers the rows of `reader` into chunks for `writer`; resolves with the bytes moved. */
function pump(
  reader: Readable,
  writer: Writable,
  onProgress: CopyProgress,
): Promise<number> {
  const { promise, resolve } = Promise.withResolvers<number>();
  let chunk = Buffer.allocUnsafe(CHUNK_BYTES);
  let filled = 0;
  let bytes = 0;
  // One message a row, the header being glued to the first, and one for the trailer.
  let messages = 0;

  const send = (data: Buffer) => {
    bytes += data.length;
    writer.write(data);
    onProgress({ rows: Math.max(0, messages - 1), bytes });
    if (writer.writableLength > MOST_BUFFERED_BYTES) {
      reader.pause();
      writer.once("drain", () => reader.resume());
    }
  };
  const flush = () => {
    if (filled > 0) send(chunk.subarray(0, filled));
    chunk = Buffer.allocUnsafe(CHUNK_BYTES);
    filled = 0;
  };

  reader.on("data", (row: Buffer) => {
    messages++;
    if (filled + row.length > CHUNK_BYTES) flush();
    if (row.length >= CHUNK_BYTES) send(row);
    else filled += row.copy(chunk, filled);
  });
  reader.on("end", () => {
    flush();
    resolve(bytes);
  });
  return promise;
}
