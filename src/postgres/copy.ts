/**
 * Copies rows from one server to another by COPY, without decoding them.
 *
 * @module
 */
import { Buffer } from "node:buffer";
import type net from "node:net";
import { type CopyReceiver, HEADER_BYTES } from "./guard.ts";
import type { Session } from "./session.ts";

/** The amount that a copy moved. */
interface Copied {
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
 * @param isFrozen whether the target is an empty heap that this transaction created, so
 * that no other session sees its rows. They then need no visibility checks.
 * @throws {ServiceError} of the side that failed first.
 */
export async function copyRows(
  source: Session,
  select: string,
  target: Session,
  into: string,
  format: "binary" | "text",
  onProgress: CopyProgress,
  isFrozen = false,
): Promise<CopyResult> {
  using _ = watchTogether(source, target);
  try {
    const writer = await target.copyFrom(
      `copy ${into} from stdin (format ${format}, freeze ${isFrozen})`,
    );
    const relay = new Relay(source, target, onProgress);
    // The target can fail first, but cannot succeed first.
    const sourceRows = await Promise.race([
      source.copyTo(
        `copy (${select}) to stdout (format ${format})`,
        relay.receive,
      ),
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

const NOTHING = Buffer.alloc(0);

/**
 * Passes COPY data from the source to the target socket unchanged. A CopyData message
 * is the same in either direction.
 */
class Relay {
  readonly #source: net.Socket;
  readonly #target: net.Socket;
  readonly #onProgress: CopyProgress;
  /** Whether a chunk that was written can be freed. TLS may still use it. */
  readonly #mayRelease: boolean;
  #sent = 0;
  /** Bytes of row data passed so far. */
  bytes = 0;

  constructor(source: Session, target: Session, onProgress: CopyProgress) {
    this.#source = source.socket;
    this.#target = target.socket;
    this.#mayRelease = !source.isEncrypted && !target.isEncrypted;
    this.#onProgress = onProgress;
    this.#target.on("drain", this.#onDrain);
  }

  /** Returns the sockets to their clients. */
  stop(): void {
    this.#target.off("drain", this.#onDrain);
    this.#source.resume();
  }

  #onDrain = () => this.#source.resume();

  receive: CopyReceiver = (messages, begun, isEndOfChunk) => {
    if (messages.length > 0) {
      this.#sent += messages.length;
      const hasRoom = this.#target.write(
        messages,
        // Writes finish in order, so all writes of the chunk are finished with this one.
        isEndOfChunk && this.#mayRelease ? () => release(messages) : undefined,
      );
      if (!hasRoom) this.#source.pause();
    }
    this.bytes = this.#sent - begun * HEADER_BYTES;
    if (!isEndOfChunk) return;
    // One message per row, the first with the header, and one for the trailer.
    const rows = Math.max(0, begun - 1);
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
    try {
      const session = this.#session;
      // The server may compile the query. See `scan`.
      await Promise.all([
        session.query("set local jit to default"),
        session.copyTo(
          `copy (${select}) to stdout (format binary)`,
          this.#receive,
        ),
      ]);
      await session.query("set local jit = off");
      this.rows = Infinity;
      this.onChunk();
    } finally {
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

  #receive: CopyReceiver = (chunk, _, isEndOfChunk) => {
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
