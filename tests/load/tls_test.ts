import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { startPostgres } from "../../demo/postgres.ts";
import { parseConfig } from "../../src/config/config.ts";
import { Session } from "../../src/postgres/session.ts";
import { asServiceError } from "../../src/errors.ts";
import { connectAs } from "../support/databases.ts";
import { testWith } from "../support/debian.ts";
import { until } from "../support/server.ts";

/** Makes a self-signed certificate for `localhost`. */
async function makeCertificate(folder: string): Promise<void> {
  const { success } = await new Deno.Command("openssl", {
    args:
      "req -new -x509 -days 2 -nodes -subj /CN=localhost -addext subjectAltName=DNS:localhost"
        .split(" ").concat([
          "-keyout",
          `${folder}/server.key`,
          "-out",
          `${folder}/server.crt`,
        ]),
    stderr: "null",
  }).output();
  assert(success, "openssl makes no certificate");
}

testWith(
  ["openssl"],
  "TLS modes: require encrypts, verify-full checks name and authority",
  async (t) => {
    await using server = await startPostgres();
    const folder = server.dataDirectory;
    await makeCertificate(folder);
    const { uid, gid } = Deno.statSync(folder);
    for (const name of ["server.key", "server.crt"]) {
      Deno.chmodSync(`${folder}/${name}`, 0o600);
      if (Deno.uid() === 0) Deno.chownSync(`${folder}/${name}`, uid!, gid!);
    }
    const certificate = Deno.readTextFileSync(`${folder}/server.crt`);
    const admin = connectAs(new URL(server.url()), "postgres", 1);
    await admin.unsafe("alter system set ssl = on");
    await admin.unsafe("select pg_reload_conf()");
    await until("TLS is on", async () => {
      const [row] = await admin.unsafe("select current_setting('ssl') as ssl");
      return row!.ssl === "on";
    });
    await admin.end({ timeout: 1 });

    /** Returns whether a session in this mode is encrypted, or the code of its failure. */
    async function attempt(
      mode: string,
      host: string,
      authority?: string,
    ): Promise<string> {
      const config = parseConfig({
        DWH_DB_HOST: host,
        DWH_DB_PORT: String(server.port),
        DWH_DB_USER: "postgres",
        DWH_DB_NAME: "postgres",
        DWH_DB_SSLMODE: mode,
        ...(authority ? { DWH_DB_SSLROOTCERT: "authority" } : {}),
      }, () => authority!);
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
        assertEquals(session.plainSocket === undefined, row!.ssl === "true");
        return row!.ssl;
      } catch (error) {
        const { code, line } = asServiceError(error);
        if (code === "tls_failed") assertStringIncludes(line, "*_DB_SSLMODE");
        return code;
      }
    }

    for (
      const [mode, host, authority, expected] of [
        ["disable", "127.0.0.1", undefined, "false"],
        ["prefer", "127.0.0.1", undefined, "true"],
        ["require", "127.0.0.1", undefined, "true"],
        ["verify-full", "localhost", certificate, "true"],
        ["verify-full", "localhost", undefined, "tls_failed"],
        ["verify-full", "127.0.0.1", certificate, "tls_failed"],
      ] as const
    ) {
      await t.step(
        `${mode} to ${host} ${
          authority ? "with" : "without"
        } the authority: ${expected}`,
        async () => {
          assertEquals(await attempt(mode, host, authority), expected);
        },
      );
    }
  },
);
