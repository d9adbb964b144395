/**
 * Checks the messages of a server before the driver reads them.
 *
 * The driver (postgres.js 3.4) trusts the server. A malformed message can end
 * the process. A length can freeze it, and endless rows fill its memory. The
 * guard reads the same bytes first and refuses all that.
 *
 * @module
 */
import { Buffer } from "node:buffer";
import type { DatabaseConfig } from "../config/config.ts";
import { ServiceError } from "../errors.ts";
import { serverError, type ServerErrorFields } from "./driver.ts";
import { address } from "./errors.ts";
import { type Credentials, Login } from "./login.ts";

/** Bytes of a message's type and length. */
const HEADER_BYTES = 5;

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
 * Maximum length of each message, by its type. The guard refuses all other types,
 * such as those of the extended protocol, which the driver is not made to use.
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

/** Checks the messages of one server on one connection. */
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
  /** Missing bytes of the current message. */
  #missing = 0;
  /** The first part of a header or an inspected message that is split between chunks. */
  #cut: Buffer[] = [];
  #cutBytes = 0;
  #inspected = 0;
  #isAside = false;
  #received = 0;
  #fatal: ServerErrorFields | undefined;

  /**
   * `answer` sends an answer to an authentication request, and `onReady` learns that
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
    return this.#missing === 0 && this.#cutBytes === 0;
  }

  /** Whether the server was ready for a statement. */
  get isReady(): boolean {
    return this.#isReady;
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
   * Counts the statements that the driver sends. It takes any answer for that to
   * the next one.
   */
  checkClient(chunk: Buffer): void {
    const isStatement = chunk[0] === QUERY && chunk.length > HEADER_BYTES &&
      chunk.readUInt32BE(1) === chunk.length - 1;
    if (this.#isReady && isStatement) this.#awaited++;
  }

  /** Allows the server to answer the next statement with COPY. */
  expectCopy(direction: "in" | "out"): void {
    this.#copy = direction;
  }

  /**
   * Checks the next bytes of the server.
   *
   * @throws {ServiceError} `connection_failed` or `connection_lost` when they
   * violate the protocol or its limits. `authentication_failed` when the server
   * asks for an authentication method that is not allowed.
   * @throws {Error} of the server, when it refuses the login.
   */
  check(chunk: Buffer): void {
    let at = 0;
    while (at < chunk.length) {
      if (this.#missing === 0 && this.#cutBytes === 0) {
        at = this.#skipCopyData(chunk, at);
        if (at === chunk.length) return;
      }
      if (this.#missing === 0) {
        const rest = chunk.length - at;
        if (this.#cutBytes + rest < HEADER_BYTES) {
          this.#keep(chunk.subarray(at));
          return;
        }
        let header = chunk;
        let start = at;
        if (this.#cutBytes > 0) {
          const needed = HEADER_BYTES - this.#cutBytes;
          this.#keep(chunk.subarray(at, at + needed));
          header = this.#takeCut();
          start = 0;
          at += needed;
        } else at += HEADER_BYTES;
        const kind = header[start]!;
        const length = header.readUInt32BE(start + 1);
        this.#begin(kind, length);
        this.#missing = length - 4;
        this.#inspected = INSPECTED.has(kind) ? kind : 0;
        this.#isAside = ASIDES.has(kind);
        if (!this.#isAside) this.#received += HEADER_BYTES;
        if (this.#missing === 0 && this.#inspected) {
          this.#inspect(this.#inspected, Buffer.alloc(0), at < chunk.length);
        }
        continue;
      }
      const end = Math.min(at + this.#missing, chunk.length);
      this.#missing -= end - at;
      if (!this.#isAside) this.#received += end - at;
      if (this.#inspected) {
        if (this.#missing > 0 || this.#cutBytes > 0) {
          this.#keep(chunk.subarray(at, end));
        }
        if (this.#missing === 0) {
          const body = this.#cutBytes > 0
            ? this.#takeCut()
            : chunk.subarray(at, end);
          this.#inspect(this.#inspected, body, end < chunk.length);
        }
      }
      at = end;
    }
  }

  /** Checks the COPY messages from `at` on, and returns where others begin. Every copied row takes this path. */
  #skipCopyData(chunk: Buffer, start: number): number {
    let at = start;
    while (
      this.#copy === "sending" && chunk[at] === COPY_DATA &&
      chunk.length - at >= HEADER_BYTES
    ) {
      const length = chunk.readUInt32BE(at + 1);
      this.#begin(COPY_DATA, length);
      const end = Math.min(at + 1 + length, chunk.length);
      this.#missing = at + 1 + length - end;
      at = end;
    }
    if (at > start) {
      this.#received += at - start;
      this.#inspected = 0;
      this.#isAside = false;
    }
    return at;
  }

  /** Copies the bytes, because the next reader owns the memory of the chunk. */
  #keep(bytes: Buffer): void {
    this.#cut.push(Buffer.from(bytes));
    this.#cutBytes += bytes.length;
  }

  #takeCut(): Buffer {
    const bytes = Buffer.concat(this.#cut);
    this.#cut = [];
    this.#cutBytes = 0;
    return bytes;
  }

  /** Checks a message by its type and length. The length does not include the type. */
  #begin(kind: number, length: number): void {
    if (kind === COPY_DATA && this.#copy === "sending") {
      if (length < 4 || length > MAX_COPY_DATA_BYTES) {
        throw this.#violation(`a COPY message of ${length} bytes`);
      }
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

/** Parses the fields of an error. */
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
