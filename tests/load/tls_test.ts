import {
  assert,
  assertEquals,
  assertMatch,
  assertRejects,
  assertStringIncludes,
} from "@std/assert";
import { startPostgres } from "../support/own_server.ts";
import { parseConfig } from "../../src/config/config.ts";
import { Session } from "../../src/postgres/session.ts";
import { asServiceError } from "../../src/errors.ts";
import { connectAs } from "../support/databases.ts";
import { testWith } from "../support/debian.ts";
import { until } from "../support/server.ts";

/** A password that SASLprep changes. */
const SECRET = "secret of tw\u00a0\u24ea";

/** Runs openssl in a folder. */
async function openssl(folder: string, command: string): Promise<void> {
  const { success, stderr } = await new Deno.Command("openssl", {
    args: command.split(" "),
    cwd: folder,
  }).output();
  assert(success, new TextDecoder().decode(stderr));
}

/** Makes an authority, and a certificate that it signed. */
async function makeCertificate(
  folder: string,
  authority: string,
  name: string,
  subject: string,
): Promise<void> {
  await openssl(
    folder,
    `req -new -x509 -days 2 -nodes -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -subj /CN=${authority} -keyout ${authority}.key -out ${authority}.crt`,
  );
  await openssl(
    folder,
    `req -x509 -CA ${authority}.crt -CAkey ${authority}.key -days 2 -nodes -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -subj /CN=${subject} -addext subjectAltName=DNS:${subject} -addext basicConstraints=CA:FALSE -keyout ${name}.key -out ${name}.crt`,
  );
}

testWith(
  ["openssl"],
  "TLS modes and client certificates, as with libpq",
  async (t) => {
    await using server = await startPostgres({
      hba: [
        "hostssl all certified all cert",
        "hostssl all certified_too all scram-sha-256 clientcert=verify-full",
        "hostssl all plain all reject",
        "hostnossl all plain all trust",
        "hostssl all encrypted all trust",
        "host all hashed all md5",
        "host all clear all password",
        "host all postgres all trust",
      ],
    });
    const folder = server.dataDirectory;
    await makeCertificate(folder, "authority", "server", "localhost");
    await makeCertificate(folder, "clients", "client", "certified");
    await makeCertificate(folder, "strangers", "stranger", "certified");
    await openssl(
      folder,
      "pkey -in client.key -aes256 -passout pass:hunter2hunter2 -out encrypted.key",
    );
    Deno.writeTextFileSync(`${folder}/garbage.pem`, "hunter2hunter2");
    const { uid, gid } = Deno.statSync(folder);
    for (const name of ["server.key", "server.crt", "clients.crt"]) {
      Deno.chmodSync(`${folder}/${name}`, 0o600);
      if (Deno.uid() === 0) Deno.chownSync(`${folder}/${name}`, uid!, gid!);
    }
    const admin = connectAs(new URL(server.url()), "postgres", 1);
    await admin.unsafe(
      `create role certified login; create role plain login; create role encrypted login;
       create role certified_too login password '${SECRET}';
       create role clear login password '${SECRET}';
       set password_encryption = md5; create role hashed login password '${SECRET}'`,
    );
    await admin.unsafe("alter system set ssl_ca_file = 'clients.crt'");
    await admin.unsafe("alter system set ssl = on");
    await admin.unsafe("select pg_reload_conf()");
    await until("TLS is on", async () => {
      const [row] = await admin.unsafe("select current_setting('ssl') as ssl");
      return row!.ssl === "on";
    });
    await admin.end({ timeout: 1 });

    /** Returns whether a session is encrypted, or its failure. */
    async function attempt(
      mode: string,
      host: string,
      files: Partial<Record<"ROOTCERT" | "CERT" | "KEY", string>>,
      user = "postgres",
    ): Promise<string> {
      const config = parseConfig({
        DWH_DB_HOST: host,
        DWH_DB_PORT: String(server.port),
        DWH_DB_USER: user,
        DWH_DB_PASSWORD: SECRET,
        DWH_DB_NAME: "postgres",
        DWH_DB_SSLMODE: mode,
        ...Object.fromEntries(
          Object.entries(files).map((
            [name, file],
          ) => [`DWH_DB_SSL${name}`, file]),
        ),
      }, (path) => Deno.readTextFileSync(`${folder}/${path}`));
      try {
        await using session = await Session.open(config.dwh, {
          applicationName: "tls",
          connectTimeoutSeconds: 5,
          stallTimeoutSeconds: 5,
        });
        const [row] = await session.query(
          "select ssl::text from pg_stat_ssl where pid = pg_backend_pid()",
        );
        // The COPY relay must not treat an encrypted socket as a plain one.
        assertEquals(session.isEncrypted, row!.ssl === "true");
        return row!.ssl;
      } catch (error) {
        const { code, line } = asServiceError(error);
        assert(!line.includes("hunter2"), line);
        if (code === "tls_failed") assertStringIncludes(line, "DWH_DB_SSLMODE");
        return `${code}: ${line}`;
      }
    }

    const ours = { ROOTCERT: "authority.crt" };
    const others = { ROOTCERT: "clients.crt" };
    const client = { CERT: "client.crt", KEY: "client.key" };
    for (
      const [mode, host, files, expected, user] of [
        ["disable", "127.0.0.1", {}, /^false$/],
        ["prefer", "127.0.0.1", {}, /^true$/],
        ["require", "127.0.0.1", {}, /^true$/],
        ["require", "127.0.0.1", ours, /^true$/],
        ["require", "127.0.0.1", others, /^tls_failed/],
        ["verify-ca", "127.0.0.1", ours, /^true$/],
        ["verify-ca", "localhost", ours, /^true$/],
        ["verify-ca", "localhost", others, /^tls_failed/],
        ["verify-ca", "localhost", {}, /^tls_failed/],
        ["verify-full", "localhost", ours, /^true$/],
        ["verify-full", "localhost", others, /^tls_failed/],
        ["verify-full", "localhost", {}, /^tls_failed/],
        ["verify-full", "127.0.0.1", ours, /^tls_failed/],
        // pg_hba.conf refuses TLS, or requires it.
        ["prefer", "127.0.0.1", {}, /^false$/, "plain"],
        ["require", "127.0.0.1", {}, /^authentication_failed/, "plain"],
        ["prefer", "127.0.0.1", {}, /^true$/, "encrypted"],
        ["disable", "127.0.0.1", {}, /^authentication_failed/, "encrypted"],
        // Other login methods. The server stores the password as it is.
        ["verify-full", "localhost", ours, /^true$/, "hashed"],
        ["verify-full", "localhost", ours, /^true$/, "clear"],
        ["verify-ca", "localhost", ours, /_DB_REQUIRE_AUTH/, "clear"],
        // The role needs a certificate.
        [
          "verify-full",
          "localhost",
          { ...ours, ...client },
          /^true$/,
          "certified",
        ],
        ["prefer", "127.0.0.1", client, /^true$/, "certified"],
        ["require", "127.0.0.1", {}, /certificate/, "certified"],
        [
          "require",
          "127.0.0.1",
          client,
          /^authentication_failed/,
          "certified_too",
        ],
        [
          "require",
          "127.0.0.1",
          { CERT: "stranger.crt", KEY: "stranger.key" },
          /^tls_failed/,
          "certified",
        ],
        [
          "prefer",
          "127.0.0.1",
          { CERT: "client.crt", KEY: "stranger.key" },
          /^tls_failed: .*the key in DWH_DB_SSLKEY does not belong to the certificate in DWH_DB_SSLCERT/,
          "certified",
        ],
        [
          "prefer",
          "127.0.0.1",
          { CERT: "client.crt", KEY: "encrypted.key" },
          /^tls_failed: .*DWH_DB_SSLKEY is encrypted/,
          "certified",
        ],
        [
          "prefer",
          "127.0.0.1",
          { CERT: "client.crt", KEY: "garbage.pem" },
          /^tls_failed: .*DWH_DB_SSLKEY holds no private key/,
          "certified",
        ],
        [
          "prefer",
          "127.0.0.1",
          { CERT: "garbage.pem", KEY: "client.key" },
          /^tls_failed: .*DWH_DB_SSLCERT holds no certificate/,
          "certified",
        ],
      ] as const
    ) {
      await t.step(
        `${mode} to ${host} as ${user ?? "postgres"} with ${
          Object.values(files).join(" ") || "no files"
        }: ${expected.source}`,
        async () => {
          assertMatch(await attempt(mode, host, files, user), expected);
        },
      );
    }

    await t.step("a rotated client certificate is read again", async () => {
      const rotate = (name: string) => {
        for (const kind of ["crt", "key"]) {
          Deno.copyFileSync(
            `${folder}/${name}.${kind}`,
            `${folder}/now.${kind}`,
          );
        }
      };
      rotate("stranger");
      const { dwh } = parseConfig({
        DWH_DB_HOST: "127.0.0.1",
        DWH_DB_PORT: String(server.port),
        DWH_DB_USER: "certified",
        DWH_DB_NAME: "postgres",
        DWH_DB_SSLMODE: "require",
        DWH_DB_SSLCERT: "now.crt",
        DWH_DB_SSLKEY: "now.key",
      }, (path) => Deno.readTextFileSync(`${folder}/${path}`));
      const open = async () => {
        await using session = await Session.open(dwh, {
          applicationName: "tls",
          connectTimeoutSeconds: 5,
          stallTimeoutSeconds: 5,
        });
        return session.failure;
      };
      const error = await assertRejects(open);
      assertEquals(asServiceError(error).code, "tls_failed");
      rotate("client");
      assertEquals(await open(), undefined);
    });
  },
);
