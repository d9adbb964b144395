import {
  assert,
  assertEquals,
  assertMatch,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import { effectiveVariables, type Environment, parseConfig } from "./config.ts";
import type { Variable } from "./parsers.ts";
import { maskOf, maskOfConfig, maskStrings, secretsOf } from "./secrets.ts";
import { VARIABLES } from "./variables.ts";
import { ServiceError } from "../errors.ts";

const noFile = (path: string): string => {
  throw new Error(`no file ${path}`);
};

const parse = (environment: Environment, readFile = noFile) =>
  parseConfig(environment, readFile);

/** Returns the error about a wrong configuration. */
const refused = (
  environment: Environment,
  message?: string,
  readFile = noFile,
) => assertThrows(() => parse(environment, readFile), ServiceError, message);

Deno.test("parseConfig() has the documented defaults", () => {
  const config = parse({});
  const { password, ...olist } = config.olist;
  assertEquals(password.read(), undefined);
  assertEquals(olist, {
    label: "olist",
    servers: [{ host: "localhost", port: 5432 }],
    targetSessionAttrs: "any",
    user: "root",
    database: "olist_ecommerce",
    sslMode: "prefer",
    sslRootCertificate: undefined,
    sslClient: undefined,
    requireAuth: new Set(["scram-sha-256", "none"] as const),
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

Deno.test("parseConfig() allows every login where TLS authenticates the server", () => {
  const { olist, dwh } = parse({
    OLIST_DB_SSLMODE: "verify-full",
    DWH_DB_REQUIRE_AUTH: "MD5, none",
  });
  const all = ["password", "md5", "scram-sha-256", "none"] as const;
  assertEquals(olist.requireAuth, new Set(all));
  assertEquals(dwh.requireAuth, new Set(["md5", "none"] as const));
  refused({ DWH_DB_REQUIRE_AUTH: "md5,kerberos" }, "DWH_DB_REQUIRE_AUTH=");
});

Deno.test("parseConfig() reports all mistakes together, with the value and the allowed values", () => {
  const error = refused({
    OLIST_DB_PORT: "70000",
    VERIFY: "maybe",
    RETRY_ATTEMPTS: "-1",
    LOAD_TIMEZONE: "+02:00",
    DWH_DB_PASSWORD_FILE: "/gone",
  });
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

Deno.test("parseConfig() accepts the documented words in any case, and no others", () => {
  assertEquals(parse({ LOAD_MODE: "FULL" }).loadMode, "full");
  for (const value of ["True", "yes", "ON", "1"]) {
    assertEquals(parse({ LOAD_ATOMIC: value }).loadAtomic, true);
  }
  for (const value of ["False", "no", "OFF", "0"]) {
    assertEquals(parse({ LOAD_ATOMIC: value }).loadAtomic, false);
  }
  for (const value of ["t", " true", "2"]) {
    refused(
      { LOAD_ATOMIC: value },
      `LOAD_ATOMIC="${value}" must be true or false`,
    );
  }
});

Deno.test("parseConfig() treats an empty variable as unset", () => {
  assertEquals(
    parse({ OLIST_DB_PORT: "", LOAD_TIMEZONE: "" }).olist.servers,
    [{ host: "localhost", port: 5432 }],
  );
});

Deno.test("parseConfig() reads a password from a file without its last newline", () => {
  const config = parse(
    { DWH_DB_PASSWORD_FILE: "/run/secret" },
    () => "p w\n\n",
  );
  assertEquals(config.dwh.password.read(), "p w\n");
});

Deno.test("parseConfig() refuses an empty secret file", () => {
  const names = [
    "API_TOKEN_FILE",
    "EVENT_WEBHOOK_SECRET_FILE",
    "ALERT_SLACK_URL_FILE",
    "ALERT_TEAMS_URL_FILE",
    "OLIST_DB_PASSWORD_FILE",
    "DWH_DB_PASSWORD_FILE",
    "OLIST_DB_SSLROOTCERT",
    "DWH_DB_SSLROOTCERT",
    "OLIST_DB_SSLCERT",
    "DWH_DB_SSLKEY",
  ];
  for (const name of names) {
    for (const text of ["", "\n", " \t\r\n\n"]) {
      const error = refused(
        { [name]: "/run/secret" },
        `${name}="/run/secret" is an empty file: write the value into it, or unset ${name}`,
        () => text,
      );
      assertEquals(error.kind.exit, 78);
    }
  }
});

Deno.test("parseConfig() refuses a token that no header can carry, without showing it", () => {
  const given = (token: string) => [
    () => parse({ API_TOKEN: token }),
    () => parse({ API_TOKEN_FILE: "/t" }, () => token),
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
    ].map((token) => `long-enough-${token}`)
  ) {
    for (const parse of given(token)) {
      const error = assertThrows(
        parse,
        ServiceError,
        "must be at least 16 visible ASCII characters without white space",
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
    parse({ API_TOKEN_FILE: "/t" }, () => "tok-en-1234567890\r\n")
      .apiToken,
    "tok-en-1234567890",
  );
});

Deno.test("parseConfig() refuses a password together with a password file", () => {
  const error = refused(
    { DWH_DB_PASSWORD: "hush-hush", DWH_DB_PASSWORD_FILE: "/f" },
    undefined,
    () => "x",
  );
  assertStringIncludes(
    error.message,
    "DWH_DB_PASSWORD and DWH_DB_PASSWORD_FILE are both set",
  );
  assert(!error.message.includes("hush-hush"));
});

Deno.test("parseConfig() refuses an identifier that the server would truncate", () => {
  refused({ DWH_DB_NAME: "é".repeat(32) }, "63 bytes");
  assertEquals(
    parse({ DWH_DB_NAME: "a".repeat(63) }).dwh.database.length,
    63,
  );
});

const WEBHOOK = {
  EVENT_WEBHOOK_URL: "https://hooks.example/services/T0123456789AB",
  EVENT_WEBHOOK_SECRET: `whsec_${btoa("x".repeat(24))}`,
};

Deno.test("parseConfig() accepts a webhook secret of 24 to 64 bytes, also from a file", () => {
  const config = parse(WEBHOOK);
  assertEquals(config.eventWebhookUrl, WEBHOOK.EVENT_WEBHOOK_URL);
  const { EVENT_WEBHOOK_URL, EVENT_WEBHOOK_SECRET } = WEBHOOK;
  const fromFile = { EVENT_WEBHOOK_URL, EVENT_WEBHOOK_SECRET_FILE: "/s" };
  assertEquals(
    parse(fromFile, () => `${EVENT_WEBHOOK_SECRET}\n`)
      .eventWebhookSecret,
    EVENT_WEBHOOK_SECRET,
  );
  refused(
    fromFile,
    "the content of EVENT_WEBHOOK_SECRET_FILE must be whsec_",
    () => "not a key",
  );
  for (const bytes of [23, 65]) {
    refused({
      ...WEBHOOK,
      EVENT_WEBHOOK_SECRET: `whsec_${btoa("x".repeat(bytes))}`,
    }, "EVENT_WEBHOOK_SECRET=***");
  }
});

Deno.test("effectiveVariables() shows only the origin of a webhook URL, and masks its secret parts", () => {
  const shown = effectiveVariables(WEBHOOK)
    .find(({ name }) => name === "EVENT_WEBHOOK_URL");
  assertEquals(shown?.value, "https://hooks.example");
  const mask = maskOfConfig(parse(WEBHOOK));
  assertEquals(mask(WEBHOOK.EVENT_WEBHOOK_URL), "***");
  assertEquals(mask("part T0123456789AB"), "part ***");
  assertEquals(mask("https://hooks.example"), "https://hooks.example");
});

Deno.test("parseConfig() accepts a public URL with a path, and refuses user, query and fragment", () => {
  const { publicUrl } = parse({ PUBLIC_URL: "https://loads.example/a/" });
  assertEquals(publicUrl, "https://loads.example/a");
  for (const rest of ["me@h/", "me:pw@h/", "h/?", "h/#a", "", ":80"]) {
    const error = refused({ PUBLIC_URL: `https://${rest}` });
    assertMatch(
      error.message,
      /PUBLIC_URL(="[^"]*")? must be an http or https/,
    );
    assert(!error.message.includes("pw"), error.message);
  }
});

Deno.test("effectiveVariables() masks secrets and reports which variables are set", () => {
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
  const config = parse({
    OLIST_DB_PASSWORD: `a"b\\ c'd e&f`,
    DWH_DB_PASSWORD: `a"b\\ c'd`,
  });
  const mask = maskOf(secretsOf(config));
  for (const { password: { read } } of [config.olist, config.dwh]) {
    const password = read()!;
    for (
      const form of [
        password,
        JSON.stringify({ p: password }),
        encodeURIComponent(password),
        password.replaceAll("'", "''"),
      ]
    ) assert(!/a.{1,3}b/.test(mask(form)), mask(form));
  }
  assertEquals(mask("nothing here"), "nothing here");
});

Deno.test("maskOf() leaves a secret that is short or a fixed word of the output", () => {
  for (
    const secret of [
      "1",
      "true",
      "olist",
      "success",
      "password",
      "database",
      "closed_deal",
      "integrity_ok",
      "marketing-data-loaded",
      "example_project_1_dwh",
      "my_database_name",
    ]
  ) {
    const config = parse({
      DWH_DB_PASSWORD: secret,
      DWH_DB_NAME: "my_database_name",
    });
    const text = `Cannot load closed_deal: ${secret}`;
    assertEquals(maskOfConfig(config)(text), text);
  }
});

Deno.test("maskStrings() masks string values and leaves keys, numbers and dates", () => {
  const mask = maskOf(["hunter2hunter2"]);
  const date = new Date(0);
  assertEquals(
    maskStrings(
      { hunter2hunter2: ["x hunter2hunter2", 1, null, true], date },
      mask,
    ),
    { hunter2hunter2: ["x ***", 1, null, true], date },
  );
});

Deno.test("parseConfig() pairs hosts with ports, as libpq does", () => {
  const serversOf = (host: string, port: string) =>
    parse({ DWH_DB_HOST: host, DWH_DB_PORT: port }).dwh;
  const list = serversOf("a,::1,/run/pg", "5432,5433,5434");
  assertEquals(list.servers, [
    { host: "a", port: 5432 },
    { host: "::1", port: 5433 },
    { host: "/run/pg", port: 5434 },
  ]);
  assertEquals(list.targetSessionAttrs, "read-write");
  assertEquals(serversOf("a", "1").targetSessionAttrs, "any");
  assertEquals(serversOf("a,b", "1").servers.map(({ port }) => port), [1, 1]);
  for (
    const [host, port] of [["a", "1,2"], ["a,b", "1,2,3"], ["a,b,c", "1,2"]]
  ) {
    assertThrows(
      () => serversOf(host!, port!),
      ServiceError,
      "set one port, or one for each host",
    );
  }
  for (const port of ["1,", ",", "1,,2", "1;2", "1, 2", "1,70000"]) {
    assertThrows(
      () => serversOf("a,b", port),
      ServiceError,
      `DWH_DB_PORT=${JSON.stringify(port)} must be a whole number`,
    );
  }
});

Deno.test("parseConfig() needs a client certificate and its key together", () => {
  for (const name of ["DWH_DB_SSLCERT", "DWH_DB_SSLKEY"]) {
    refused(
      { [name]: "/file" },
      "DWH_DB_SSLCERT and DWH_DB_SSLKEY belong together",
      () => "PEM",
    );
  }
});

Deno.test("a password file is read again, and its values are masked", () => {
  let text = "first password\n";
  const config = parse({ DWH_DB_PASSWORD_FILE: "/run/secret" }, () => text);
  const mask = maskOfConfig(config);
  const { password } = config.dwh;
  text = "next password";
  assertEquals(password.read(), "next password");
  assertEquals(mask("first password, next password"), "***, ***");
  text = "\n";
  assertThrows(
    () => password.read(),
    Error,
    'DWH_DB_PASSWORD_FILE="/run/secret" is an empty file',
  );
  for (let i = 0; i < 100; i++) {
    text = `password ${i}`;
    password.read();
  }
  assertEquals(password.known.size, 16);
  assertEquals(mask("password 99"), "***");
});

Deno.test("parseConfig() refuses an invalid host, without showing it", () => {
  const allowed = [
    "localhost",
    "db-1.example.com",
    "db_1",
    "10.0.0.1",
    "::1",
    "fe80::1%eth0",
    "/var/run/postgresql",
    "bücher.example",
  ];
  for (const host of allowed) {
    assertEquals(
      parse({ DWH_DB_HOST: host }).dwh.servers[0]!.host,
      host,
    );
  }
  for (
    const host of [
      "postgres://me:hunter2@db/x",
      "me:hunter2@db",
      "db:5432",
      "a,,b",
      "a,",
      "a, b",
      "host=db password=hunter2",
      "db hunter2",
      "db/hunter2",
      "[::1]",
      "/run\nhunter2",
      "-hunter2",
    ]
  ) {
    for (const name of ["DWH_DB_HOST", "OLIST_DB_HOST", "HOST"]) {
      const error = refused({ [name]: host }, `${name} must be`);
      assert(!error.line.includes(host), error.line);
      assert(!error.line.includes("hunter2"), error.line);
    }
  }
});

Deno.test("parseConfig() shows no value that looks like a connection string or a key", () => {
  for (const [name, variable] of Object.entries<Variable>(VARIABLES)) {
    if (variable.secret) continue;
    for (
      const value of [
        "postgresql://me:hunter2@db/x",
        "dbname=x password=hunter2",
        "https://hooks.example/?access_token=hunter2",
        "-----BEGIN PRIVATE KEY-----\nhunter2",
      ]
    ) {
      const error = refused({ [name]: value }, name);
      assert(!error.line.includes("hunter2"), error.line);
      const shown = effectiveVariables({ [name]: value })
        .find((v) => v.name === name);
      assertEquals(shown?.value, "***");
    }
  }
});

Deno.test("parseConfig() refuses an API_TOKEN of fewer than 16 characters", () => {
  parse({ API_TOKEN: "x".repeat(16) });
  refused({ API_TOKEN: "x".repeat(15) }, "API_TOKEN=*** must be at least 16");
});
