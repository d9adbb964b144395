import { assert, assertEquals, assertMatch, assertThrows } from "@std/assert";
import { Buffer } from "node:buffer";
import { parseConfig } from "../config/config.ts";
import type { AuthMethod } from "../config/parsers.ts";
import { ServerGuard } from "./guard.ts";

const { dwh } = parseConfig({}, () => "");

function message(type: string, body: string): Buffer {
  const bytes = Buffer.from(body, "latin1");
  const header = Buffer.alloc(5);
  header.write(type);
  header.writeUInt32BE(bytes.length + 4, 1);
  return Buffer.concat([header, bytes]);
}

function authentication(request: number, body = ""): Buffer {
  return message("R", `\0\0\0${String.fromCharCode(request)}${body}`);
}

const SASL = authentication(10, "SCRAM-SHA-256\0\0");

/** Returns a guard, and the answers that it sends to authentication requests. */
function guardOf(
  method: AuthMethod,
  credentials = { password: "", prepared: "" },
): { guard: ServerGuard; answers: string[] } {
  const answers: string[] = [];
  const guard = new ServerGuard(
    { ...dwh, requireAuth: new Set([method]) },
    credentials,
    (bytes) => answers.push(bytes.toString("latin1")),
    () => {},
  );
  return { guard, answers };
}

function readyGuard(): ServerGuard {
  const { guard } = guardOf("none");
  guard.check(Buffer.concat([authentication(0), message("Z", "I")]));
  guard.checkClient(message("Q", "select 1\0"));
  return guard;
}

Deno.test("ServerGuard.received counts answers, but not notices, settings and notifications", () => {
  const guard = readyGuard();
  const before = guard.received;
  const asides = Buffer.concat([
    message("N", "SNOTICE\0Mendless\0\0"),
    message("S", "TimeZone\0UTC\0"),
    message("A", "\0\0\0\x01channel\0payload\0"),
  ]);
  guard.check(asides);
  for (const byte of asides) guard.check(Buffer.from([byte]));
  assertEquals(guard.received, before);
  guard.check(message("C", "SELECT 1\0"));
  assert(guard.received > before);
});

Deno.test("ServerGuard.fatal is only the error that ends a session", () => {
  const guard = readyGuard();
  guard.check(message("E", "SERROR\0VERROR\0C22012\0Mdivision by zero\0\0"));
  assertEquals(guard.fatal, undefined);
  guard.check(
    message("E", "SFATAL\0VFATAL\0C57P01\0Mterminating connection\0\0"),
  );
  assertEquals(guard.fatal?.code, "57P01");
  assertEquals(guard.fatal?.message, "terminating connection");
});

Deno.test("ServerGuard refuses a SCRAM challenge that does not extend the client's nonce", () => {
  const challenge = (change: (nonce: string) => string) => {
    const { guard, answers } = guardOf("scram-sha-256");
    guard.check(SASL);
    const [, nonce] = /^p....SCRAM-SHA-256\0\0\0\0 n,,n=,r=(.{24})$/s
      .exec(answers[0]!)!;
    guard.check(authentication(11, `r=${change(nonce!)},s=c2FsdA==,i=4096`));
    return answers[1]!;
  };
  assertMatch(
    challenge((nonce) => `${nonce}Theirs`),
    /^p....c=biws,r=.{24}Theirs,p=[A-Za-z0-9+\/]{43}=$/s,
  );
  for (
    const change of [
      (nonce: string) => nonce,
      () => "theirs",
      (nonce: string) => nonce.slice(1),
    ]
  ) {
    assertThrows(() => challenge(change), Error, "for another client");
  }
});

Deno.test("ServerGuard limits the memory of columns and of empty values", () => {
  const count = String.fromCharCode(2000 >> 8, 2000 & 255);
  const columns = message("T", count + `c\0${"\0".repeat(18)}`.repeat(2000));
  const row = message("D", count + "\xff\xff\xff\xff".repeat(2000));
  for (const [first, flood] of [[columns, columns], [columns, row]] as const) {
    const guard = readyGuard();
    guard.check(first);
    assertThrows(
      () => {
        for (let sent = 0; sent < 64 * 2 ** 20; sent += flood.length) {
          guard.check(flood);
        }
      },
      Error,
      "more than 512 MiB",
    );
  }
});

Deno.test("ServerGuard gives COPY data to the receiver and all else to the driver, however chunks split messages", () => {
  const rows = ["first", "", "third"].map((row) => message("d", row));
  const before = message("H", "\0\0\0");
  const notice = message("N", "SNOTICE\0Mno\0\0");
  const after = Buffer.concat([
    message("c", ""),
    message("C", "COPY 3\0"),
    message("Z", "I"),
  ]);
  const sent = Buffer.concat([before, ...rows, notice, rows[0]!, after]);
  for (let size = 1; size <= sent.length; size++) {
    const guard = readyGuard();
    const copied: Buffer[] = [];
    let begun = 0;
    guard.expectCopy((messages, count) => {
      copied.push(Buffer.from(messages));
      begun = count;
    });
    const passed: Buffer[] = [];
    for (let at = 0; at < sent.length; at += size) {
      passed.push(...guard.check(sent.subarray(at, at + size)));
    }
    assertEquals(Buffer.concat(copied), Buffer.concat([...rows, rows[0]!]));
    assertEquals(begun, 4);
    assertEquals(
      Buffer.concat(passed),
      Buffer.concat([before, notice, after]),
    );
  }
});

Deno.test("ServerGuard refuses an answer without a statement", () => {
  const answer = Buffer.concat([message("C", "SET\0"), message("Z", "I")]);
  const guard = readyGuard();
  guard.check(answer);
  assertThrows(() => guard.check(answer), Error, "answer without a statement");
  guard.check(message("N", "SNOTICE\0Mno\0\0"));
});
