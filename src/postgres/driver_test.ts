import { assert, assertEquals, assertRejects } from "@std/assert";
import { Buffer } from "node:buffer";
import { once } from "node:events";
import { Duplex, type Readable, type Writable } from "node:stream";
import {
  COLUMNS,
  encode,
  join,
  message,
  READY,
} from "../../tests/support/hostile_server.ts";
import {
  type Client,
  closeNow,
  createClient,
  guardSocket,
  isServerError,
  send,
  sendCopy,
  serverError,
} from "./driver.ts";

/** A row with one text column. */
const row = (text: string) =>
  message(
    "D",
    join(new Uint8Array([0, 1, 0, 0, 0, text.length]), encode(text)),
  );

const complete = (tag: string) => message("C", `${tag}\0`);

const failure = (code: string) => message("E", `SERROR\0C${code}\0Mno\0\0`);

/** The client's end of a connection that has logged in, and whose other end is a script. */
class Wire extends Duplex {
  readonly readyState = "open";
  readonly written: Buffer[] = [];
  /** Answers each write. */
  answer: (bytes: Buffer) => Uint8Array = () => new Uint8Array();

  override _read(): void {}

  override _write(chunk: Buffer, _: string, done: () => void): void {
    this.written.push(chunk);
    const bytes = this.answer(chunk);
    // In a later turn, like the data of a socket.
    if (bytes.length > 0) setTimeout(() => this.receive(bytes));
    done();
  }

  /** Sends bytes of the server. */
  receive(...parts: Uint8Array[]): void {
    if (!this.destroyed) this.push(Buffer.from(join(...parts)));
  }
}

function clientOf(wire: Wire): Client {
  return createClient({ max: 1 }, () => Promise.resolve(wire.pause()));
}

/** A client that has read an answer. */
async function greeted(): Promise<{ wire: Wire; client: Client }> {
  const wire = new Wire();
  const client = clientOf(wire);
  wire.answer = () => join(complete("SET"), READY);
  await send(client, "set a = 1");
  return { wire, client };
}

Deno.test("createClient() dials in a later turn, and fails the statement with the error of the dial", async () => {
  const refusal = new Error("refused");
  let dialed = 0;
  const client = createClient({ max: 1 }, () => {
    dialed++;
    return Promise.reject(refusal);
  });
  const answer = send(client, "set a = 1");
  await Promise.resolve();
  assertEquals(dialed, 0);
  assertEquals(await assertRejects(() => answer), refusal);
  assertEquals(dialed, 1);
  closeNow(client);
});

Deno.test("createClient() sends nothing but its scripts, without a login", async () => {
  const { wire, client } = await greeted();
  assertEquals(wire.written.length, 1);
  const [first] = wire.written;
  assertEquals(first!.toString("latin1", 0, 1), "Q");
  assertEquals(first!.readUInt32BE(1), first!.length - 1);
  assert(first!.includes("set a = 1"));
  closeNow(client);
});

Deno.test("createClient() fails the statement when the connection is closed before the driver listens", async () => {
  const wire = new Wire();
  wire.destroy();
  const client = clientOf(wire);
  await assertRejects(
    () => send(client, "select 1"),
    Error,
    "the server closed the connection",
  );
  closeNow(client);
});

Deno.test("send() and sendCopy() write a short statement in the same turn", async () => {
  const starts = [
    send,
    (client: Client, text: string) => sendCopy<Readable>(client, text).done,
  ];
  for (const start of starts) {
    const { wire, client } = await greeted();
    wire.answer = () => new Uint8Array();
    const before = wire.written.length;
    let isLater = false;
    const later = setImmediate(() => isLater = true);
    const sent = start(client, "select 1");
    // Microtasks only.
    for (let i = 0; i < 20; i++) await undefined;
    assert(!isLater);
    assertEquals(wire.written.length, before + 1);
    assert(wire.written.at(-1)!.includes("select 1"));
    clearImmediate(later);
    closeNow(client);
    await assertRejects(() => sent);
  }
});

Deno.test("send() returns the rows of the last statement that returns rows, and the number of affected rows", async () => {
  const { wire, client } = await greeted();
  const answer = (...parts: Uint8Array[]) => {
    wire.answer = () => join(...parts, READY);
    return send(client, "script");
  };
  const one = join(COLUMNS, row("1"), complete("SELECT 1"));
  const two = join(COLUMNS, row("2"), row("3"), complete("SELECT 2"));
  const none = join(COLUMNS, complete("SELECT 0"));
  const set = complete("SET");
  const values = async (answer: ReturnType<typeof send>) =>
    (await answer).rows.map(({ a }) => a);
  assertEquals(await values(answer(one)), ["1"]);
  assertEquals(await values(answer(one, set, two)), ["2", "3"]);
  assertEquals(await values(answer(one, set, none)), []);
  assertEquals(await values(answer(set, two)), ["2", "3"]);
  assertEquals(await values(answer(set)), []);
  assertEquals((await answer(complete("DELETE 7"))).count, 7);
  assertEquals((await answer(set)).count, 0);
  closeNow(client);
});

Deno.test("send() reports a message that the driver cannot read", async () => {
  const json = message(
    "T",
    join(
      new Uint8Array([0, 1]),
      encode("a\0"),
      new Uint8Array([0, 0, 0, 0, 0, 0, 0, 0, 0, 114, 255, 255]),
      new Uint8Array(6),
    ),
  );
  const malformed = [
    join(COLUMNS, message("D", "\0\x01\0")),
    join(COLUMNS, message("D", "\0")),
    join(json, row("{")),
  ];
  for (const answer of malformed) {
    const { wire, client } = await greeted();
    wire.answer = () => join(answer, READY);
    await assertRejects(
      () => send(client, "select 1"),
      Error,
      "the server sent a malformed message",
    );
    closeNow(client);
  }
});

Deno.test("sendCopy() returns the stream, and the row count after the last row", async () => {
  const { wire, client } = await greeted();
  wire.answer = () => message("H", "\0\0\0");
  const copy = sendCopy<Readable>(client, "copy t to stdout");
  const stream = await copy.stream;
  const ended = once(stream, "end");
  const read: Buffer[] = [];
  stream.on("data", (data) => read.push(data));
  wire.receive(message("d", "row"), message("c"), complete("COPY 1"), READY);
  await ended;
  assertEquals(Buffer.concat(read).toString(), "row");
  assertEquals(await copy.done, 1);

  wire.answer = () => message("G", "\0\0\0");
  const back = sendCopy<Writable>(client, "copy t from stdin");
  const writer = await back.stream;
  wire.answer = () => new Uint8Array();
  writer.write(Buffer.from("row"));
  wire.answer = () => join(complete("COPY 1"), READY);
  writer.end();
  assertEquals(await back.done, 1);
  // A server ignores the message outside of a COPY. It would end the next one.
  assertEquals(wire.written.at(-1)!.subarray(0, 1).toString(), "f");
  closeNow(client);
});

Deno.test("sendCopy() reports an error after the last row", async () => {
  const { wire, client } = await greeted();
  wire.answer = () => message("H", "\0\0\0");
  const { stream, done } = sendCopy<Readable>(client, "copy t to stdout");
  (await stream).resume();
  wire.receive(message("d", "row"), message("c"), failure("22012"), READY);
  const error = await assertRejects(() => done);
  assert(isServerError(error) && error.code === "22012");
  closeNow(client);
});

Deno.test("sendCopy() fails when the server answers with another result", async () => {
  const { wire, client } = await greeted();
  wire.answer = () => join(complete("SELECT 0"), READY);
  const { stream } = sendCopy<Readable>(client, "copy t to stdout");
  await assertRejects(() => stream, Error, "without a COPY");
  closeNow(client);
});

Deno.test("guardSocket() reads before the driver, takes bytes from it, and closes the socket with its error", async () => {
  const { wire, client } = await greeted();
  const refusal = new Error("refused");
  guardSocket(wire, {
    checkClient: () => {},
    check(chunk) {
      if (chunk.includes("bad")) throw refusal;
      if (!chunk.includes("taken")) return [chunk];
      const rest = Buffer.from(join(complete("SELECT 0"), READY));
      return [rest.subarray(0, 3), rest.subarray(3)];
    },
  });
  wire.answer = () => join(complete("SET"), READY);
  await send(client, "set a = 1");
  wire.answer = () => join(COLUMNS, row("taken"));
  assertEquals((await send(client, "select 'taken'")).rows.length, 0);
  wire.answer = () => join(COLUMNS, row("bad"), complete("SELECT 1"), READY);
  const error = await assertRejects(() => send(client, "select 'bad'"));
  assertEquals(error, refusal);
  assert(wire.destroyed);
});

Deno.test("serverError() returns an error like those of the driver", async () => {
  const { wire, client } = await greeted();
  wire.answer = () => join(failure("22012"), READY);
  const error = await assertRejects(() => send(client, "select 1 / 0"));
  const own = serverError({ code: "22012", message: "no" });
  for (const known of [error, own]) {
    assert(isServerError(known));
    assertEquals([known.code, known.message], ["22012", "no"]);
  }
  assert(!isServerError(Object.assign(new Error("no"), { code: "22012" })));
  closeNow(client);
});
