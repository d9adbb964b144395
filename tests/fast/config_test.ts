import {
  assert,
  assertEquals,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import {
  effectiveVariables,
  parseConfig,
  secretsOf,
  VARIABLES,
} from "../../src/config/config.ts";
import { ServiceError } from "../../src/errors.ts";
import { maskOf } from "../../src/log.ts";

const noFile = (path: string): string => {
  throw new Error(`no file ${path}`);
};

Deno.test("parseConfig() has the documented defaults", () => {
  const config = parseConfig({}, noFile);
  assertEquals(config.olist, {
    label: "olist",
    host: "localhost",
    port: 5432,
    user: "root",
    database: "olist_ecommerce",
    password: undefined,
    sslMode: "prefer",
    sslRootCertificate: undefined,
  });
  assertEquals(config.dwh.database, "example_project_1_dwh");
  assertEquals(config.maxParallelTasks, 5);
  assertEquals(config.retryAttempts, 3);
  assertEquals(config.retryDelaySeconds, 1);
  assertEquals(config.logLevel, "INFO");
  assertEquals(config.eventPublisherType, "database");
  assertEquals(config.loadTimezone, "UTC");
  assertEquals(config.verify, "content");
});

Deno.test("parseConfig() reports all mistakes together, with the value and what is allowed", () => {
  const error = assertThrows(
    () =>
      parseConfig({
        OLIST_DB_PORT: "70000",
        VERIFY: "maybe",
        RETRY_ATTEMPTS: "-1",
        LOAD_TIMEZONE: "+02:00",
        DWH_DB_PASSWORD_FILE: "/gone",
      }, noFile),
    ServiceError,
  );
  assertEquals(error.code, "configuration");
  assertEquals(error.kind.exit, 78);
  assertStringIncludes(error.message, "5 configuration mistakes");
  assertStringIncludes(
    error.message,
    `OLIST_DB_PORT="70000" must be a whole number from 1 to 65535`,
  );
  assertStringIncludes(
    error.message,
    `VERIFY="maybe" must be one of content, count`,
  );
  assertStringIncludes(error.message, "RETRY_ATTEMPTS");
  assertStringIncludes(error.message, "LOAD_TIMEZONE");
  assertStringIncludes(
    error.message,
    `DWH_DB_PASSWORD_FILE="/gone" cannot be read: no file /gone`,
  );
});

Deno.test("parseConfig() takes an empty variable for an unset one", () => {
  assertEquals(
    parseConfig({ OLIST_DB_PORT: "", LOAD_TIMEZONE: "" }, noFile).olist.port,
    5432,
  );
});

Deno.test("parseConfig() reads a password from a file and leaves out the last newline", () => {
  const config = parseConfig(
    { DWH_DB_PASSWORD_FILE: "/run/secret" },
    () => "p w\n\n",
  );
  assertEquals(config.dwh.password, "p w\n");
});

Deno.test("parseConfig() refuses a file that holds nothing, which would count as unset", () => {
  const names = [
    "API_TOKEN_FILE",
    "EVENT_WEBHOOK_SECRET_FILE",
    "OLIST_DB_PASSWORD_FILE",
    "DWH_DB_PASSWORD_FILE",
    "OLIST_DB_SSLROOTCERT",
    "DWH_DB_SSLROOTCERT",
  ];
  for (const name of names) {
    for (const text of ["", "\n", " \t\r\n\n"]) {
      const error = assertThrows(
        () => parseConfig({ [name]: "/run/secret" }, () => text),
        ServiceError,
        `${name}="/run/secret" is an empty file: write into it what it is to hold, or unset ${name}`,
      );
      assertEquals(error.kind.exit, 78);
    }
  }
});

Deno.test("parseConfig() refuses a token that no header can carry, and does not show it", () => {
  const given = (token: string) => [
    () => parseConfig({ API_TOKEN: token }, noFile),
    () => parseConfig({ API_TOKEN_FILE: "/t" }, () => token),
  ];
  for (
    const token of [
      "zqjö",
      "zqj en",
      " zqj",
      "zqj ",
      "zqj\ten",
      "zqj\nen",
      "zqj\n\n",
      "zqj\x7f",
      "zqj\u00a0",
      "zqjключ",
    ]
  ) {
    for (const parse of given(token)) {
      const error = assertThrows(
        parse,
        ServiceError,
        "must be visible ASCII characters with no white space",
      );
      assertEquals(error.kind.exit, 78);
      assertStringIncludes(error.message, "API_TOKEN");
      assert(!error.line.includes("zqj"), error.line);
    }
  }
  for (const token of ["mF_9.B5f-4.1JqM~+/==", `!"#$%&'()*,:;<>?@[\\]^{|}`]) {
    for (const parse of given(token)) assertEquals(parse().apiToken, token);
  }
  assertEquals(
    parseConfig({ API_TOKEN_FILE: "/t" }, () => "tok-en\r\n").apiToken,
    "tok-en",
  );
});

Deno.test("parseConfig() refuses a password and a password file at once", () => {
  const error = assertThrows(
    () =>
      parseConfig(
        { DWH_DB_PASSWORD: "hush-hush", DWH_DB_PASSWORD_FILE: "/f" },
        () => "x",
      ),
    ServiceError,
  );
  assertStringIncludes(
    error.message,
    "DWH_DB_PASSWORD and DWH_DB_PASSWORD_FILE are both set",
  );
  assert(!error.message.includes("hush-hush"));
});

Deno.test("parseConfig() refuses an identifier that the server would cut", () => {
  assertThrows(
    () => parseConfig({ DWH_DB_NAME: "é".repeat(32) }, noFile),
    ServiceError,
    "63 bytes",
  );
  assertEquals(
    parseConfig({ DWH_DB_NAME: "a".repeat(63) }, noFile).dwh.database.length,
    63,
  );
});

const WEBHOOK = {
  EVENT_WEBHOOK_URL: "https://hooks.example/services/T0123456789AB",
  EVENT_WEBHOOK_SECRET: `whsec_${btoa("x".repeat(24))}`,
};

Deno.test("parseConfig() takes a webhook with a secret of 24 to 64 bytes, from a file as well", () => {
  const config = parseConfig(WEBHOOK, noFile);
  assertEquals(config.eventWebhookUrl, WEBHOOK.EVENT_WEBHOOK_URL);
  const { EVENT_WEBHOOK_URL, EVENT_WEBHOOK_SECRET } = WEBHOOK;
  const fromFile = { EVENT_WEBHOOK_URL, EVENT_WEBHOOK_SECRET_FILE: "/s" };
  assertEquals(
    parseConfig(fromFile, () => `${EVENT_WEBHOOK_SECRET}\n`)
      .eventWebhookSecret,
    EVENT_WEBHOOK_SECRET,
  );
  assertThrows(
    () => parseConfig(fromFile, () => "not a key"),
    ServiceError,
    "what EVENT_WEBHOOK_SECRET_FILE names must be whsec_",
  );
  for (const bytes of [23, 65]) {
    assertThrows(
      () =>
        parseConfig({
          ...WEBHOOK,
          EVENT_WEBHOOK_SECRET: `whsec_${btoa("x".repeat(bytes))}`,
        }, noFile),
      ServiceError,
      "EVENT_WEBHOOK_SECRET=***",
    );
  }
});

Deno.test("of a webhook's URL only the origin is shown, and its secret parts are masked", () => {
  const shown = effectiveVariables(WEBHOOK)
    .find(({ name }) => name === "EVENT_WEBHOOK_URL");
  assertEquals(shown?.value, "https://hooks.example");
  const mask = maskOf(secretsOf(parseConfig(WEBHOOK, noFile)));
  assertEquals(mask(WEBHOOK.EVENT_WEBHOOK_URL), "***");
  assertEquals(mask("part T0123456789AB"), "part ***");
  assertEquals(mask("https://hooks.example"), "https://hooks.example");
});

Deno.test("effectiveVariables() masks secrets and tells what is set", () => {
  const shown = effectiveVariables({
    OLIST_DB_PASSWORD: "hush",
    OLIST_DB_USER: "me",
  });
  assertEquals(shown.length, Object.keys(VARIABLES).length);
  const of = (name: string) => shown.find((v) => v.name === name);
  assertEquals(of("OLIST_DB_PASSWORD")?.value, "***");
  assertEquals([of("OLIST_DB_USER")?.value, of("OLIST_DB_USER")?.origin], [
    "me",
    "set",
  ]);
  assertEquals(of("OLIST_DB_PORT")?.origin, "default");
});

Deno.test("maskOf() masks every form of every secret", () => {
  const config = parseConfig({
    OLIST_DB_PASSWORD: 'a"b\\ c',
    DWH_DB_PASSWORD: 'a"b',
  }, noFile);
  const mask = maskOf(secretsOf(config));
  const forms = [
    'a"b\\ c',
    JSON.stringify({ p: 'a"b\\ c' }),
    encodeURIComponent('a"b\\ c'),
    'a"b',
  ];
  for (const form of forms) assert(!/a.{1,3}b/.test(mask(form)), mask(form));
  assertEquals(mask("nothing here"), "nothing here");
});
