import {
  assert,
  assertEquals,
  assertMatch,
  assertStringIncludes,
} from "@std/assert";
import { VARIABLES } from "../../src/config/variables.ts";
import { Session } from "../../src/postgres/session.ts";
import { configOf, createDatabases, PASSWORD } from "../support/databases.ts";
import { runJson, runProgram } from "../support/program_here.ts";
import { startServer } from "../support/server.ts";

const ROOT = new URL("../../", import.meta.url).pathname;

/** Runs `words` with variables whose bytes are "hunter" and an invalid byte. Only a shell can set them. */
async function runWithInvalidBytes(
  names: readonly string[],
  words: string,
): Promise<{ code: number; output: string }> {
  const command = [
    ...names.map((name) => `export ${name}="$(printf 'hunter\\377')"`),
    `exec "$DENO" run --quiet --no-prompt -P cli.ts ${words}`,
  ].join("; ");
  const { code, stdout, stderr } = await new Deno.Command("/bin/sh", {
    args: ["-c", command],
    cwd: ROOT,
    env: { DENO: Deno.execPath() },
    stdin: "null",
  }).output();
  const decoder = new TextDecoder();
  return { code, output: decoder.decode(stdout) + decoder.decode(stderr) };
}

Deno.test({
  name: "variables that are not valid UTF-8 are named and not shown",
  ignore: Deno.build.os === "windows",
  async fn(t) {
    const names = Object.keys(VARIABLES);
    for (
      const [invalid, words] of [
        [names, "load --json"],
        [names, "config"],
        [["DWH_DB_PASSWORD"], "load --json"],
      ] as const
    ) {
      await t.step(`${invalid.length} with ${words}`, async () => {
        const { code, output } = await runWithInvalidBytes(invalid, words);
        assertEquals(code, 78, output);
        for (const name of invalid) {
          assertMatch(output, new RegExp(`\\b${name}\\b.* is not valid UTF-8`));
        }
        assert(!output.includes("hunter"), output);
        assert(!output.includes("    at "), output);
      });
    }
    for (const name of ["NO_COLOR", "OTEL_DENO", "OTEL_DENO_CONSOLE"]) {
      await t.step(name, async () => {
        const { code, output } = await runWithInvalidBytes([name], "config");
        assertEquals(code, 0, output);
        assert(!output.includes("hunter"), output);
      });
    }
  },
});

Deno.test("a file of a secret or of variables that is not valid UTF-8 or too large is named and not shown", async (t) => {
  const folder = await Deno.makeTempDir();
  try {
    const invalid = `${folder}/invalid`;
    await Deno.writeFile(
      invalid,
      new Uint8Array([
        ...new TextEncoder().encode("DWH_DB_PASSWORD=hunter"),
        255,
      ]),
    );
    const large = `${folder}/large`;
    await Deno.writeTextFile(large, "hunter".repeat(200_000));
    for (
      const [what, words, environment] of [
        ["--env-file", ["config", "--env-file"], {}],
        ["DWH_DB_PASSWORD_FILE", ["config"], "DWH_DB_PASSWORD_FILE"],
        ["API_TOKEN_FILE", ["config"], "API_TOKEN_FILE"],
        ["OLIST_DB_SSLROOTCERT", ["config"], "OLIST_DB_SSLROOTCERT"],
      ] as const
    ) {
      for (const file of [invalid, large, folder, "/dev/zero"]) {
        await t.step(`${what} ${file.split("/").at(-1)}`, async () => {
          const isArgument = typeof environment !== "string";
          const { code, stdout, stderr } = await runProgram(
            isArgument ? [...words, file] : [...words],
            isArgument ? {} : { [environment]: file },
          );
          assertEquals(code, 78, stdout + stderr);
          assertStringIncludes(stderr, what);
          assert(!(stdout + stderr).includes("hunter"), stdout + stderr);
        });
      }
    }
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

Deno.test("output stays intact when it contains the password by chance", async (t) => {
  await using db = await createDatabases({ rows: { deals: 3, leads: 3 } });
  for (
    const password of [
      "1",
      "true",
      "olist",
      "success",
      "null",
      '"',
      "closed_deal",
      "records_loaded",
      "integrity_ok",
      "marketing-data-loaded",
      db.environment.DWH_DB_NAME!,
    ]
  ) {
    await t.step(password, async () => {
      await db.warehouse.unsafe(
        `alter role "${db.loader}" password '${password}'`,
      );
      const environment: Record<string, string> = {
        ...db.environment,
        DWH_DB_PASSWORD: password,
      };
      const load = await runJson(["load"], environment);
      assertEquals(load.code, 0, load.stderr);
      assertEquals(load.json.status, "success");
      assertEquals(load.json.results.results.length, 2);
      for (const words of [["load"], ["runs"], ["events"], ["health"]]) {
        const { code, stdout, stderr } = await runProgram(words, environment);
        assertEquals(code, 0, stderr);
        assert(!(stdout + stderr).includes("***"), stdout + stderr);
      }
      // A message with the name of the database must not reveal the password.
      const refused = await runProgram(["load"], {
        ...environment,
        DWH_DB_PORT: "1",
        RETRY_ATTEMPTS: "1",
      });
      assertEquals(refused.code, 69);
      assertStringIncludes(refused.stderr, environment.DWH_DB_NAME!);
      assert(!refused.stderr.includes("***"), refused.stderr);
    });
  }
});

Deno.test("load logs in with a password that the server hashed", async () => {
  await using db = await createDatabases();
  const password = `'${
    PASSWORD.replaceAll("'", "''").replaceAll("\\", "\\\\")
  }'`;
  await db.source.unsafe(`alter role "${db.reader}" password E${password}`);
  await db.warehouse.unsafe(`alter role "${db.loader}" password E${password}`);
  const [row] = await db.source.unsafe(
    `select rolpassword like 'SCRAM-SHA-256$4096:%' as hashed from pg_authid where rolname = '${db.reader}'`,
  );
  assertEquals(row!.hashed, true);
  const { code, stderr } = await runProgram(["load"], db.environment);
  assertEquals(code, 0, stderr);
});

Deno.test("a session logs in with every password that the server hashed", async (t) => {
  await using db = await createDatabases({ withoutTables: true });
  const passwords = [
    // Composed and decomposed.
    "Pa\u0308ss",
    "P\u00e4ss",
    // A space, a soft hyphen, a ligature and a number that SASLprep maps.
    "a\u00a0b",
    "I\u00adX",
    "\ufb03\u2168",
    // SASLprep prohibits them: a control character, an unassigned one, mixed directions, nothing.
    "\ufb03\u0080",
    "\ufb03\u0007",
    "\ufb03\u{1f600}",
    "\ufb03\u0627\u0031",
    "\u0627\u0031",
    "\u00ad",
    "\u0627\u00adb\u0627",
    "密码\u3000\u{1d43a}",
    // Characters that Unicode 3.2 lacks, and that NFKC replaces.
    "\ufb03\u1d43",
    "\u32ff\u{1f130}",
  ];
  for (const password of passwords) {
    await t.step(JSON.stringify(password), async () => {
      await db.warehouse.unsafe(
        `alter role "${db.loader}" password '${password}'`,
      );
      const { dwh } = configOf(db, { DWH_DB_PASSWORD: password });
      await using session = await Session.open(dwh, {
        applicationName: "login",
        connectTimeoutSeconds: 5,
        stallTimeoutSeconds: 5,
      });
      assertEquals(session.failure, undefined);
    });
  }
});

Deno.test("a running service reads a rotated password, and names a file that it cannot read", async (t) => {
  await using db = await createDatabases({ rows: { deals: 3, leads: 3 } });
  const file = await Deno.makeTempFile();
  const { DWH_DB_PASSWORD: first, ...environment } = db.environment;
  const second = "rotated, and longer than eight";
  const write = (text: string) => Deno.writeTextFile(file, text);
  await write(`${first}\n`);
  const changes = { DWH_DB_PASSWORD_FILE: file };
  await using service = await startServer({ environment }, changes);
  const load = () => service.json("/load", { method: "POST" });
  /** Changes the password and ends all connections, so that new ones are made. */
  const rotate = async (password: string) => {
    await db.warehouse.unsafe(
      `alter role "${db.loader}" password '${password}'`,
    );
    await db.warehouse.unsafe(
      `select pg_terminate_backend(pid) from pg_stat_activity where usename = '${db.loader}'`,
    );
  };
  try {
    assertEquals((await load()).status, 200);
    await t.step("the old password is refused", async () => {
      await rotate(second);
      const { status, body } = await load();
      assertEquals([status, body.code], [503, "authentication_failed"]);
    });
    await t.step("the new one is read", async () => {
      await write(second);
      assertEquals((await load()).status, 200);
      assertEquals((await service.json("/health")).status, 200);
    });
    for (
      const [what, change] of [
        ["is an empty file", () => write("\n")],
        ["is an empty file", () => write("")],
        ["cannot be read", () => Deno.remove(file)],
        ["not valid UTF-8", () => Deno.writeFile(file, new Uint8Array([255]))],
      ] as const
    ) {
      await t.step(`a file that ${what}`, async () => {
        await change();
        await rotate(second);
        const { status, body } = await load();
        assertEquals([status, body.code], [503, "authentication_failed"]);
        assertStringIncludes(body.detail, `DWH_DB_PASSWORD_FILE="${file}"`);
        assertStringIncludes(body.detail, what);
        const health = await service.json("/health");
        assertStringIncludes(health.body.checks.dwh.error, what);
        assertEquals((await service.json("/health/live")).status, 200);
      });
    }
    await t.step("the file is back", async () => {
      await write(second);
      assertEquals((await load()).status, 200);
    });
  } finally {
    service.kill("SIGTERM");
    const { stdout, stderr } = await service.finished;
    for (const secret of [first!, second]) {
      assert(!(stdout + stderr).includes(secret), stderr);
    }
    await Deno.remove(file);
  }
});

Deno.test("a password can come from a pipe", async () => {
  await using db = await createDatabases({ rows: { deals: 3, leads: 3 } });
  const { DWH_DB_PASSWORD, ...environment } = db.environment;
  const { code, stderr } = await new Deno.Command("bash", {
    args: [
      "-c",
      'DWH_DB_PASSWORD_FILE=<(printf %s "$SECRET") "$DENO" run --quiet --no-prompt -P cli.ts load',
    ],
    cwd: ROOT,
    env: { ...environment, SECRET: DWH_DB_PASSWORD!, DENO: Deno.execPath() },
    stdin: "null",
  }).output();
  assertEquals(code, 0, new TextDecoder().decode(stderr));
});
