/**
 * Copies rows from one server to another by COPY, without decoding them.
 *
 * @module
 */
import { Buffer } from "node:buffer";
import type net from "node:net";
import { takeData, type TakenData } from "./driver.ts";
import type { Session } from "./session.ts";

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
 * COPY is usable.
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
  using _ = watchTogether(source, target);
  try {
    const writer = await target.copyFrom(
      `copy ${into} from stdin (format ${format})`,
    );
    const relay = new Relay(source, target, onProgress);
    const { done } = await source.copyTo(
      `copy (${select}) to stdout (format ${format})`,
    );
    // The target can fail first, but cannot succeed first.
    const sourceRows = await Promise.race([
      done,
      writer.done.then(() => new Promise<never>(() => {})),
    ]);
    relay.stop();
    using _urgent = target.sendAtOnce();
    writer.stream.end();
    return { rows: await writer.done, bytes: relay.bytes, sourceRows };
  } catch (error) {
    source.destroy();
    target.destroy();
    throw error;
  }
}

/** Lets each session wait for the other one without a stall, until the result is disposed of. */
export function watchTogether(one: Session, other: Session): Disposable {
  one.watch.peer = other.watch;
  other.watch.peer = one.watch;
  return {
    [Symbol.dispose]() {
      one.watch.peer = other.watch.peer = undefined;
    },
  };
}

/** First byte of a message with COPY data, in either direction. */
const COPY_DATA = "d".charCodeAt(0);

/** Bytes of a message's type and length. */
const HEADER_BYTES = 5;

const NOTHING = Buffer.alloc(0);

/**
 * Takes the COPY data that a server sends. All other messages go to the driver as
 * usual.
 *
 * Create it before the server sends.
 */
class CopyDataTap {
  readonly #taken: TakenData;
  readonly #onCopyData: (messages: Buffer, isEndOfChunk: boolean) => void;
  #messages = 0;
  /** Missing bytes of the current message, and whether they are COPY data. */
  #missing = 0;
  #isCopyData = false;
  /** The first part of a header that is split between two chunks. */
  #header: Buffer = NOTHING;

  /** `onCopyData` gets whole chunks of messages with their headers. A message may continue in the next chunk. */
  constructor(
    socket: net.Socket,
    onCopyData: (messages: Buffer, isEndOfChunk: boolean) => void,
  ) {
    this.#onCopyData = onCopyData;
    this.#taken = takeData(socket, this.#onData);
  }

  /** Number of messages with COPY data that have begun. */
  get messages(): number {
    return this.#messages;
  }

  /** Returns the data of the socket to the driver. */
  stop(): void {
    this.#taken.giveBack();
  }

  #onData = (chunk: Buffer) => {
    /** Start of the messages that go to the same receiver. */
    let start = 0;
    let at = 0;
    while (at < chunk.length) {
      if (this.#missing === 0) {
        const before = this.#header.length;
        const needed = HEADER_BYTES - before;
        let header = chunk;
        let headerAt = at;
        if (before > 0 || chunk.length - at < needed) {
          header = Buffer.concat([
            this.#header,
            chunk.subarray(at, at + needed),
          ]);
          headerAt = 0;
        }
        if (header.length - headerAt < HEADER_BYTES) {
          this.#header = header;
          break;
        }
        const isCopyData = header[headerAt] === COPY_DATA;
        if (isCopyData !== this.#isCopyData) {
          this.#send(chunk.subarray(start, at), false);
          start = at;
          this.#isCopyData = isCopyData;
        }
        this.#missing = header.readUInt32BE(headerAt + 1) - 4;
        if (isCopyData) this.#messages++;
        at += needed;
        if (before > 0) {
          this.#send(header, false);
          this.#header = NOTHING;
          start = at;
        }
      }
      const end = Math.min(at + this.#missing, chunk.length);
      this.#missing -= end - at;
      at = end;
    }
    this.#send(chunk.subarray(start, at), true);
  };

  #send(messages: Buffer, isEndOfChunk: boolean): void {
    if (this.#isCopyData) this.#onCopyData(messages, isEndOfChunk);
    // A copy, because the receiver of COPY data may free the memory of the chunk.
    else if (messages.length > 0) this.#taken.pass(Buffer.from(messages));
  }
}

/**
 * Passes COPY data from the source socket to the target socket unchanged. A
 * CopyData message is the same in either direction.
 *
 * Create it when the target is ready to receive, and before the source sends.
 */
class Relay {
  readonly #source: net.Socket;
  readonly #target: net.Socket;
  readonly #tap: CopyDataTap;
  readonly #onProgress: CopyProgress;
  /** Whether a chunk that was written is no longer needed. TLS may still use it. */
  readonly #mayRelease: boolean;
  #bytes = 0;

  constructor(source: Session, target: Session, onProgress: CopyProgress) {
    this.#source = source.socket;
    this.#target = target.socket;
    this.#mayRelease = !source.isEncrypted && !target.isEncrypted;
    this.#onProgress = onProgress;
    this.#tap = new CopyDataTap(this.#source, this.#send);
    this.#target.on("drain", this.#onDrain);
  }

  /** Bytes of row data passed so far. */
  get bytes(): number {
    return this.#bytes - this.#tap.messages * HEADER_BYTES;
  }

  /** Returns the sockets to their clients. */
  stop(): void {
    this.#target.off("drain", this.#onDrain);
    this.#tap.stop();
    this.#source.resume();
  }

  #onDrain = () => this.#source.resume();

  #send = (messages: Buffer, isEndOfChunk: boolean) => {
    if (messages.length > 0) {
      this.#bytes += messages.length;
      const hasRoom = this.#target.write(
        messages,
        // Writes finish in order, so all writes of the chunk are finished with this one.
        isEndOfChunk && this.#mayRelease ? () => release(messages) : undefined,
      );
      if (!hasRoom) this.#source.pause();
    }
    if (!isEndOfChunk) return;
    // One message per row, the first with the header, and one for the trailer.
    const rows = Math.max(0, this.#tap.messages - 1);
    this.#onProgress({ rows, bytes: this.bytes });
  };
}

/** Minimum bytes of a buffer with separate memory. Smaller buffers share a pool. */
const OWN_MEMORY_BYTES = 16 * 1024;

/** Frees the memory of a chunk that is no longer used. The garbage collector would keep about 60 MB of chunks. */
function release(chunk: Buffer): void {
  const memory = chunk.buffer as ArrayBuffer;
  if (memory.byteLength >= OWN_MEMORY_BYTES) memory.transfer(0);
}

/** Bytes before the first row of binary COPY data: signature, flags, and length of the extension. */
const SIGNATURE_BYTES = 19;

/** Bytes of the message after the last row. */
const TRAILER_BYTES = HEADER_BYTES + 2;

/** Receives a row of a {@linkcode RowReader}. The bytes of its first value begin at `at`. */
type OnRow = (bytes: DataView, at: number) => void;

/**
 * Reads rows of values that all have the same length, without decoding them. The
 * session is usable afterwards.
 */
export class RowReader {
  /** Number of rows read so far. Infinite at the end. */
  rows = 0;
  /** Is called after each chunk of rows, and at the end. */
  onChunk: () => void = () => {};
  readonly #session: Session;
  readonly #messageBytes: number;
  readonly #onRow: OnRow;
  #isHeld = false;
  /** The first part of a message that is split between two chunks. */
  #cut: Buffer = NOTHING;

  /** @param lengths bytes of each value. */
  constructor(session: Session, lengths: readonly number[], onRow: OnRow) {
    this.#session = session;
    this.#messageBytes = HEADER_BYTES + 2 +
      lengths.reduce((sum, length) => sum + 4 + length, 0);
    this.#onRow = onRow;
  }

  /**
   * Reads all rows of `select`.
   *
   * @throws {ServiceError} of the server.
   */
  async read(select: string): Promise<void> {
    const tap = new CopyDataTap(this.#session.socket, this.#onCopyData);
    try {
      const session = this.#session;
      // The server may compile the query. See `scan`.
      const [, { done }] = await Promise.all([
        session.query("set local jit to default"),
        session.copyTo(`copy (${select}) to stdout (format binary)`),
      ]);
      await done;
      await session.query("set local jit = off");
      this.rows = Infinity;
      this.onChunk();
    } finally {
      tap.stop();
      this.hold(false);
    }
  }

  /** Lets the server wait, or no longer. */
  hold(isHeld: boolean): void {
    if (isHeld === this.#isHeld) return;
    this.#isHeld = isHeld;
    if (isHeld) this.#session.socket.pause();
    else this.#session.socket.resume();
  }

  #onCopyData = (chunk: Buffer, isEndOfChunk: boolean) => {
    let at = 0;
    if (this.#cut.length > 0) {
      const first = Buffer.concat([
        this.#cut,
        chunk.subarray(0, this.#messageBytes + SIGNATURE_BYTES),
      ]);
      const read = this.#readRows(first, 1);
      at = read > 0 ? read - this.#cut.length : chunk.length;
      this.#cut = read > 0 ? NOTHING : first;
    }
    at += this.#readRows(chunk.subarray(at), Infinity);
    if (at < chunk.length) this.#cut = Buffer.from(chunk.subarray(at));
    if (isEndOfChunk && !this.#session.isEncrypted) release(chunk);
    this.onChunk();
  };

  /** Reads whole messages, at most `max`. Returns their length in bytes. */
  #readRows(bytes: Buffer, max: number): number {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    const end = bytes.length;
    let at = 0;
    for (let i = 0; i < max && end - at >= HEADER_BYTES; i++) {
      const length = view.getUint32(at + 1) + 1;
      const extra = length - this.#messageBytes;
      // The signature comes with the first row, or with the trailer where there is none.
      const isRow = extra === 0 || extra === SIGNATURE_BYTES;
      const isTrailer = length === TRAILER_BYTES ||
        length === TRAILER_BYTES + SIGNATURE_BYTES;
      if (!isRow && !isTrailer) {
        throw new Error(`the server sent a row of ${length} bytes`);
      }
      if (end - at < length) break;
      if (isRow) {
        this.#onRow(view, at + extra + HEADER_BYTES + 2 + 4);
        this.rows++;
      }
      at += length;
    }
    return at;
  }
}
