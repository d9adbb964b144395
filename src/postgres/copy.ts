/**
 * Copies rows from one server to another by COPY, without decoding them.
 *
 * @module
 */
import { Buffer } from "node:buffer";
import type net from "node:net";
import type { Readable, Writable } from "node:stream";
import { takeData, type TakenData } from "./driver.ts";
import type { Session } from "./session.ts";

/** Size of a chunk, in bytes. One CopyData message per row takes four times as long. */
const CHUNK_BYTES = 64 * 1024;

/** Maximum bytes that wait for the target before the source pauses. */
const MAX_BUFFERED_BYTES = 4 * CHUNK_BYTES;

/** The amount that a copy moved. */
export interface Copied {
  readonly rows: number;
  /** Bytes of row data, without the framing of the protocol. */
  readonly bytes: number;
}

/** The result of a finished copy, as both servers report it. */
interface CopyResult extends Copied {
  /** Number of rows that the source sent. `rows` is the number that the target received. */
  readonly sourceRows: number;
}

/** Receives the running total after each chunk. */
type CopyProgress = (moved: Copied) => void;

/**
 * Copies the rows of `select` into `into` (a table with its column list).
 *
 * After a failure both sessions are destroyed, because neither end of a broken
 * COPY is usable. After a success the source session closes: a COPY that paused
 * its socket can block the next query.
 *
 * @throws {ServiceError} of the side that failed first.
 */
export async function copyRows(
  source: Session,
  select: string,
  target: Session,
  into: string,
  format: "binary" | "text",
  onProgress: CopyProgress,
): Promise<CopyResult> {
  source.watch.peer = target.watch;
  target.watch.peer = source.watch;
  try {
    const writer = await target.copyFrom(
      `copy ${into} from stdin (format ${format})`,
    );
    const [from, to] = [source.plainSocket, target.plainSocket];
    const relay = from && to ? new Relay(from, to, onProgress) : undefined;
    const reader = await source.copyTo(
      `copy (${select}) to stdout (format ${format})`,
    );
    const pumped = relay
      ? undefined
      : pump(reader.stream, writer.stream, onProgress);
    // The target can fail first, but cannot succeed first.
    const sourceRows = await Promise.race([
      reader.done,
      writer.done.then(() => new Promise<never>(() => {})),
    ]);
    const bytes = relay?.bytes ?? await pumped!;
    relay?.stop();
    writer.stream.end();
    const rows = await writer.done;
    void source.close();
    return { rows, bytes, sourceRows };
  } catch (error) {
    source.destroy();
    target.destroy();
    throw error;
  } finally {
    source.watch.peer = undefined;
    target.watch.peer = undefined;
  }
}

/** First byte of a message with COPY data, in either direction. */
const COPY_DATA = "d".charCodeAt(0);

/** Bytes of a message's type and length. */
const HEADER_BYTES = 5;

/**
 * Passes COPY data from the source socket to the target socket unchanged. A
 * CopyData message is the same in either direction. All other messages go to the
 * driver as usual.
 *
 * Create it when the target is ready to receive, and before the source sends.
 */
class Relay {
  readonly #source: net.Socket;
  readonly #target: net.Socket;
  readonly #taken: TakenData;
  readonly #onProgress: CopyProgress;
  #bytes = 0;
  #messages = 0;
  /** Missing bytes of the current message, and whether they are COPY data. */
  #missing = 0;
  #isCopyData = false;
  /** The first part of a header that is split between two chunks. */
  #header: Buffer | undefined;

  constructor(
    source: net.Socket,
    target: net.Socket,
    onProgress: CopyProgress,
  ) {
    this.#source = source;
    this.#target = target;
    this.#onProgress = onProgress;
    this.#taken = takeData(source, this.#onData);
    target.on("drain", this.#onDrain);
  }

  /** Bytes of row data passed so far. */
  get bytes(): number {
    return this.#bytes - this.#messages * HEADER_BYTES;
  }

  /** Returns the sockets to their clients. */
  stop(): void {
    this.#target.off("drain", this.#onDrain);
    this.#taken.giveBack();
  }

  #onDrain = () => this.#source.resume();

  #onData = (chunk: Buffer) => {
    const data = this.#header ? Buffer.concat([this.#header, chunk]) : chunk;
    this.#header = undefined;
    /** Start of the messages that go to the same receiver. */
    let start = 0;
    let at = 0;
    while (at < data.length) {
      if (this.#missing === 0) {
        if (data.length - at < HEADER_BYTES) {
          this.#header = Buffer.from(data.subarray(at));
          break;
        }
        const isCopyData = data[at] === COPY_DATA;
        if (isCopyData !== this.#isCopyData) {
          this.#send(data.subarray(start, at), false);
          start = at;
          this.#isCopyData = isCopyData;
        }
        this.#missing = data.readUInt32BE(at + 1) + 1;
        if (isCopyData) this.#messages++;
      }
      const end = Math.min(at + this.#missing, data.length);
      this.#missing -= end - at;
      at = end;
    }
    this.#send(data.subarray(start, at), true);
    // One message per row, the first with the header, and one for the trailer.
    const rows = Math.max(0, this.#messages - 1);
    this.#onProgress({ rows, bytes: this.bytes });
  };

  #send(messages: Buffer, isEndOfChunk: boolean): void {
    if (messages.length === 0) return;
    if (this.#isCopyData) {
      this.#bytes += messages.length;
      const hasRoom = this.#target.write(
        messages,
        // Writes finish in order, so all writes of the chunk are finished with this one.
        isEndOfChunk ? () => release(messages) : undefined,
      );
      if (!hasRoom) this.#source.pause();
    } else {
      // A copy, because `release` may free the memory of the chunk.
      this.#taken.pass(Buffer.from(messages));
    }
  }
}

/** Minimum bytes of a buffer with separate memory. Smaller buffers share a pool. */
const OWN_MEMORY_BYTES = 16 * 1024;

/** Frees the memory of a written chunk. The garbage collector would keep about 60 MB of chunks. */
function release(chunk: Buffer): void {
  const memory = chunk.buffer as ArrayBuffer;
  if (memory.byteLength >= OWN_MEMORY_BYTES) memory.transfer(0);
}

/** Gathers the rows of `reader` into chunks for `writer`. Resolves with the number of bytes moved. */
function pump(
  reader: Readable,
  writer: Writable,
  onProgress: CopyProgress,
): Promise<number> {
  const { promise, resolve } = Promise.withResolvers<number>();
  let chunk = Buffer.allocUnsafe(CHUNK_BYTES);
  let filled = 0;
  let bytes = 0;
  // One message per row, the first with the header, and one for the trailer.
  let messages = 0;

  const send = (data: Buffer) => {
    bytes += data.length;
    writer.write(data);
    onProgress({ rows: Math.max(0, messages - 1), bytes });
    if (writer.writableLength > MAX_BUFFERED_BYTES) {
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
