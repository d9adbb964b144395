/** Reads a request's body within bounds of size and time. */
import { ServiceError } from "../errors.ts";

/** Maximum size of a body, where the route sets no smaller one. */
const LIMIT_BYTES = 64 * 1024;

/**
 * Maximum number of bytes that are read of a body that is too large. A client
 * that still writes when the answer comes would see a broken connection.
 */
const DISCARD_BYTES = 1024 * 1024;

/** Seconds for the whole body to arrive. */
const DEADLINE_SECONDS = 10;

/**
 * Returns the body as text.
 *
 * @throws {ServiceError} `body_too_large`, `body_too_slow`.
 */
export async function readBody(
  request: Request,
  limit = LIMIT_BYTES,
): Promise<string> {
  if (!request.body) return "";
  const announced = Number(request.headers.get("content-length") ?? 0);
  if (announced > DISCARD_BYTES) throw tooLarge(limit);
  const reader = request.body.getReader();
  const late = Promise.withResolvers<never>();
  const timer = setTimeout(() =>
    late.reject(
      new ServiceError(
        "body_too_slow",
        `Request body not received within ${DEADLINE_SECONDS} s`,
      ),
    ), DEADLINE_SECONDS * 1000);
  const decoder = new TextDecoder();
  let text = "";
  let size = 0;
  try {
    while (true) {
      const { done, value } = await Promise.race([reader.read(), late.promise]);
      if (done && size > limit) throw tooLarge(limit);
      if (done) return text + decoder.decode();
      size += value.length;
      if (size > DISCARD_BYTES) throw tooLarge(limit);
      if (size <= limit) text += decoder.decode(value, { stream: true });
    }
  } catch (error) {
    reader.cancel().catch(() => {});
    throw error;
  } finally {
    clearTimeout(timer);
  }
}

function tooLarge(limit: number): ServiceError {
  return new ServiceError(
    "body_too_large",
    `The body has more than ${limit} bytes`,
    { remedy: `Send at most ${limit / 1024} KiB.` },
  );
}
