import { assertEquals, assertRejects } from "@std/assert";
import { ServiceError } from "../errors.ts";
import { BodyReader, MAX_OPEN_BODIES } from "./body_limits.ts";

/** Waits until all pending microtasks and events are done. */
async function settle(): Promise<void> {
  for (let i = 0; i < 50; i++) await Promise.resolve();
}

function request(signal: AbortSignal) {
  const body = new TransformStream<Uint8Array, Uint8Array>();
  const writer = body.writable.getWriter();
  return {
    request: new Request("http://localhost/", {
      method: "POST",
      body: body.readable,
      signal,
    }),
    finish: async () => {
      await writer.write(new TextEncoder().encode("ok"));
      await writer.close();
    },
  };
}

Deno.test("BodyReader.read() receives a limited number of bodies at the same time", async () => {
  const bodies = new BodyReader(1024);
  const clients = new AbortController();
  const requests = Array.from(
    { length: MAX_OPEN_BODIES * 3 },
    () => request(clients.signal),
  );
  const texts = requests.map(({ request }) => bodies.read(request));
  for (const text of texts) text.catch(() => {});
  const countOpen = () =>
    requests.filter(({ request }) => request.body!.locked).length;
  await settle();
  assertEquals(countOpen(), MAX_OPEN_BODIES);
  // Each finished body makes room for another one.
  for (const { finish } of requests.slice(0, 10)) await finish();
  assertEquals(
    await Promise.all(texts.slice(0, 10)),
    Array.from({ length: 10 }, () => "ok"),
  );
  await settle();
  assertEquals(countOpen(), MAX_OPEN_BODIES + 10);
  // Closed connections make room, too, also those of waiting clients.
  clients.abort();
  await Promise.allSettled(texts);
  const last = request(new AbortController().signal);
  const text = bodies.read(last.request);
  await last.finish();
  assertEquals(await text, "ok");
});

Deno.test("BodyReader.read() refuses a body that is too large", async () => {
  const bodies = new BodyReader(1024);
  const post = (size: number) =>
    bodies.read(
      new Request("http://localhost/", {
        method: "POST",
        body: "x".repeat(size),
      }),
    );
  assertEquals((await post(1024)).length, 1024);
  const error = await assertRejects(() => post(1025), ServiceError);
  assertEquals(error.code, "body_too_large");
});

Deno.test("BodyReader.read() stops reading an endless body", async () => {
  const chunk = new Uint8Array(64 * 1024);
  let sent = 0;
  const body = new ReadableStream({
    pull(controller) {
      sent += chunk.length;
      controller.enqueue(chunk);
      if (sent > 16 * 1024 * 1024) controller.close();
    },
  });
  const request = new Request("http://localhost/", { method: "POST", body });
  const error = await assertRejects(
    () => new BodyReader(1024).read(request),
    ServiceError,
  );
  assertEquals(error.code, "body_too_large");
  assertEquals(sent < 2 * 1024 * 1024, true, `${sent} bytes`);
});
