/** Reads a request's body within bounds of size and time. */
import { ServiceError } from "../errors.ts";

const LIMIT_BYTES = 64 * 1024;

/**
 * What is read of a body that is too large, and thrown away: a client that
 * still writes when the answer comes would see a broken connection instead.
 */
const DISCARD_BYTES = 1024 * 1024;

/** Seconds for the whole body to arrive. */
const DEADLINE_SECONDS = 10;

/**
 * The body as text.
 *
 * @throws {ServiceError} `body_too_large`, `body_too_slow`.
 */
export async function readBody(request: Request): Promise<string> {
  if (!request.body) return "";
  const announced = Number(request.headers.get("content-length") ?? 0);
  if (announced > DISCARD_BYTES) throw tooLarge();
  const reader = request.body.getReader();
  const late = Promise.withResolvers<never>();
  const timer = setTimeout(() =>
    late.reject(
      new ServiceError(
        "body_too_slow",
        `The body was not there within ${DEADLINE_SECONDS} s`,
      ),
    ), DEADLINE_SECONDS * 1000);
  const decoder = new TextDecoder();
  let text = "";
  let size = 0;
  try {
    while (true) {
      const { done, value } = await Promise.race([reader.read(), late.promise]);
      if (done && size > LIMIT_BYTES) throw tooLarge();
      if (done) return text + decoder.decode();
      size += value.length;
      if (size > DISCARD_BYTES) throw tooLarge();
      if (size <= LIMIT_BYTES) text += decoder.decode(value, { stream: true });
    }
  } catch (error) {
    reader.cancel().catch(() => {});
    throw error;
  } finally {
    clearTimeout(timer);
  }
}

function tooLarge(): ServiceError {
  return new ServiceError(
    "body_too_large",
    `The body has more than ${LIMIT_BYTES} bytes`,
  );
}
