/** The service behind a real nginx, with the configuration of docs/operations.md. */
import { assertEquals, assertStringIncludes } from "@std/assert";
import { createDatabases } from "../support/databases.ts";
import { findProgram, testWith } from "../support/debian.ts";
import { ROOT } from "../support/documents.ts";
import { findFreePort, startServer, until } from "../support/server.ts";
import {
  startEndpoint,
  webhookVariables,
} from "../support/webhook_endpoint.ts";

/** Starts nginx with servers. */
async function startNginx(folder: string, servers: string) {
  await Deno.writeTextFile(
    `${folder}/nginx.conf`,
    `pid ${folder}/pid; error_log ${folder}/error.log; daemon off;
     events {}
     http {
       access_log off;
       ${
      ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map((name) =>
        `${name}_temp_path ${folder}/${name};`
      ).join(" ")
    }
       ${servers}
     }`,
  );
  const process = new Deno.Command(findProgram("nginx")!, {
    args: ["-c", `${folder}/nginx.conf`, "-e", `${folder}/error.log`],
    stdin: "null",
  }).spawn();
  return {
    async [Symbol.asyncDispose]() {
      process.kill("SIGTERM");
      await process.status;
    },
  };
}

/** Writes the certificate of a private authority, and one of it for localhost. */
async function writeCertificates(folder: string): Promise<void> {
  const key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2";
  const { code } = await new Deno.Command("sh", {
    args: [
      "-ec",
      `openssl req -x509 ${key} -keyout ca.key -out ca.pem -subj /CN=authority
       openssl req -x509 ${key} -CA ca.pem -CAkey ca.key -keyout key.pem -out cert.pem -subj /CN=localhost \
         -addext subjectAltName=DNS:localhost -addext basicConstraints=critical,CA:FALSE`,
    ],
    cwd: folder,
    stderr: "null",
  }).output();
  assertEquals(code, 0);
}

testWith(
  ["nginx", "openssl"],
  "behind nginx, the pages of PUBLIC_URL start loads, streams arrive at once, and a webhook may have a private authority",
  async (t) => {
    await using db = await createDatabases({ rows: { deals: 3, leads: 3 } });
    await using endpoint = startEndpoint();
    const folder = await Deno.makeTempDir();
    await using _ = {
      [Symbol.asyncDispose]: () => Deno.remove(folder, { recursive: true }),
    };
    await Deno.chmod(folder, 0o755);
    await writeCertificates(folder);
    const [plain, secure, webhook] = [
      findFreePort(),
      findFreePort(),
      findFreePort(),
    ];
    const origin = "http://loads.example";
    await using server = await startServer(db, {
      PUBLIC_URL: origin,
      ...webhookVariables(`https://localhost:${webhook}/`),
      DENO_TLS_CA_STORE: "system",
      SSL_CERT_FILE: `${folder}/ca.pem`,
    });
    const { host } = new URL(server.url);
    const page = await Deno.readTextFile(new URL("docs/operations.md", ROOT));
    const [, documented] = /^```nginx\n([^]*?)^```$/m.exec(page)!;
    const certificate =
      `ssl_certificate ${folder}/cert.pem; ssl_certificate_key ${folder}/key.pem;`;
    await using _nginx = await startNginx(
      folder,
      documented!
        .replace("127.0.0.1:8000", host)
        .replace("443", `127.0.0.1:${secure}`)
        .replace(/ssl_certificate [^]*?\.key;/, certificate) +
        `server {
           listen 127.0.0.1:${plain};
           location / { proxy_pass http://${host}; }
           location /forwarded/ { proxy_pass http://${host}/; proxy_set_header Host loads.example; }
         }
         server {
           listen 127.0.0.1:${webhook} ssl;
           ${certificate}
           location / { proxy_pass ${endpoint.url}; }
         }`,
    );
    const url = `http://127.0.0.1:${plain}`;
    const post = async (path: string, headers: Record<string, string>) => {
      const response = await fetch(`${url}${path}`, {
        method: "POST",
        headers,
      });
      return { status: response.status, body: await response.json() };
    };
    await until("nginx answers", async () => {
      const answer = await fetch(`${url}/health/live`).catch(() => undefined);
      await answer?.body?.cancel();
      return answer?.ok ?? false;
    });

    await t.step(
      "its own page over plain http, with the default Host",
      async () => {
        const { status, body } = await post("/load-async", { origin });
        assertEquals(status, 202, JSON.stringify(body));
      },
    );
    await t.step("its own page, with the host of PUBLIC_URL", async () => {
      const { status, body } = await post("/forwarded/load", { origin });
      assertEquals(status, 200, JSON.stringify(body));
    });
    await t.step("pages of other origins are refused", async () => {
      for (
        const headers of [
          { origin: "http://other.example" },
          { origin: `${origin}:8080` },
          { origin: "null" },
          { origin, "sec-fetch-site": "cross-site" },
        ]
      ) {
        for (const path of ["/load-async", "/forwarded/load-async"]) {
          const { status, body } = await post(path, headers);
          assertEquals([status, body.code], [403, "cross_origin"]);
        }
      }
    });
    await t.step(
      "the documented server, with TLS and the stream of a run",
      async () => {
        using client = Deno.createHttpClient({
          caCerts: [await Deno.readTextFile(`${folder}/ca.pem`)],
        });
        const base = `https://localhost:${secure}`;
        await using blocker = db.connect("source");
        await blocker.unsafe("begin; lock table marketing.closed_deals");
        const started = await fetch(`${base}/load-async`, {
          method: "POST",
          client,
        });
        assertEquals(started.status, 202);
        const { run_id } = await started.json();
        const stream = await fetch(`${base}/runs/${run_id}/stream`, { client });
        assertEquals(stream.status, 200);
        const reader = stream.body!.pipeThrough(new TextDecoderStream())
          .getReader();
        // The run waits, so a proxy that buffers would send nothing.
        let text = "";
        while (!text.includes("\n\n")) text += (await reader.read()).value;
        assertStringIncludes(text, "event: state\n");
        await blocker.unsafe("rollback");
        while (!(await reader.read()).done);
      },
    );
    await t.step(
      "a webhook with a certificate of a private authority",
      async () => {
        await until(
          "the events are delivered",
          () => Promise.resolve(endpoint.posts.length > 0),
        );
        assertEquals(endpoint.forged, []);
      },
    );
  },
);
