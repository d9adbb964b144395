/**
 * Checks the messages of a server before the driver reads them.
 *
 * The driver (postgres.js 3.4) trusts the server. A malformed message can end
 * the process. A length can freeze it, and endless rows fill its memory. The
 * guard reads the same bytes first and rejects such messages.
 *
 * @module
 */
import { Buffer } from "node:buffer";
import type { DatabaseConfig } from "../config/config.ts";
import { ServiceError } from "../errors.ts";
import { serverError, type ServerErrorFields } from "./driver.ts";
import { address } from "./address.ts";
import { type Credentials, Login } from "./login.ts";

/** Bytes of a message's type and length. */
export const HEADER_BYTES = 5;

const KIB = 1024;
const MIB = 1024 * KIB;

/** Maximum bytes that a server may send before it is ready for the first statement. */
const MAX_STARTUP_BYTES = 256 * KIB;

/** Maximum memory of one answer, in bytes. COPY data do not count, because they are not kept. */
const MAX_ANSWER_BYTES = 512 * MIB;

/** Estimated memory of a kept message, of its values, and of a described column, in bytes. */
const MESSAGE_BYTES = 128;
const VALUE_BYTES = 64;
const COLUMN_BYTES = 256;

/** Maximum length of the name of a setting, in bytes. PostgreSQL's own are shorter. */
const MAX_NAME_BYTES = 127;

/** Maximum number of settings that a server may report. PostgreSQL reports about 15. */
const MAX_PARAMETERS = 256;

const type = (letter: string) => letter.charCodeAt(0);

const COPY_DATA = type("d");
const DATA_ROW = type("D");
const READY = type("Z");
const QUERY = type("Q");

/** The limit that the server sets for a value. */
const MAX_COPY_DATA_BYTES = 1024 * MIB;

/**
 * Maximum length of each message, by its type. The guard refuses all other types, such as
 * those of the extended protocol, which the driver does not use here.
 */
const MAX_LENGTHS = new Map([
  [COPY_DATA, MAX_COPY_DATA_BYTES],
  [DATA_ROW, 64 * MIB],
  [READY, 5],
  [type("A"), 64 * KIB],
  [type("C"), KIB],
  [type("E"), 8 * MIB],
  [type("G"), 16 * KIB],
  [type("H"), 16 * KIB],
  [type("I"), 4],
  [type("K"), 264],
  [type("N"), 8 * MIB],
  [type("R"), 16 * KIB],
  [type("S"), 64 * KIB],
  [type("T"), MIB],
  [type("c"), 4],
]);

/** Messages that the guard reads whole. The driver loops without end, or throws outside a promise, where they are malformed. */
const INSPECTED = new Set([..."AERSTZ"].map(type));

/** Maximum length of a setting that messages may contain, in characters. */
const MAX_PARAMETER_LENGTH = 100;

/** Messages that may come before the first statement. */
const STARTUP = new Set([..."EKNRSZ"].map(type));

/** Messages outside of an answer. */
const ASIDES = new Set([..."ANS"].map(type));

/** Messages that need no statement. */
const UNASKED = new Set([..."AENS"].map(type));

/** Messages that the driver does not keep. */
const NOT_KEPT = new Set([..."ANSc"].map(type));

const NOTHING = Buffer.alloc(0);

/**
 * Receives the COPY data of a server. `messages` have their headers, and one may
 * continue in the next call. `begun` is the number of messages that have begun. At the
 * end of a chunk, nothing else uses the memory of the chunk.
 */
export type CopyReceiver = (
  messages: Buffer,
  begun: number,
  isEndOfChunk: boolean,
) => void;

/** Checks the messages of one server on one connection, and takes COPY data from the driver. */
export class ServerGuard {
  readonly #config: DatabaseConfig;
  readonly #answer: (bytes: Buffer) => void;
  readonly #onReady: () => void;
  #isReady = false;
  readonly #login: Login;
  #bytes = 0;
  /** Statements that the server has not answered. */
  #awaited = 0;
  /** Number of columns that the answer describes. */
  #columns: number | undefined;
  readonly #parameters = new Map<string, string>();
  /** The COPY that the server may answer with, or is sending. */
  #copy: "none" | "in" | "out" | "sending" = "none";
  #receiveCopy: CopyReceiver = () => {};
  /** Number of COPY messages that have begun. */
  #copied = 0;
  /** Type of the current message, and its missing bytes. */
  #kind = 0;
  #missing = 0;
  /** The first part of a header that is split between chunks. */
  #header: Buffer = NOTHING;
  /** The first parts of an inspected message. */
  #body: Buffer[] = [];
  #received = 0;
  #fatal: ServerErrorFields | undefined;

  /**
   * `answer` sends an answer to an authentication request. `onReady` is called when
   * the server is ready for the first statement.
   */
  constructor(
    config: DatabaseConfig,
    credentials: Credentials,
    answer: (bytes: Buffer) => void,
    onReady: () => void,
  ) {
    this.#config = config;
    this.#login = new Login(
      config,
      credentials,
      (what) => this.#violation(what),
    );
    this.#answer = answer;
    this.#onReady = onReady;
  }

  /** Returns a setting that the server reported. Shortens a forged one. */
  parameter(name: string): string | undefined {
    return this.#parameters.get(name)?.slice(0, MAX_PARAMETER_LENGTH);
  }

  /** Whether the last byte so far ended a message. */
  get isBetweenMessages(): boolean {
    return this.#missing === 0 && this.#header.length === 0;
  }

  /** Bytes of answers received so far. Notices, notifications and settings do not count as progress. */
  get received(): number {
    return this.#received;
  }

  /**
   * The error with which the server ended the session. The driver drops it,
   * because it reports an error only when the server is ready again.
   */
  get fatal(): ServerErrorFields | undefined {
    return this.#fatal;
  }

  /**
   * Counts the statements that the driver sends. The driver assigns any answer to its
   * next statement.
   */
  checkClient(chunk: Buffer): void {
    const isStatement = chunk[0] === QUERY && chunk.length > HEADER_BYTES &&
      chunk.readUInt32BE(1) === chunk.length - 1;
    if (this.#isReady && isStatement) this.#awaited++;
  }

  /** Allows the server to answer the next statement with COPY. `receive` gets its data. */
  expectCopy(receive?: CopyReceiver): void {
    this.#copy = receive ? "out" : "in";
    if (receive) this.#receiveCopy = receive;
  }

  /**
   * Checks the next bytes of the server. Returns the bytes for the driver.
   *
   * @throws {ServiceError} `connection_failed` or `connection_lost` when they
   * violate the protocol or its limits. `authentication_failed` when the server
   * asks for an authentication method that is not allowed.
   * @throws {Error} of the server, when it refuses the login.
   */
  check(chunk: Buffer): readonly Buffer[] {
    const forDriver: Buffer[] = [];
    const pass = (bytes: Buffer, isEndOfChunk = false) => {
      if (this.#kind === COPY_DATA) {
        this.#receiveCopy(bytes, this.#copied, isEndOfChunk);
      } else if (bytes.length === chunk.length) forDriver.push(bytes);
      // A copy, because the receiver of COPY data may free the memory of the chunk.
      else if (bytes.length > 0) forDriver.push(Buffer.from(bytes));
    };
    /** Start of the messages that go to the same reader. */
    let start = 0;
    let at = 0;
    while (at < chunk.length) {
      if (this.#missing === 0) {
        const before = this.#header.length;
        const needed = HEADER_BYTES - before;
        let header = chunk;
        let headerAt = at;
        if (before > 0 || chunk.length - at < needed) {
          const rest = chunk.subarray(at, at + needed);
          header = Buffer.concat([this.#header, rest]);
          headerAt = 0;
        }
        if (header.length - headerAt < HEADER_BYTES) {
          this.#header = header;
          break;
        }
        const kind = header[headerAt]!;
        const length = header.readUInt32BE(headerAt + 1);
        this.#begin(kind, length);
        if ((kind === COPY_DATA) !== (this.#kind === COPY_DATA)) {
          pass(chunk.subarray(start, at));
          start = at;
        }
        this.#kind = kind;
        this.#missing = length - 4;
        at += needed;
        if (before > 0) {
          pass(header);
          this.#header = NOTHING;
          start = at;
        }
        this.#countReceived(HEADER_BYTES);
      }
      const end = Math.min(at + this.#missing, chunk.length);
      this.#missing -= end - at;
      this.#countReceived(end - at);
      if (this.#kind !== COPY_DATA && INSPECTED.has(this.#kind)) {
        // Copies it, because the next reader owns the memory of the chunk.
        this.#body.push(Buffer.from(chunk.subarray(at, end)));
        if (this.#missing === 0) {
          const body = Buffer.concat(this.#body);
          this.#body = [];
          this.#inspect(this.#kind, body, end < chunk.length);
        }
      }
      at = end;
    }
    pass(chunk.subarray(start, at), true);
    return forDriver;
  }

  #countReceived(bytes: number): void {
    if (this.#kind === COPY_DATA || !ASIDES.has(this.#kind)) {
      this.#received += bytes;
    }
  }

  /** Checks a message by its type and length. The length does not include the type. */
  #begin(kind: number, length: number): void {
    if (kind === COPY_DATA && this.#copy === "sending") {
      if (length < 4 || length > MAX_COPY_DATA_BYTES) {
        throw this.#violation(`a COPY message of ${length} bytes`);
      }
      this.#copied++;
      return;
    }
    const name = kind > 0x20 && kind < 0x7f
      ? `"${String.fromCharCode(kind)}"`
      : `0x${kind.toString(16).padStart(2, "0")}`;
    const maximum = MAX_LENGTHS.get(kind);
    if (maximum === undefined || !this.#isReady && !STARTUP.has(kind)) {
      throw this.#violation(
        this.#isReady
          ? `an unexpected message of type ${name}`
          : `an unexpected message of type ${name} at the start of the session`,
      );
    }
    if (length < 4 || length > maximum) {
      throw this.#violation(`a message of type ${name} and ${length} bytes`);
    }
    if (!this.#isReady) {
      this.#bytes += length + 1;
      if (this.#bytes > MAX_STARTUP_BYTES) {
        throw this.#violation(
          `more than ${MAX_STARTUP_BYTES} bytes before the session began`,
        );
      }
    } else {
      if (this.#awaited === 0 && !UNASKED.has(kind)) {
        throw this.#violation("an answer without a statement");
      }
      if (!NOT_KEPT.has(kind)) {
        const values = kind === DATA_ROW ? this.#columns ?? 0 : 0;
        this.#addMemory(length + MESSAGE_BYTES + values * VALUE_BYTES);
      }
    }
    switch (kind) {
      case DATA_ROW:
        if (this.#columns === undefined) {
          throw this.#violation("a row before the description of its columns");
        }
        return;
      case type("K"):
        if (length < 12) throw this.#violation("a malformed key");
        return;
      case type("G"):
        if (this.#copy !== "in") {
          throw this.#violation("a COPY without a request");
        }
        this.#copy = "none";
        return;
      case type("H"):
        if (this.#copy !== "out") {
          throw this.#violation("a COPY without a request");
        }
        this.#copy = "sending";
        this.#copied = 0;
        return;
      case COPY_DATA:
      case type("c"):
        if (this.#copy !== "sending") {
          throw this.#violation("COPY data without a request");
        }
        return;
    }
  }

  /** Adds to the memory that the answer takes. */
  #addMemory(bytes: number): void {
    this.#bytes += bytes;
    if (this.#bytes > MAX_ANSWER_BYTES) {
      throw this.#violation(
        `an answer that takes more than ${MAX_ANSWER_BYTES / MIB} MiB`,
      );
    }
  }

  /** Checks the body of a message. `hasMore` means that the server did not wait for an answer. */
  #inspect(kind: number, body: Buffer, hasMore: boolean): void {
    switch (kind) {
      case type("R"): {
        const answer = this.#login.answer(body, hasMore);
        if (answer) this.#answer(answer);
        return;
      }
      case type("S"): {
        const [name, value, end, ...more] = body.toString("latin1").split("\0");
        const isWhole = end === "" && more.length === 0;
        if (!name || name.length > MAX_NAME_BYTES || !isWhole) {
          throw this.#violation("a malformed setting");
        }
        this.#parameters.set(name, value!);
        if (this.#parameters.size > MAX_PARAMETERS) {
          throw this.#violation(`more than ${MAX_PARAMETERS} settings`);
        }
        return;
      }
      case READY:
        return this.#becomeReady(body);
      case type("A"):
        // Process id, channel and payload. The driver searches for the end of the channel.
        if (body.length < 6 || body.indexOf(0, 4) < 0) {
          throw this.#violation("a malformed notification");
        }
        return;
      case type("T"):
        return this.#inspectColumns(body);
      case type("E"):
        return this.#inspectError(body);
    }
  }

  #becomeReady(body: Buffer): void {
    if (body.length !== 1) throw this.#violation("a malformed ReadyForQuery");
    if (!this.#login.isComplete) {
      throw this.#violation("ReadyForQuery without authentication");
    }
    this.#bytes = 0;
    this.#columns = undefined;
    if (this.#copy === "sending") this.#copy = "none";
    if (this.#isReady) this.#awaited--;
    else {
      this.#isReady = true;
      this.#onReady();
    }
  }

  /** Checks that an error has its code and message, and keeps one that ends the session. Throws one that refuses the login. */
  #inspectError(body: Buffer): void {
    const error = readError(body);
    if (!/^[0-9A-Z]{5}$/.test(error.code) || !error.message) {
      throw this.#violation("a malformed error");
    }
    if (!this.#isReady) throw serverError(error);
    const severity = error.severity ?? error.severity_local;
    if (severity === "FATAL" || severity === "PANIC") this.#fatal ??= error;
  }

  /** Checks the names of columns. The driver searches for the end of each name, even past the message. */
  #inspectColumns(body: Buffer): void {
    const count = body.length < 2 ? -1 : body.readUInt16BE(0);
    let at = 2;
    for (let column = 0; column < count; column++) {
      const end = body.indexOf(0, at);
      at = end < 0 ? Infinity : end + 1 + 18;
      if (at > body.length) break;
    }
    if (count < 0 || at !== body.length) {
      throw this.#violation("a malformed description of columns");
    }
    this.#columns = count;
    this.#addMemory(count * COLUMN_BYTES);
  }

  #violation(what: string): ServiceError {
    const where = address(this.#config);
    return this.#isReady
      ? new ServiceError(
        "connection_lost",
        `Lost the connection to ${where}: the server sent ${what}`,
        { remedy: NOT_POSTGRES },
      )
      : new ServiceError(
        "connection_failed",
        `Cannot connect to ${where}: the server sent ${what}`,
        { remedy: NOT_POSTGRES },
      );
  }
}

/** Fields of an error, by their letter in the protocol. */
const ERROR_FIELDS: Readonly<Record<string, keyof ServerErrorFields>> = {
  S: "severity_local",
  V: "severity",
  C: "code",
  M: "message",
  D: "detail",
  H: "hint",
  W: "where",
  F: "file",
  R: "routine",
};

function readError(body: Buffer): ServerErrorFields {
  const fields: Partial<Record<keyof ServerErrorFields, string>> = {};
  for (const field of body.toString("utf8").split("\0")) {
    const name = ERROR_FIELDS[field.charAt(0)];
    if (name) fields[name] = field.slice(1);
  }
  return { code: "", message: "", ...fields };
}

/** Remedy for a server that violates PostgreSQL's protocol. */
export const NOT_POSTGRES =
  "Check that host and port (*_DB_HOST, *_DB_PORT) lead to a PostgreSQL server and not to another service.";
