import { assert, assertEquals } from "@std/assert";
import { createDatabases, PASSWORD } from "../support/databases.ts";
import {
  authentication,
  COLUMNS,
  encode,
  GREETING,
  type HostileConnection,
  HostileServer,
  join,
  message,
  type Misbehavior,
  READY,
  refuseTls,
  SASL,
  writeAll,
} from "../support/hostile_server.ts";
import type { Finished } from "../support/program.ts";
import { runProgram } from "../support/program_here.ts";
import { startServer, until } from "../support/server.ts";

const SECRET = "only-for-genuine-servers";

/** Sends these bytes instead of authentication, then keeps the connection open. */
const greets = (...parts: Uint8Array[]): Misbehavior => async (connection) => {
  await refuseTls(connection);
  await connection.write(join(...parts));
  while (true) await connection.read();
};

/** Logs the client in, then answers each of its messages with these bytes. */
const answers = (...parts: Uint8Array[]): Misbehavior => async (connection) => {
  await refuseTls(connection);
  await connection.write(GREETING);
  while (true) {
    await connection.read();
    await connection.write(join(...parts));
  }
};

/** Sends these bytes without end. With `greeting`, logs the client in first. */
const floods =
  (bytes: Uint8Array, greeting?: Uint8Array): Misbehavior =>
  async (connection) => {
    await refuseTls(connection);
    if (greeting) {
      await connection.write(greeting);
      await connection.read();
      await connection.write(COLUMNS);
    }
    const copies = Math.max(1, Math.floor(64 * 1024 / bytes.length));
    const piece = join(...Array(copies).fill(bytes));
    while (true) await connection.write(piece);
  };

/** Asks for SCRAM and challenges the client. `challenge` gets the client's nonce. */
const challenges = (
  challenge: (nonce: string) => string,
  ...after: Uint8Array[]
): Misbehavior =>
async (connection) => {
  await refuseTls(connection);
  await connection.write(SASL);
  const nonce = nonceOf(await connection.read());
  await connection.write(authentication(11, challenge(nonce)));
  await connection.read();
  await connection.write(join(...after));
  while (true) await connection.read();
};

function nonceOf(bytes: Uint8Array): string {
  return /r=([^,]+)$/.exec(new TextDecoder("latin1").decode(bytes))?.[1] ?? "";
}

const says =
  (bytes: Uint8Array | string): Misbehavior => async (connection) => {
    await connection.read();
    await connection.write(typeof bytes === "string" ? encode(bytes) : bytes);
    while (true) await connection.read();
  };

/** Closes the connection after these bytes, each time. */
const closesAfter = (bytes: Uint8Array): Misbehavior => async (connection) => {
  await refuseTls(connection);
  await connection.write(bytes);
};

const big = (type: string, length: number) => message(type, "x", length);
const salt = "s=c2FsdHNhbHRzYWx0";

/** The behavior of the server by name, and the expected message. */
const MISBEHAVIORS: Readonly<Record<string, [Misbehavior, RegExp]>> = {
  "an authentication message of 4 bytes": [
    greets(message("R")),
    /malformed authentication/,
  ],
  "an authentication message of 7 bytes": [
    greets(message("R", "\0\0\0")),
    /malformed authentication/,
  ],
  "an MD5 request without salt": [
    greets(authentication(5)),
    /malformed authentication/,
  ],
  "a request for GSSAPI": [greets(authentication(7)), /GSSAPI.*not supported/],
  "a request for SSPI": [greets(authentication(9)), /SSPI.*not supported/],
  "an unknown request": [greets(authentication(77)), /77.*not supported/],
  "an unknown SASL mechanism": [
    greets(authentication(10, "OAUTHBEARER\0\0")),
    /OAUTHBEARER.*not supported/,
  ],
  "the password in clear text": [
    greets(authentication(3)),
    /clear text.*_DB_REQUIRE_AUTH/,
  ],
  "an MD5 hash of the password": [
    greets(authentication(5, "salt")),
    /MD5.*_DB_REQUIRE_AUTH/,
  ],
  "no signature": [
    challenges(
      (nonce) => `r=${nonce}x,${salt},i=4096`,
      GREETING,
    ),
    /without its signature/,
  ],
  "a wrong signature": [
    challenges(
      (nonce) => `r=${nonce}x,${salt},i=4096`,
      authentication(12, "v=d3Jvbmc="),
      GREETING,
    ),
    /signature/,
  ],
  "a signature before the challenge": [
    greets(authentication(12, "v=d3Jvbmc=")),
    /an unexpected authentication request/,
  ],
  "a login after the request for SASL": [
    async (connection: HostileConnection) => {
      await refuseTls(connection);
      await connection.write(SASL);
      await connection.read();
      await connection.write(GREETING);
      while (true) await connection.read();
    },
    /without its signature/,
  ],
  "2,000,000,000 iterations": [
    challenges((nonce) => `r=${nonce}x,${salt},i=2000000000`),
    /2000000000 SCRAM iterations/,
  ],
  "a SCRAM challenge for another client": [
    challenges(() => `r=theirs,${salt},i=4096`),
    /for another client/,
  ],
  "a SCRAM challenge that adds nothing": [
    challenges((nonce) => `r=${nonce},${salt},i=4096`),
    /for another client/,
  ],
  "iterations given twice": [
    challenges((nonce) => `r=${nonce}x,${salt},i=4096,i=2000000000`),
    /malformed SCRAM challenge/,
  ],
  "no iterations": [
    challenges((nonce) => `r=${nonce}x,${salt}`),
    /malformed SCRAM challenge/,
  ],
  "negative iterations": [
    challenges((nonce) => `r=${nonce}x,${salt},i=-1`),
    /malformed SCRAM challenge/,
  ],
  "no salt": [
    challenges((nonce) => `r=${nonce}x,i=4096`),
    /malformed SCRAM challenge/,
  ],
  "an empty challenge": [challenges(() => ""), /malformed SCRAM challenge/],
  "a protocol version to agree on": [
    greets(message("v", "\0\0\0\0\0\0\0\0")),
    /message of type "v"/,
  ],
  "ready without a login": [greets(READY), /without authentication/],
  "a row before the login": [greets(message("D", "\0\0")), /type "D"/],
  "endless settings": [
    floods(message("S", `name${"x".repeat(100)}\0value\0`)),
    /before the session began/,
  ],
  "endless notices": [
    floods(message("N", "SNOTICE\0MHello\0\0")),
    /before the session began/,
  ],
  "a message of 2 GB": [greets(big("S", 0x7fffffff)), /2147483647 bytes/],
  "a message of 3 bytes": [greets(big("S", 3)), /3 bytes/],
  "an error of 1 GB": [greets(big("E", 1 << 30)), /1073741824 bytes/],
  "an error of 7 MB": [
    answers(
      message(
        "E",
        `SERROR\0CXX000\0M${"x".repeat(3_500_000)}\0H${
          "y".repeat(3_500_000)
        }\0\0`,
      ),
      READY,
    ),
    /3496000 characters omitted.*3496000 characters omitted/,
  ],
  "a COPY to the client": [
    answers(message("H", "\0\0\0"), message("d", "row"), READY),
    /a COPY without a request/,
  ],
  "a COPY from the client": [
    answers(message("G", "\0\0\0"), READY),
    /a COPY without a request/,
  ],
  "a COPY in both directions": [
    answers(message("W", "\0\0\0"), READY),
    /unexpected message of type "W"/,
  ],
  "COPY data": [answers(message("d", "row")), /COPY data/],
  "rows without columns": [
    answers(message("D", "\0\0"), message("C", "SELECT 1\0"), READY),
    /a row before the description/,
  ],
  "columns whose names have no end": [
    answers(message("T", "\0\x01name")),
    /malformed description/,
  ],
  "columns that are not there": [
    answers(message("T", "\xff")),
    /malformed description/,
  ],
  "a notification without end": [
    answers(message("A", "\0\0\0\x01channel")),
    /malformed notification/,
  ],
  "a row of 1 GB": [answers(COLUMNS, big("D", 1 << 30)), /1073741824 bytes/],
  "an unknown message": [answers(message("?", "what")), /type "\?"/],
  "an answer of the extended protocol": [
    answers(message("1"), message("2"), READY),
    /unexpected message of type "1"/,
  ],
  "an answer without a statement": [
    greets(GREETING, COLUMNS, message("C", "SELECT 0\0"), READY),
    /answer without a statement/,
  ],
  "two answers to one statement": [
    answers(
      message("C", "SET\0"),
      READY,
      COLUMNS,
      message("C", "SELECT 0\0"),
      READY,
    ),
    /answer without a statement/,
  ],
  "a row that is cut": [
    answers(COLUMNS, message("D", "\0\x01\0"), READY),
    /malformed message/,
  ],
  "a key of 4 bytes": [
    greets(authentication(0), message("K", "\0\0\0\x01"), READY),
    /malformed key/,
  ],
  "an error without a code": [
    answers(message("E", "SERROR\0Mno\0\0"), READY),
    /malformed error/,
  ],
  "an error with a code of 1 MB": [
    answers(
      message("E", `SERROR\0C${"x".repeat(1 << 20)}\0Mno\0\0`),
      READY,
    ),
    /malformed error/,
  ],
  "an error with an empty body": [
    answers(message("E"), READY),
    /malformed error/,
  ],
  "a version of 200 kB": [
    greets(
      authentication(0),
      message("S", `server_version\x009.6${"x".repeat(200_000)}\0`),
      message("K", new Uint8Array(8)),
      READY,
    ),
    /type "S" and 2000\d\d bytes/,
  ],
  "a setting without a value": [
    greets(authentication(0), message("S", "a\0"), READY),
    /malformed setting/,
  ],
  "endless settings whose names begin alike": [
    floods(
      join(
        ...Array.from(
          { length: 1000 },
          (_, i) => message("S", `${"x".repeat(64)}${i}\0value\0`),
        ),
      ),
      GREETING,
    ),
    /more than 256 settings/,
  ],
  "a function's result": [answers(message("V", "what")), /type "V"/],
  "a suspended portal": [answers(message("s")), /type "s"/],
  "a second request for the password": [
    answers(authentication(3)),
    /after the login/,
  ],
  "endless rows": [
    floods(
      message(
        "D",
        join(new Uint8Array([0, 1, 0, 0, 16, 0]), new Uint8Array(4096)),
      ),
      GREETING,
    ),
    /takes more than 512 MiB|No answer|no answer/,
  ],
  "HTTP": [
    says("HTTP/1.1 400 Bad Request\r\n\r\n"),
    /answer to the TLS request is not PostgreSQL/,
  ],
  "bytes after the yes to TLS": [
    says("SSS"),
    /answer to the TLS request is not PostgreSQL/,
  ],
  "no TLS after the yes to TLS": [
    async (connection: HostileConnection) => {
      await connection.read();
      await connection.write(encode("S"));
      await connection.read();
      await connection.write(GREETING);
      while (true) await connection.read();
    },
    /Cannot connect/,
  ],
  "the end of the connection after the login": [
    closesAfter(GREETING),
    /connect/,
  ],
  "the end of the connection after a setting": [
    closesAfter(message("S", "a\0b\0")),
    /connect/,
  ],
};

/** Passes a connection on to the genuine source. */
async function passOn(
  client: HostileConnection,
  { OLIST_DB_HOST, OLIST_DB_PORT }: Readonly<Record<string, string>>,
): Promise<void> {
  using server = await Deno.connect({
    hostname: OLIST_DB_HOST!,
    port: Number(OLIST_DB_PORT),
  });
  const buffer = new Uint8Array(64 * 1024);
  const down = (async () => {
    for (let count; (count = await server.read(buffer)) !== null;) {
      await client.write(buffer.subarray(0, count));
    }
  })().catch(() => {});
  const up = (async () => {
    while (true) await writeAll(server, await client.read());
  })().catch(() => {});
  await Promise.race([down, up]);
}

const hostile = (port: number) => ({
  OLIST_DB_HOST: "127.0.0.1",
  OLIST_DB_PORT: String(port),
  OLIST_DB_USER: "reader",
  OLIST_DB_PASSWORD: SECRET,
});

function assertOrderly(finished: Finished, expected: RegExp): void {
  const { stdout, stderr } = finished;
  const all = `${stdout}\n${stderr}`;
  assert(!/Uncaught|at .*\.js:\d+|Postgres\.js/.test(all), all);
  assert(!all.includes(SECRET), all);
  assert(all.length < 20_000, `${all.length} characters`);
  assert(expected.test(all), `${expected} is not in: ${all}`);
}

Deno.test("health, load and serve survive servers that break the protocol", async (t) => {
  await using db = await createDatabases({ rows: { deals: 20, leads: 60 } });
  let misbehavior: Misbehavior | undefined;
  await using switching = new HostileServer(async (connection) => {
    await misbehavior!(connection);
  });
  const impatient = {
    CONNECT_TIMEOUT: "5",
    STALL_TIMEOUT: "5",
    RETRY_ATTEMPTS: "1",
  };
  // At first, only the source is hostile.
  await using service = await startServer(db, {
    ...impatient,
    OLIST_DB_PORT: String(switching.port),
  });
  for (const [name, [behavior, expected]] of Object.entries(MISBEHAVIORS)) {
    await t.step(name, async () => {
      misbehavior = behavior;
      switching.received = "";
      const environment = {
        ...db.environment,
        ...impatient,
        ...hostile(switching.port),
      };
      const health = await runProgram(["health"], environment);
      assertEquals(health.code, 69, health.stderr);
      assertOrderly(health, expected);
      const { status } = await service.json("/health");
      assertEquals(status, 503);
      const live = await service.json("/health/live");
      assertEquals(live.status, 200);
      for (const password of [SECRET, PASSWORD]) {
        assert(!switching.received.includes(password), "the password was sent");
      }
    });
  }
  const ofLoad: [string, Misbehavior, RegExp][] = [
    ...["a COPY to the client", "no iterations", "endless settings"].map((
      name,
    ): [string, Misbehavior, RegExp] => [name, ...MISBEHAVIORS[name]!]),
    [
      "an answer without its row",
      answers(COLUMNS, message("C", "SELECT 0\0"), READY),
      /the server sent no row/,
    ],
  ];
  for (const [name, behavior, expected] of ofLoad) {
    await t.step(`load: ${name}`, async () => {
      misbehavior = behavior;
      const load = await runProgram(["load"], {
        ...db.environment,
        ...impatient,
        ...hostile(switching.port),
      });
      assert(load.code === 1 || load.code === 69, load.stderr);
      assertOrderly(load, expected);
    });
  }
  await t.step(
    "the service loads when the server is genuine again",
    async () => {
      misbehavior = (client) => passOn(client, db.environment);
      const { status, body } = await service.json("/load", { method: "POST" });
      assertEquals(status, 200, JSON.stringify(body));
      service.kill("SIGTERM");
      const { code, stderr } = await service.finished;
      assertEquals(code, 143, stderr);
      assert(!/Uncaught|Postgres\.js/.test(stderr), stderr);
    },
  );
});

Deno.test("REQUIRE_AUTH decides whether the password is sent in clear text", async () => {
  await using server = new HostileServer(async (connection) => {
    await refuseTls(connection);
    await connection.write(authentication(3));
    await connection.read();
    await connection.write(GREETING);
    while (true) await connection.read();
  });
  const environment = {
    ...hostile(server.port),
    CONNECT_TIMEOUT: "2",
    DWH_DB_HOST: "127.0.0.1",
    DWH_DB_PORT: "1",
  };
  await runProgram(["health"], environment);
  assert(!server.received.includes(SECRET));
  await runProgram(["health"], {
    ...environment,
    OLIST_DB_REQUIRE_AUTH: "scram-sha-256,password",
  });
  await until(
    "the password arrives",
    () => Promise.resolve(server.received.includes(SECRET)),
  );
});
