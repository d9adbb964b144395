/** Reads the bodies of requests within limits of size, time and number. */
import { abortable } from "@std/async/abortable";
import { ServiceError } from "../errors.ts";

/**
 * Maximum number of bytes to read from a body that is too large. A client that is
 * still writing when the response arrives would get a connection error.
 */
const DISCARD_BYTES = 1024 * 1024;

/** Seconds within which the whole body must arrive. */
const DEADLINE_SECONDS = 10;

/** Maximum number of bodies that one reader receives at the same time. */
export const MAX_OPEN_BODIES = 64;

/** Reads bodies up to a size. Bodies beyond `MAX_OPEN_BODIES` wait for their turn. */
export class BodyReader {
  readonly #maxBytes: number;
  readonly #waiting = new Set<() => void>();
  #open = 0;

  constructor(maxBytes: number) {
    this.#maxBytes = maxBytes;
  }

  /**
   * Returns the body as text.
   *
   * @throws {ServiceError} `body_too_large`, `body_too_slow`.
   */
  async read(request: Request): Promise<string> {
    if (!request.body) return "";
    const announced = Number(request.headers.get("content-length") ?? 0);
    if (announced > DISCARD_BYTES) throw this.#tooLarge();
    const deadline = new AbortController();
    const timer = setTimeout(() =>
      deadline.abort(
        new ServiceError(
          "body_too_slow",
          `Request body not received within ${DEADLINE_SECONDS} s`,
        ),
      ), DEADLINE_SECONDS * 1000);
    const signal = AbortSignal.any([request.signal, deadline.signal]);
    try {
      await this.#enter(signal);
      try {
        return await this.#collect(request.body, signal);
      } finally {
        this.#leave();
      }
    } finally {
      clearTimeout(timer);
    }
  }

  /** Waits until fewer than `MAX_OPEN_BODIES` are open, or until the signal. */
  async #enter(signal: AbortSignal): Promise<void> {
    if (this.#open < MAX_OPEN_BODIES) {
      this.#open++;
      return;
    }
    const turn = Promise.withResolvers<void>();
    this.#waiting.add(turn.resolve);
    try {
      await abortable(turn.promise, signal);
    } catch (error) {
      // A turn that was granted at the same moment goes to the next body.
      if (!this.#waiting.delete(turn.resolve)) this.#leave();
      throw error;
    }
  }

  /** Passes the turn to the body that has waited longest. */
  #leave(): void {
    const [next] = this.#waiting;
    if (!next) {
      this.#open--;
      return;
    }
    this.#waiting.delete(next);
    next();
  }

  async #collect(
    body: ReadableStream<Uint8Array>,
    signal: AbortSignal,
  ): Promise<string> {
    const reader = body.getReader();
    const decoder = new TextDecoder();
    let text = "";
    let size = 0;
    try {
      while (true) {
        const { done, value } = await abortable(reader.read(), signal);
        if (done && size > this.#maxBytes) throw this.#tooLarge();
        if (done) return text + decoder.decode();
        size += value.length;
        if (size > DISCARD_BYTES) throw this.#tooLarge();
        if (size <= this.#maxBytes) {
          text += decoder.decode(value, { stream: true });
        }
      }
    } catch (error) {
      reader.cancel().catch(() => {});
      throw error;
    }
  }

  #tooLarge(): ServiceError {
    return new ServiceError(
      "body_too_large",
      `The body is larger than ${this.#maxBytes / 1024} KiB`,
      { remedy: `Send at most ${this.#maxBytes / 1024} KiB.` },
    );
  }
}
